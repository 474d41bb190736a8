"""Builds: which versions of a read model there are, which one readers see, and how far the next one is."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.authoring.projection import Projection
from pipeline.errors import OperationError
from pipeline.settings import Settings

WORKERS = "workers"
"""A file beside a build's code."""
Origin = Literal["mirror", "log", "source"]
Phase = Literal["prepare", "copy", "read", "load", "verify", "ready", "switch"]
"""What is done next: the target made, the mirror copied or begun, tables read from the source, documents written, compared, waiting for
the cut-over, cut over."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Build(_Entry):
    """One version of the code, built for the n-th time."""

    version: int
    build: int = 1

    def of(self, projection: Projection[Any]) -> Projection[Any]:
        """The projection as this build; its id names the index, the mirror and the consumer group."""
        return replace(projection, version=self.version, build=self.build)


class Job(_Entry):
    """A rebuild under way; what it has done is done again without harm, so it goes on where it was."""

    target: Build
    origin: Origin
    why: str
    phase: Phase = "prepare"
    read: tuple[str, ...] = ()
    """Tables that the connector has read for it, from the source."""
    cutover: bool = True
    rate: float = 0.0
    """Documents a second that the new build may write; 0: all that the sink takes."""
    keep: float = 3600.0
    """Seconds that the old build is kept current after the cut-over."""
    started: float
    since: float = 0.0
    """When this phase began."""


class Kept(_Entry):
    """The build that readers saw before: current until then, so that a rollback is one step."""

    build: Build
    until: float


class Builds(_Entry):
    """What there is of one projection. Empty before its first rebuild: then the code's version is all."""

    live: Build | None = None
    job: Job | None = None
    kept: Kept | None = None
    dropping: tuple[Build, ...] = ()
    """Builds that nobody needs: their worker is to end, then all of them goes."""
    highest: dict[int, int] = {}
    """Per version the highest build so far: a number is never used again."""

    def next(self, version: int) -> Build:
        """The build after all others of this version."""
        return Build(version=version, build=self.highest.get(version, 1) + 1)

    def having(self, **changes: Any) -> Builds:
        """The same with these fields."""
        return self.model_copy(update=changes)

    def at(self, phase: Phase) -> Builds:
        """The same with the job at this phase; raises OperationError where it was cancelled meanwhile."""
        return self._job(phase=phase, since=time.time())

    def with_read(self, table: str) -> Builds:
        """The same with one more table read; raises OperationError where the job was cancelled meanwhile."""
        return self._job(read=(*(self.job.read if self.job is not None else ()), table))

    def _job(self, **changes: Any) -> Builds:
        if self.job is None:
            raise OperationError("The rebuild was cancelled meanwhile.")
        return self.having(job=self.job.model_copy(update=changes))

    def beside(self) -> list[Build]:
        """Those that have a mirror, but for the one that readers see."""
        found = [self.kept.build] if self.kept is not None else []
        if self.job is not None and self.job.phase not in ("prepare", "copy"):
            found.append(self.job.target)
        return found


def file(settings: Settings, name: str) -> Path:
    return settings.state_dir.resolve() / "builds" / f"{name}.json"


def read(settings: Settings, name: str) -> Builds:
    path = file(settings, name)
    try:
        return Builds.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Builds()
    except ValidationError:
        raise OperationError(f"{path} is damaged: restore it, or delete it where the first build is live.") from None


def update(settings: Settings, name: str, change: Callable[[Builds], Builds]) -> Builds:
    """Read, change and replace the file, one process at a time; whoever is killed leaves the old or the new."""
    path = file(settings, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read(settings, name)
        changed = change(known)
        if changed != known:
            fresh = path.with_suffix(".new")
            with fresh.open("w") as out:
                out.write(changed.model_dump_json(indent=2) + "\n")
                out.flush()
                os.fsync(out.fileno())
            fresh.replace(path)
    return changed


@contextmanager
def alone(settings: Settings, name: str) -> Iterator[None]:
    """One process at a time works on a projection's rebuild; raises OperationError where another one does."""
    path = file(settings, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".job").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OperationError(
                f"Another process works on the rebuild of {name}: see `cdc rebuild status {name}`."
            ) from None
        yield


def seen(settings: Settings, projection: Projection[Any]) -> Projection[Any]:
    """The code's version as the build that readers see."""
    live = read(settings, projection.name).live
    return live.of(projection) if live is not None and live.version == projection.version else projection


def maintained(settings: Settings, code: Projection[Any]) -> list[Projection[Any]]:
    """What readers see, and all that has a mirror beside it."""
    known = read(settings, code.name)
    live = known.live or Build(version=code.version)
    return [as_begun(settings, build, code) for build in dict.fromkeys([live, *known.beside()])]


def as_begun(settings: Settings, build: Build, code: Projection[Any]) -> Projection[Any]:
    """The build with the number of workers that its own code gave it, which may be another one's by now."""
    own = build.of(code)
    said = code_of(settings, own.id) / WORKERS
    return replace(own, workers=int(said.read_text())) if build.version != code.version and said.exists() else own


def expired(builds: Builds) -> bool:
    """Whether the build kept for a rollback has had its time."""
    return builds.kept is not None and builds.kept.until < time.time()


def code_of(settings: Settings, id: str) -> Path:
    """The projections' files as a build was made from; its worker is started from them when the code goes on."""
    return settings.state_dir.resolve() / "code" / id


def keep_code(settings: Settings, projection: Projection[Any]) -> None:
    """Keep the files of the projections' folder for this build, as they are now."""
    there = code_of(settings, projection.id)
    if settings.projections.resolve() == there:
        return
    there.mkdir(parents=True, exist_ok=True)
    kept = {path.name: path.read_bytes() for path in settings.projections.glob("*.py")}
    for name, data in {**kept, WORKERS: str(projection.workers).encode()}.items():
        fresh = there / f"{name}.{os.getpid()}"  # several workers of it begin at once
        fresh.write_bytes(data)
        fresh.replace(there / name)
