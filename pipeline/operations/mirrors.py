"""Mirrors as files: a copy for the next build, what is still to be written, what belongs to one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import apsw

from pipeline.authoring.event_shape import EventShape
from pipeline.authoring.fingerprint import fingerprint
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.groups import GROUPS, group_tables
from pipeline.engine.layout import Layout
from pipeline.engine.owners import Owners
from pipeline.engine.sql import connect, listed, quoted, rows, transaction, value
from pipeline.errors import OperationError
from pipeline.operations.in_parts import exchange_topic
from pipeline.operations.layouts import layout_of
from pipeline.operations.status import mirror_file, verified_file, worker_file
from pipeline.settings import Settings


def usable(settings: Settings, live: Projection[Any], new: Projection[Any]) -> str:
    """Why the mirror of `live`, or those of its partitions, are not enough for `new`, or nothing where they are."""
    if live.workers != new.workers:
        return f"{live.id} has {_workers(live)}, and {new.id} {_workers(new)}, which share out the rows otherwise"
    layout, code = layout_of(settings, new), fingerprint(shape_of(new.shape))
    if live.workers > 1 and not Owners(layout_of(settings, live), live.workers).has_all_of(Owners(layout, new.workers)):
        return f"the partitions of {live.id} have other rows than those of {new.id} need"
    return next(filter(None, (_usable(mirror_file(settings, part), part, layout, code) for part in live.parts)), "")


def _workers(projection: Projection[Any]) -> str:
    return "one worker" if projection.workers == 1 else f"{projection.workers} workers"


def _usable(path: Path, part: str, layout: Layout, code: str) -> str:
    if not path.exists():
        return f"there is no mirror {path}"
    db = connect(str(path), readonly=True)
    try:
        if not value(db, "SELECT value FROM meta WHERE name = 'loaded'"):
            return f"{part} has not had its first load"
        return _lacks(db, layout, same=code == _said(db))
    finally:
        db.close()


def read_up_to(settings: Settings, projection: Projection[Any]) -> dict[str, int]:
    """Where its mirror goes on reading, `{"topic/0": 17}`; of several partitions the one that is furthest behind.

    Nothing where one of their mirrors is not here; no line of what one of them has not begun to read.
    """
    found: dict[str, list[int]] = {}
    for part in projection.parts:
        if not (path := mirror_file(settings, part)).exists():
            return {}
        with closing(connect(str(path), readonly=True)) as db:
            if value(db, "SELECT 1 FROM sqlite_schema WHERE name = 'offsets'") is None:
                return {}  # its worker is just making it
            for name, after in rows(db, "SELECT partition, next FROM offsets"):
                found.setdefault(name, []).append(after)
    return {name: min(each) for name, each in found.items() if len(each) == len(projection.parts)}


def _said(db: apsw.Connection) -> str:
    return str(value(db, "SELECT value FROM meta WHERE name = 'fingerprint'") or "")


def _lacks(db: apsw.Connection, layout: Layout, *, same: bool) -> str:
    written = [name for (name,) in rows(db, "SELECT name FROM pragma_table_info('dirty') WHERE name GLOB 'k[0-9]*'")]
    if written != list(layout.written_key):
        return "its documents have another key"
    for table in layout.tables.values():
        there = [name for (name,) in rows(db, "SELECT name FROM pragma_table_info(?) ORDER BY cid", (table.name,))]
        there = [name for name in there if name not in ("_commit", "_order", "_generation")]
        if there != list(table.columns):
            missing = sorted(set(table.columns) - set(there))
            return f"it lacks {table.name}.{', '.join(missing)}" if missing else f"{table.name} is laid out otherwise"
    # what waits in them is told by numbers of the layout, which other code may count otherwise
    if not same and (value(db, "SELECT 1 FROM staged LIMIT 1") or value(db, "SELECT 1 FROM fanout LIMIT 1")):
        return "the code changed, and transactions or fan-outs of the old code wait in it: try again"
    return ""


def copy_mirror(settings: Settings, live: Projection[Any], new: Projection[Any], sinks: Sequence[str]) -> None:
    """The live mirror, as of one moment, as the new build's, with every document dirty for its sinks; all or nothing.

    Of several partitions each by itself: again, where it ends between two of them.
    """
    for of, to in zip(live.parts, new.parts, strict=True):
        _copy(settings, of, new, to, sinks, forgetting=f"{exchange_topic(settings, live)}/%")


def _copy(settings: Settings, of: str, new: Projection[Any], to: str, sinks: Sequence[str], *, forgetting: str) -> None:
    source, target = mirror_file(settings, of), mirror_file(settings, to)
    part = target.with_suffix(".part")
    if not source.exists():
        raise OperationError(f"There is no mirror {source} to copy: cancel, and rebuild --from log.")
    below = copied(source, part)
    try:
        below.execute("DELETE FROM offsets WHERE partition LIKE ?", (forgetting,))
        _mark(below, layout_of(settings, new), fingerprint(shape_of(new.shape)), sinks)
        below.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        below.close()
    put_in_place(settings, to, part)


def put_in_place(settings: Settings, id: str, part: Path) -> None:
    """A mirror that was made beside is from now on the build's, whole, in place of all that it had."""
    for path in files_of(settings, id):
        path.unlink(missing_ok=True)
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(mirror_file(settings, id))


def copied(source: Path, target: Path) -> apsw.Connection:
    """A copy of a mirror as of one moment; its worker goes on writing."""
    remove(target)
    above, below = connect(str(source), readonly=True), apsw.Connection(str(target))
    try:
        with below.backup("main", above, "main") as copying:
            while not copying.done:
                copying.step(-1)  # in one read transaction
    except BaseException:
        below.close()
        raise
    finally:
        above.close()
    return below


def remove(path: Path) -> None:
    """A database and what SQLite has beside it, where it is there."""
    for one in (path, *(Path(f"{path}{end}") for end in ("-wal", "-shm"))):
        one.unlink(missing_ok=True)


def _mark(db: apsw.Connection, layout: Layout, code: str, sinks: Sequence[str]) -> None:
    root, names = layout.root, [f"k{i}" for i in range(len(layout.root.key))]
    with transaction(db):
        for table in ("sinks", "dirty", "quarantine", "refresh"):
            db.execute(f"DELETE FROM {table}")
        db.execute("DROP TABLE IF EXISTS withheld")
        for of_sinks in ("withheld/%", "doubted/%", "orphans/%", "orphans held/%"):
            db.execute("DELETE FROM meta WHERE name LIKE ?", (of_sinks,))
        db.execute("UPDATE meta SET value = ? WHERE name = 'fingerprint'", (code,))
        db.executemany("INSERT INTO sinks(name) VALUES(?)", [(name,) for name in sinks])
        # since 0: no watermark before all of them are written
        if layout.aggregate is not None:
            _count_anew(db, layout)
            return
        db.execute(
            f"INSERT INTO dirty(sink, {', '.join(names)}, seq, since, low) SELECT s.id, {listed(root.key, 'r.')},"
            f" (SELECT value FROM meta WHERE name = 'seq'), 0, 1 FROM sinks s CROSS JOIN {quoted(root.name)} r NOT INDEXED"
        )


def _count_anew(db: apsw.Connection, layout: Layout) -> None:
    """The groups are those of other code: all rows are looked at again, and no group is written before that is done."""
    for table in GROUPS:
        db.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in group_tables(layout):
        db.execute(statement)
    keys = ", ".join(layout.root_key)
    db.execute(
        f"INSERT INTO touched({keys}, seq, since, low) SELECT {listed(layout.root.key)},"
        f" (SELECT value FROM meta WHERE name = 'seq'), 0, 1 FROM {quoted(layout.root.name)} NOT INDEXED"
    )


def files_of(settings: Settings, id: str) -> list[Path]:
    """What a build has on this machine, but for its lock."""
    mirror = mirror_file(settings, id)
    return [
        mirror,
        *(Path(f"{mirror}{end}") for end in ("-wal", "-shm")),
        mirror.with_suffix(".state"),
        worker_file(settings, id),
        verified_file(settings, id),
    ]


def parts_of(settings: Settings, id: str) -> list[str]:
    """A build, and those of its partitions that this machine has a mirror of."""
    return [id, *sorted(path.stem for path in mirror_file(settings, id).parent.glob(f"{id}@*.db"))]


@contextmanager
def owned(settings: Settings, id: str) -> Iterator[bool]:
    """Hold a mirror as its worker would; False where a worker has it."""
    lock = mirror_file(settings, id).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def gone_rows(
    settings: Settings, projection: Projection[Any]
) -> Iterator[Callable[[str, frozenset[tuple[Any, ...]]], bool] | None]:
    """Of an event document that outlives its rows: whether its mirror has events beside these; None without a mirror.

    Of others, nothing is ever gone.
    """
    shape, paths = shape_of(projection.shape), [mirror_file(settings, part) for part in projection.parts]
    if not isinstance(shape, EventShape) or shape.forgets or not all(path.exists() for path in paths):
        yield None
        return
    width = len(layout_of(settings, projection).root_key)
    with ExitStack() as opened:
        mirrors = [opened.enter_context(closing(connect(str(path), readonly=True))) for path in paths]

        def gone(group: str, keys: frozenset[tuple[Any, ...]]) -> bool:
            of_group = "SELECT * FROM contributions WHERE g = ?"
            return any(row[:width] not in keys for mirror in mirrors for row in mirror.execute(of_group, (group,)))

        yield gone
