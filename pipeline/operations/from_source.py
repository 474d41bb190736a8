"""A mirror filled from the source: it begins where Kafka's topics end, and the connector reads each table after that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from pipeline.authoring.fingerprint import fingerprint
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.mirror import Mirror
from pipeline.errors import OperationError
from pipeline.operations.layouts import layout_of
from pipeline.operations.mirrors import put_in_place, remove
from pipeline.operations.passing import Ends, passed
from pipeline.operations.status import RUNNING, mirror_file, status
from pipeline.settings import Settings

PATIENCE: Final = 60.0
"""Seconds without progress of the worker after which it is looked at again."""
SAY_EVERY: Final = 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What filling a mirror from the source is handed."""

    connector: str
    ends: Callable[[], Awaitable[Mapping[str, int]]]
    """Where the topics of the projection end, that of the boundaries too: `{"topic/0": 17}`."""
    topic: Callable[[str], str]
    """A table's topic."""
    table_ends: Ends
    read: Callable[[str], Awaitable[object]]
    """Have the connector read a table, and return once it has."""
    position: Callable[[], Awaitable[int]]
    """Where the source's log is now."""
    say: Callable[[str], None]


def tables_of(settings: Settings, projection: Projection[Any]) -> list[str]:
    """The tables to read, the documents' own one last: by then all that a document has beside it is there."""
    layout = layout_of(settings, projection)
    return sorted(layout.tables, key=lambda name: name == layout.root.name)


def begin_mirror(settings: Settings, new: Projection[Any], ends: Mapping[str, int]) -> None:
    """An empty mirror whose worker reads on from here; what was sent before is in what the source is asked for later.

    One of each partition, where several workers share the documents.
    """
    for part in new.parts:
        _begin(settings, new, part, ends)


def _begin(settings: Settings, new: Projection[Any], name: str, ends: Mapping[str, int]) -> None:
    part = mirror_file(settings, name).with_suffix(".part")
    remove(part)
    mirror = Mirror(
        str(part), layout_of(settings, new), owner=f"rebuild:{uuid4().hex}", fingerprint=fingerprint(shape_of(new.shape))
    )  # fmt: skip
    try:
        with mirror.checkpoint():
            mirror.set_offsets(ends)
        mirror.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        mirror.close()
    put_in_place(settings, name, part)


async def read_tables(
    settings: Settings, new: Projection[Any], read: Sequence[str], reading: Reading, done: Callable[[str], None]
) -> None:
    """Each table that is not in `read`, `done` told of each; then until the worker has written all of them."""
    await _until_it_runs(settings, new, reading.say)
    tables = tables_of(settings, new)
    for table in tables:
        if table not in read:
            await reading.read(table)
            done(table)
    lsn = await reading.position()
    for table in tables:
        await _written(settings, new, lsn, reading.topic(table), reading)


async def _written(settings: Settings, new: Projection[Any], lsn: int, topic: str, reading: Reading) -> None:
    said = ""
    while reason := await passed(settings, new, reading.connector, lsn, topic, reading.table_ends, PATIENCE):
        if reason != said:
            reading.say(f"{new.id}: {reason}")
            said = reason
        await _until_it_runs(settings, new, reading.say)


async def _until_it_runs(settings: Settings, new: Projection[Any], say: Callable[[str], None]) -> None:
    """A worker that was killed is started again by `cdc run`; raises OperationError for one that can't go on."""
    began, said = time.monotonic(), False
    while (own := status(settings, [new]).projections[0]).state not in RUNNING:
        if own.state == "failed" and own.error and own.error.startswith(("LogTruncated", "SchemaChanged")):
            raise OperationError(f"The worker of {new.id} has stopped: {own.error}")
        if not said and time.monotonic() - began > SAY_EVERY:
            said = True
            say(f"No worker of {new.id} runs: `cdc run` starts it, or `cdc worker {new.name} --build {new.build}`.")
        await asyncio.sleep(0.2)
