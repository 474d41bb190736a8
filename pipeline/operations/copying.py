"""A mirror filled by copies of the source's tables as of one moment, from where its connector's stream goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import uuid4

from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.fingerprint import fingerprint
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.loading import end_copy, put
from pipeline.engine.mirror import Mirror
from pipeline.engine.owners import Owners
from pipeline.events.rows import RowsDecoder
from pipeline.events.sourcelog import Moment, SourceLog
from pipeline.operations.layouts import layout_of
from pipeline.operations.mirrors import put_in_place, remove
from pipeline.operations.status import mirror_file
from pipeline.settings import Settings

SAY_EVERY: Final = 10.0
PAUSE: Final = 0.2


class Copies(Protocol):
    """Reads tables as of one moment."""

    @property
    def moment(self) -> Moment: ...

    def rows(self, table: Table, columns: Sequence[str]) -> Iterator[bytes]:
        """All rows, some thousand at a time, as JSON: `[[1, "a"], …]`, the columns in this order."""
        ...


@dataclass(frozen=True, slots=True)
class Copying:
    """What filling a mirror by copies is handed."""

    catalog: Catalog
    connector: str
    streams: Callable[[], Awaitable[SourceLog | None]]
    """The log that the connector reads, once it has sent something that was committed after this call; else None."""
    ends: Callable[[], Awaitable[Mapping[str, int]]]
    """Where the topics of the projection end, that of the boundaries too: `{"topic/0": 17}`."""
    copies: Callable[[], AbstractContextManager[Copies]]
    say: Callable[[str], None]
    going: Callable[[], bool] = lambda: True
    """No, where it is to be given up."""
    passing: Callable[[str], None] = lambda point: None
    """Where a test kills the process."""


async def fill(settings: Settings, new: Projection[Any], part: str, sinks: Sequence[str], hands: Copying) -> bool:
    """Make the mirror of this build, with every document to be written; all or nothing. No, where it was given up.

    `part`: the projection's id, or where several workers share the documents the one (`orders-v1@2`) whose rows are wanted.

    Nothing is missed: the connector streams before the moment of the copies, and the topics' ends lie before it too.
    Nothing comes twice: the mirror knows the moment, and leaves out of the stream what was committed by then.
    """
    said = False
    while (log := await hands.streams()) is None:
        if not hands.going():
            return False
        if not said:
            hands.say(f"{part}: waits until connector {hands.connector} streams (`cdc connector status`)")
            said = True
        await asyncio.sleep(PAUSE)
    return await asyncio.to_thread(_fill, settings, new, part, sinks, log, await hands.ends(), hands)


def _fill(
    settings: Settings,
    new: Projection[Any],
    name: str,
    sinks: Sequence[str],
    log: SourceLog,
    ends: Mapping[str, int],
    hands: Copying,
) -> bool:
    part = mirror_file(settings, name).with_suffix(".part")
    remove(part)
    part.parent.mkdir(parents=True, exist_ok=True)
    code = fingerprint(shape_of(new.shape))
    mirror = Mirror(str(part), layout_of(settings, new), owner=f"copy:{uuid4().hex}", fingerprint=code)
    try:
        with hands.copies() as copies:
            if not _tables(new, name, mirror, copies, hands):
                return False
            end_copy(mirror, ends, copies.moment, sinks, hands.connector, log)
        mirror.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        mirror.close()
    hands.passing("copied")
    put_in_place(settings, name, part)
    return True


def _tables(new: Projection[Any], name: str, mirror: Mirror, copies: Copies, hands: Copying) -> bool:
    number, owners = new.parts.index(name), Owners(mirror.layout, new.workers)
    for table in mirror.layout.tables.values():
        decoder, count, began = RowsDecoder(table.name, table.wires), 0, time.monotonic()
        said = began
        for batch in copies.rows(hands.catalog.table(table.name), list(table.columns)):
            rows = decoder.decode(batch)
            if (own := owners.places[table.name]) is not None and new.workers > 1:
                rows = [row for row in rows if owners.of_row(own, row) == number]
            put(mirror, table, rows, copies.moment.position)
            count += len(rows)
            hands.passing("copying")
            if not hands.going():
                return False
            if time.monotonic() - said > SAY_EVERY:
                said = time.monotonic()
                hands.say(f"{name}: {count:,} rows of {table.name}")
        hands.say(f"{name}: {count:,} rows of {table.name} in {time.monotonic() - began:.1f} s")
    return True
