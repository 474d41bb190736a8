"""State snapshots: a mirror's copies in a folder or an object storage, and back from there where a machine is lost."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import apsw
from pydantic import BaseModel, ValidationError

from pipeline.engine.mirror import FORMAT, doubt
from pipeline.engine.sql import connect, value
from pipeline.errors import CdcError, OperationError, SettingsError, StatesUnavailable
from pipeline.operations.mirrors import copied, remove
from pipeline.operations.status import mirror_file
from pipeline.settings import Settings

log = logging.getLogger("cdc.states")
CHUNK: Final = 1 << 22
"""Bytes read, compressed and sent at a time."""
LEVEL: Final = 1
"""Of gzip: the next ones take twice as long for a tenth less."""
GZIP: Final = 31
"""What zlib calls gzip's format."""


class State(BaseModel):
    """One state snapshot's manifest. It is written last: without it there is no snapshot."""

    build: str
    """The build's id, `orders-v1.2`."""
    name: str
    """When it was taken, so that a later one sorts after it."""
    at: datetime
    seq: int
    """The mirror's sequence."""
    format: int
    fingerprint: str
    """Of the definition by which the mirror was made."""
    bytes: int
    """Of the file as it is stored."""
    mirror_bytes: int
    sha256: str
    """Of the file as it is stored."""


class States:
    """All state snapshots of a project: `<state.snapshots>/<project>/<build>/<name>.db.gz`, and `.json` beside it."""

    def __init__(self, settings: Settings, passing: Callable[[str], None] = lambda point: None) -> None:
        if settings.state.snapshots is None:
            raise SettingsError("State snapshots have no place: set state.snapshots to a folder or an address.")
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem
        except ImportError:
            raise SettingsError("State snapshots need an extra: pip install 'cdc-pipeline[snapshots]'.") from None
        self.settings, self.url, self._passing = settings, settings.state.snapshots, passing
        try:
            self._fs, root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"state.snapshots, {self.url}: {error}.") from None
        self._root = f"{root.rstrip('/')}/{settings.project}"
        # a bucket has no folders to make, and is not to be made by a slip of the pen
        self._bucket = "" if isinstance(self._fs, LocalFileSystem) else root.partition("/")[0]

    # ---- there ----------------------------------------------------------------------------------------------

    def builds(self) -> list[str]:
        """The ids of all that have any; raises StatesUnavailable, as all of these do."""
        return sorted(path.rpartition("/")[2] for path in self._names(self._root))

    def of(self, build: str) -> list[State]:
        """Those of a build, the newest first; a damaged manifest is said, and left out."""
        found = []
        for path in sorted(self._names(self._folder(build)), reverse=True):
            if path.endswith(".json"):
                with self._asking():
                    data = self._fs.cat_file(path)
                try:
                    found.append(State.model_validate_json(data))
                except ValidationError:
                    log.error("%s: the state snapshot %s has a damaged manifest: left out", build, path)
        return found

    # ---- taking ---------------------------------------------------------------------------------------------

    def take(self, build: str) -> State:
        """The mirror as of one moment; whoever is killed meanwhile leaves no manifest, so no snapshot. The worker may run."""
        source = mirror_file(self.settings, build)
        if not source.exists():
            raise OperationError(f"There is no mirror {source}: {build} has no state on this machine.")
        part = source.with_suffix(".state")
        with source.with_suffix(".state.lock").open("a") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            try:
                return self._stored(source, part, build)
            finally:
                remove(part)

    def _stored(self, source: Path, part: Path, build: str) -> State:
        at = datetime.now(UTC)
        copied(source, part).close()
        state = _described(part, build, at)
        with self._asking():
            if not self._bucket:
                self._fs.makedirs(self._folder(build), exist_ok=True)
            with part.open("rb") as file, self._fs.open(self._path(state, ".db.gz"), "wb") as out:
                state.sha256, state.bytes = _compressed(file, out)
            self._passing("state-stored")  # where a test kills the process
            self._fs.pipe_file(self._path(state, ".json"), state.model_dump_json(indent=2).encode())
        return state

    def prune(self, build: str, keep: int) -> None:
        """All but the newest ones go, and what a killed worker left without a manifest before them."""
        states = self.of(build)
        for state in states[keep:]:  # the manifest first: it never names what is gone
            self._remove(self._path(state, ".json"))
        kept = {self._path(state, end) for state in states[:keep] for end in (".json", ".db.gz")}
        if kept:
            for path in self._names(self._folder(build)):
                if path not in kept and path < min(kept):
                    self._remove(path)

    def drop(self, build: str) -> None:
        """All of a build's."""
        if self._names(self._folder(build)):
            with self._asking():
                self._fs.rm(self._folder(build), recursive=True)

    # ---- back -----------------------------------------------------------------------------------------------

    def restore(self, build: str, fingerprint: str) -> State | None:
        """The newest that is whole, and made by this definition, as the build's mirror; each that is not is said.

        None: there is no such one. All or nothing, and only for who holds the mirror's lock.
        """
        target = mirror_file(self.settings, build)
        part = target.with_suffix(".part")
        for state in self.of(build):
            try:
                wrong = self._fetch(state, part, fingerprint)
                if not wrong:
                    with closing(apsw.Connection(str(part))) as db:
                        doubt(db)  # its worker has gone on since
                    remove(target)
                    part.replace(target)
                    return state
            finally:
                remove(part)
            log.error("%s: the state snapshot of %s is not used: %s", build, f"{state.at:%F %T} UTC", wrong)
        return None

    def _fetch(self, state: State, part: Path, fingerprint: str) -> str:
        """What is wrong with it, or nothing: then `part` has the mirror."""
        if state.format != FORMAT:
            return f"it has format {state.format}, this program {FORMAT}"
        if state.fingerprint != fingerprint:
            return "the projection's definition is another now"
        packed = part.with_suffix(".gz")
        try:
            with self._asking():
                try:
                    self._fs.get_file(self._path(state, ".db.gz"), str(packed))
                except FileNotFoundError:
                    return "its file is gone"
            if _digest(packed) != state.sha256:
                return "its bytes are not those that were stored"
            remove(part)
            with gzip.open(packed) as file, part.open("wb") as out:
                shutil.copyfileobj(file, out, CHUNK)
                out.flush()
                os.fsync(out.fileno())
        finally:
            packed.unlink(missing_ok=True)
        return _damage(part)

    # ---- the storage ----------------------------------------------------------------------------------------

    def _folder(self, build: str) -> str:
        return f"{self._root}/{build}"

    def _path(self, state: State, end: str) -> str:
        return f"{self._folder(state.build)}/{state.name}{end}"

    def _names(self, folder: str) -> list[str]:
        with self._asking():
            self._fs.invalidate_cache()  # another machine writes there too
            try:
                return [str(path) for path in self._fs.ls(folder, detail=False)]
            except FileNotFoundError:
                if self._bucket and not self._fs.exists(self._bucket):
                    raise
                return []

    def _remove(self, path: str) -> None:
        with self._asking():
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                pass

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Each storage has errors of its own."""
        try:
            yield
        except CdcError:
            raise
        except Exception as error:
            raise StatesUnavailable(
                f"The state snapshots in {self.url} can't be reached: {type(error).__name__}: {error}"
            ) from None


def states(settings: Settings, passing: Callable[[str], None] = lambda point: None) -> States | None:
    """None where this project has no place for them."""
    return States(settings, passing) if settings.state.snapshots is not None else None


def _described(part: Path, build: str, at: datetime) -> State:
    db = connect(str(part), readonly=True)
    try:
        seq, code = (value(db, "SELECT value FROM meta WHERE name = ?", (name,)) for name in ("seq", "fingerprint"))
    finally:
        db.close()
    return State(
        build=build, name=f"{at:%Y%m%dT%H%M%S%fZ}", at=at, seq=int(seq or 0), format=FORMAT, fingerprint=str(code or ""),
        bytes=0, mirror_bytes=part.stat().st_size, sha256="",
    )  # fmt: skip


def _compressed(file: BinaryIO, out: Any) -> tuple[str, int]:
    """The digest and the length of what was written."""
    packer, digest, length = zlib.compressobj(LEVEL, wbits=GZIP), hashlib.sha256(), 0
    while True:
        chunk = file.read(CHUNK)
        data = packer.compress(chunk) if chunk else packer.flush()
        digest.update(data)
        length += out.write(data)
        if not chunk:
            return digest.hexdigest(), length


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damage(path: Path) -> str:
    """What SQLite finds wrong in a mirror, or nothing."""
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            said = str(value(db, "PRAGMA quick_check(1)"))
        finally:
            db.close()
    except apsw.Error as error:
        said = str(error)
    return "" if said == "ok" else f"it is damaged: {said}"
