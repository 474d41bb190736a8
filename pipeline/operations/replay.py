"""Replay: kept history is read once more and held against the mirror; rows that are not as it says are read again.

No old event is ever applied: a row that differs is asked of the source, through the stream (docs/decisions/0004).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.apply import position
from pipeline.engine.exchange import Router
from pipeline.engine.inputs import Inputs
from pipeline.engine.layout import Layout, Table
from pipeline.engine.sourcelog import LOG_BITS
from pipeline.engine.sql import connect, listed, quoted, rows, transaction
from pipeline.errors import DecodeError, OperationError
from pipeline.events.envelope import Event, TableDecoder, placed
from pipeline.events.sourcelog import parsed
from pipeline.operations.layouts import layout_of
from pipeline.operations.mirrors import read_up_to
from pipeline.operations.refresh import RefreshReport, refresh_parts
from pipeline.operations.status import mirror_file
from pipeline.settings import Settings

Kept = tuple[str, int, bytes | None, bytes | None, str]
"""Partition (`topic/0`), offset, key, value, and the label of its source log."""
Wrong = dict[str, list[tuple[Any, ...]]]
"""By table, the keys of rows that are wrong."""
SHOWN: Final = 20
MOST: Final = 10_000
"""Rows that are read again one by one."""
_encode: Final = msgspec.msgpack.Encoder(enc_hook=lambda _: {"unchanged": True}).encode
_decode: Final = msgspec.msgpack.Decoder(list[Any]).decode


class WrongRow(BaseModel):
    """A row that is not as the newest kept event of it says."""

    table: str
    key: list[Any]
    kind: str
    """`missing`, `extra` or `different`."""


class ReplayReport(BaseModel):
    """What was read, and how it stands to the mirror. Every event is counted once.

    Of several workers, to the mirror of the partition that owns its row; where all have it, it is counted for each.
    """

    projection: str
    events: int = 0
    stale: int = 0
    """Older than what the mirror has of their row, or than another that was read."""
    equal: int = 0
    unplaced: int = 0
    """Rows of snapshots, and events of a row that the mirror has from one: without a place among the changes nothing is told."""
    waiting: int = 0
    """Read by the worker, and not applied: their transaction is not complete."""
    undecodable: int = 0
    wrong: int = 0
    rows: list[WrongRow] = []
    """The first of those that are wrong."""
    repaired: RefreshReport | None = None


def ends_of(settings: Settings, projection: Projection[Any], topics: Mapping[str, str]) -> dict[str, int]:
    """Where the worker stands in these topics (`{topic: table}`), `{"topic/0": 17}`; raises OperationError without a mirror."""
    for part in projection.parts:
        path = mirror_file(settings, part)
        if not path.exists():
            raise OperationError(f"{part} has no mirror here: start its worker, cdc run.")
        with closing(connect(str(path), readonly=True)) as db:
            if rows(db, "SELECT 1 FROM meta WHERE name = 'catching_up' AND value IS NOT NULL"):
                raise OperationError(f"{part} is catching up: replay when it has.")
    # what only some of several have read is not held against the others
    ends = read_up_to(settings, projection)
    return {name: end for name, end in ends.items() if name.rpartition("/")[0] in topics}


async def replay(
    settings: Settings,
    projection: Projection[Any],
    topics: Mapping[str, str],
    records: AsyncIterator[Sequence[Kept]],
    *,
    since: int = 0,
    dry: bool = False,
    patience: float = 60.0,
) -> ReplayReport:
    """Hold records against the mirror, and have rows that differ read again by the running worker.

    `topics`: `{topic: table}`. The records end where the worker stood (`ends_of`). `since`: an LSN; what lies before is left out.
    Raises OperationError where rows differ and no worker runs.
    """
    layout, report = layout_of(settings, projection), ReplayReport(projection=projection.name)
    router = Router(layout, Inputs(topics, None), projection.workers)
    wrong: dict[str, Wrong] = {}
    with tempfile.TemporaryDirectory(prefix="cdc-replay-") as folder, ExitStack() as opened:
        pasts = []
        for part in projection.parts:
            pasts.append(Past(layout, topics, mirror_file(settings, part), Path(folder) / f"{part}.db", since))
            opened.callback(pasts[-1].close)
        async for batch in records:
            await asyncio.to_thread(share_out, router, pasts, batch)
        for part, past in zip(projection.parts, pasts, strict=True):
            found = await asyncio.to_thread(past.judge, report)
            wrong |= {part: found} if found else {}
    if report.wrong > MOST and not dry:
        raise OperationError(
            f"{report.wrong:,} rows of {projection.name} are not as the kept history says, too many to be read one by one:"
            f" cdc rebuild {projection.name}."
        )
    if wrong and not dry:
        report.repaired = await asyncio.to_thread(refresh_parts, settings, projection, wrong, patience=patience)
    return report


def share_out(router: Router, pasts: Sequence[Past], batch: Sequence[Kept]) -> None:
    """Each record to the partition that owns its row, or to all; to those that a row has left that it has gone."""
    if len(pasts) == 1:
        pasts[0].add(batch)
        return
    own: list[list[Kept]] = [[] for _ in pasts]
    for partition, offset, key, value, label in batch:
        if value is not None:
            shares = router.shares(partition.rpartition("/")[0], (offset, key, value))
            for each, share in zip(own, shares, strict=True):
                if share is not None:
                    each.append((partition, *share, label))
    for past, each in zip(pasts, own, strict=True):
        past.add(each)


class Past:
    """The newest kept event of each row, in a file, so that memory does not grow with the history."""

    def __init__(self, layout: Layout, topics: Mapping[str, str], mirror: Path, file: Path, since: int) -> None:
        self.tables = {topic: layout.tables[table] for topic, table in topics.items()}
        self.decoders = {
            topic: TableDecoder(table.name, table.number, table.wires, table.key)
            for topic, table in self.tables.items()
        }
        self.mirror, self.db, self.since = (
            connect(str(mirror), readonly=True),
            connect(str(file)),
            since,
        )
        self.db.execute(
            "CREATE TABLE newest(t INTEGER, key TEXT, c INTEGER, o INTEGER, after BLOB, PRIMARY KEY(t, key)) WITHOUT ROWID"
        )
        self.staged = set(rows(self.mirror, "SELECT partition, offset FROM staged"))
        logs = rows(self.mirror, "SELECT ordinal, identity FROM source_log")
        self.ordinals = {parsed(label).number: n for n, label in logs}
        self.begun = max((n for n, label in logs if parsed(label).fresh), default=0) << LOG_BITS
        """A log that begins with a snapshot of its own leaves nothing to be told by those before it."""
        self.floors = dict(self._truncated())
        """Each table's newest truncate, by the mirror and by what is read."""
        self.counts = dict.fromkeys(("events", "unplaced", "waiting", "undecodable", "truncates"), 0)

    def close(self) -> None:
        self.mirror.close()
        self.db.close()

    def _truncated(self) -> Iterator[tuple[int, tuple[int, int]]]:
        for table in self.tables.values():
            for (floor,) in rows(self.mirror, "SELECT value FROM meta WHERE name = ?", (f"truncated/{table.name}",)):
                commit, order, _ = map(int, floor.split(":"))
                yield table.number, (commit, order)

    # ---- reading ----------------------------------------------------------------------------------------------

    def add(self, batch: Sequence[Kept]) -> None:
        lines = []
        for partition, offset, key, value, label in batch:
            topic = partition.rpartition("/")[0]
            if value is None:
                continue  # a tombstone only says again that a delete was there
            try:
                event = self.decoders[topic].decode(key, value)
                if event.source.gtid is not None:
                    placed(event)
            except DecodeError:
                self._count("undecodable")
                continue
            if (event.source.lsn or 0) < self.since:
                continue
            line = self._line(
                event, self.tables[topic], (partition, offset), self.ordinals.get(parsed(label).number, 1)
            )
            if line is not None:
                lines.append(line)
        with transaction(self.db):
            self.db.executemany(
                "INSERT INTO newest VALUES(?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET c = excluded.c, o = excluded.o,"
                " after = excluded.after WHERE (excluded.c, excluded.o) > (c, o)",
                lines,
            )

    def _line(self, event: Event, table: Table, at: tuple[str, int], log: int) -> tuple[Any, ...] | None:
        commit, order = position(event, log)
        if at in self.staged:
            self._count("waiting")
            return None
        if not commit or event.source.snapshot not in (None, "false", False):
            self._count("unplaced")
            return None
        if event.op == "t":
            self.floors[table.number] = max(self.floors.get(table.number, (0, 0)), (commit, order))
            self._count("truncates")
            return None
        self._count("events")
        key = event.key if event.after is None else event.after[: len(table.key)]
        after = None if event.after is None else _encode(list(event.after))
        return table.number, json.dumps(key), commit, order, after

    def _count(self, what: str) -> None:
        self.counts[what] += 1

    # ---- judging ----------------------------------------------------------------------------------------------

    def judge(self, report: ReplayReport) -> Wrong:
        """Add to the report; the keys of the rows that are wrong."""
        wrong: Wrong = {}
        equal, told, unplaced = 0, 0, 0
        with self.mirror:  # one state of it
            for table in self.tables.values():
                for text, commit, order, after in self.db.execute(
                    "SELECT key, c, o, after FROM newest WHERE t = ?", (table.number,)
                ):
                    key = tuple(json.loads(text))
                    kind = self._kind(table, key, (commit, order), None if after is None else _decode(after))
                    if kind == "equal":
                        equal += 1
                    elif kind == "unplaced":
                        unplaced += 1
                    elif kind != "stale":
                        told += 1
                        report.wrong += 1
                        if report.wrong <= MOST:
                            wrong.setdefault(table.name, []).append(key)
                        if len(report.rows) < SHOWN:
                            report.rows.append(WrongRow(table=table.name, key=list(key), kind=kind))
        counts = self.counts
        report.events += sum(counts.values())
        report.equal += equal
        report.stale += counts["events"] - equal - told - unplaced + counts["truncates"]
        report.unplaced += unplaced + counts["unplaced"]
        report.waiting += counts["waiting"]
        report.undecodable += counts["undecodable"]
        return wrong

    def _kind(self, table: Table, key: tuple[Any, ...], place: tuple[int, int], after: list[Any] | None) -> str:
        same = f"({listed(table.key)}) = ({', '.join('?' * len(key))})"
        found = rows(
            self.mirror,
            f"SELECT {listed(table.columns)}, _generation, _commit, _order FROM {quoted(table.name)} WHERE {same}",
            key,
        )
        gone = rows(self.mirror, f"SELECT _commit, _order FROM {quoted(table.name + '/deleted')} WHERE {same}", key)
        if place < (self.begun, 0):
            return "stale"
        if place <= self.floors.get(table.number, (0, 0)) and not table.kept:
            return "stale"
        if not found:
            if after is None:
                return "equal"
            return "stale" if gone and tuple(gone[0]) >= place else "missing"
        *row, generation, commit, order = found[0]
        if (commit, order) > place or generation > place[0] >> LOG_BITS:
            return "stale"
        if not commit:
            return "unplaced"  # no change has touched the row since a snapshot brought it, after this event or before
        if after is None:
            return "stale" if table.kept else "extra"
        equal = all(theirs == {"unchanged": True} or ours == theirs for ours, theirs in zip(row, after, strict=True))
        return "equal" if equal else "different"
