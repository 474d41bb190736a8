"""Backfill: a table's rows, or some of them, come again through the stream, beside the changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.errors import OperationError
from pipeline.operations.passing import Ends, passed
from pipeline.settings import Settings

LOOK_AFTER: Final = 5.0
"""Seconds of silence after which the connector is looked at."""
PATIENCE: Final = 120.0
"""Seconds without any progress of a projection after which it is no longer waited for."""
GOOD_ENDS: Final = ("SUCCEEDED", "EMPTY")


class Snapshots(Protocol):
    """The connector's turn to take snapshots (connectors/sources/signals.py)."""

    def count(self, table: str, where: str = "") -> int: ...
    def snapshot(self, table: str, where: str = "") -> str: ...
    def stop(self, table: str) -> None: ...
    def position(self) -> int: ...


class Said(Protocol):
    """What the connector says of a snapshot (connectors/sources/notices.py)."""

    id: str
    type: str
    additional_data: dict[str, str]


class Backfilled(BaseModel):
    """One projection: whether its documents show the rows; if not, why."""

    projection: str
    passed: bool
    reason: str = ""


class BackfillReport(BaseModel):
    """What was read again. `rows` were read by the connector; those that changed meanwhile came as changes."""

    table: str
    where: str
    connector: str
    rows: int
    chunks: int
    seconds: float
    lsn: int
    """A position of the source after the last row."""
    projections: list[Backfilled] = []

    @property
    def done(self) -> bool:
        return all(p.passed for p in self.projections)


Progress = Callable[[int, int], None]
"""Called with the rows read and the rows expected."""


async def backfill(
    settings: Settings,
    projections: Sequence[Projection[Any]],
    table: str,
    where: str = "",
    *,
    connector: str,
    topic: str,
    snapshots: Snapshots,
    said: Callable[[], Awaitable[Sequence[Said]]],
    ill: Callable[[], Awaitable[str]],
    ends: Ends,
    progress: Progress = lambda read, expected: None,
) -> BackfillReport:
    """Have the connector read the rows again, and wait until these projections have written them.

    A row of it never overrides a newer change. Rows that the source no longer has are not looked for (`refresh` does
    that for given keys). Cancelled, it stops the snapshot. `ill` says what is wrong with the connector, or nothing.
    Raises OperationError where the source refuses the condition or the connector gives up.
    """
    began = time.monotonic()
    expected = await asyncio.to_thread(snapshots.count, table, where)
    report = BackfillReport(table=table, where=where, connector=connector, rows=0, chunks=0, seconds=0, lsn=0)
    if expected:
        signal = await asyncio.to_thread(snapshots.snapshot, table, where)
        try:
            await _follow(report, signal, expected, said, ill, progress)
        except BaseException:
            snapshots.stop(table)
            raise
    report.lsn = await asyncio.to_thread(snapshots.position)
    waits = [passed(settings, p, connector, report.lsn, topic, ends, PATIENCE) for p in projections]
    reasons = await asyncio.gather(*waits)
    report.projections = [
        Backfilled(projection=p.name, passed=not reason, reason=reason)
        for p, reason in zip(projections, reasons, strict=True)
    ]
    report.seconds = round(time.monotonic() - began, 3)
    return report


async def _follow(
    report: BackfillReport,
    signal: str,
    expected: int,
    said: Callable[[], Awaitable[Sequence[Said]]],
    ill: Callable[[], Awaitable[str]],
    progress: Progress,
) -> None:
    """Until the connector says that it is done with this signal."""
    progress(0, expected)
    heard = time.monotonic()
    while True:
        for notice in await said():
            heard = time.monotonic()
            if notice.id == signal and _hear(report, notice.type, notice.additional_data, expected, progress):
                return
        if time.monotonic() - heard > LOOK_AFTER:
            if error := await ill():
                raise OperationError(f"The backfill of {report.table} does not go on: {error}")
            heard = time.monotonic()


def _hear(report: BackfillReport, kind: str, about: Mapping[str, str], expected: int, progress: Progress) -> bool:
    """Whether this was the last word."""
    if kind == "IN_PROGRESS" and about.get("current_collection_in_progress") == report.table:
        report.chunks = int(about.get("chunk_index", report.chunks + 1))
        share = report.chunks / max(1, int(about.get("total_chunks", report.chunks)))
        progress(min(expected, round(expected * share)), expected)
    elif kind == "TABLE_SCAN_COMPLETED" and about.get("scanned_collection") == report.table:
        report.rows = int(about.get("total_rows_scanned", 0))
        if (end := about.get("status", "")) not in GOOD_ENDS:
            raise OperationError(f"The connector gave up on {report.table}: {end}; see its log.")
        progress(expected, expected)
    elif kind in ("ABORTED", "STOPPED"):
        raise OperationError(f"The snapshot of {report.table} was stopped.")
    return kind == "COMPLETED"
