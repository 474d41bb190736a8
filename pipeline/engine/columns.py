"""Columns that a source no longer sends: dropped or renamed, which its log never says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pipeline.engine.layout import Table
from pipeline.engine.mirror import Mirror
from pipeline.errors import SchemaChanged
from pipeline.events.envelope import Event

Missing = Literal["stop", "unknown"]


class SeenColumns:
    """Since when (source time, ms) each table's events have had all columns: from then on one that lacks some is a change."""

    def __init__(self, mirror: Mirror, missing: Missing) -> None:
        self.mirror, self.missing = mirror, missing
        found = {t.number: mirror.get(f"whole/{t.name}") for t in mirror.layout.tables.values()}
        self._since = {number: int(since) for number, since in found.items() if since is not None}
        self._fresh: set[int] = set()
        self._tables = {t.number: t for t in mirror.layout.tables.values()}

    def look(self, events: Sequence[Event]) -> None:
        """Events of one table as they come; raises SchemaChanged. One older than the first whole one is of a time before
        the column was there: its value is unknown, and read again from the source."""
        number = events[0].table
        if number not in self._since:
            first = next((e for e in events if e.after is not None and e.absent is None), None)
            if first is not None:
                self._since[number] = first.source.ts_ms
                self._fresh.add(number)
        if self.missing == "unknown":
            return
        since = self._since.get(number)
        for event in events:
            # a row that was asked for is judged by who asked
            if event.absent is not None and event.op != "r" and since is not None and event.source.ts_ms > since:
                raise SchemaChanged(_said(self._tables[number], event.absent))

    def save(self) -> None:
        """Inside a checkpoint."""
        for number in self._fresh:
            self.mirror.set(f"whole/{self._tables[number].name}", self._since[number])
        self._fresh.clear()


def _said(table: Table, column: str) -> str:
    return (
        f"{table.name}: the source's events have no column {column!r} any more; it was dropped or renamed. Documents stay as"
        " they are. Change the projection, raise its version and run `cdc plan`; or, where the column is back, pass the"
        ' events without it by the setting worker.missing_columns = "unknown", which reads those rows again.'
    )
