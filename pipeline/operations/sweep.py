"""Rows that a new snapshot of the source left out, where they were too many to go unseen."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.sql import connect, quoted, rows, transaction, value
from pipeline.engine.sweep import held
from pipeline.operations.status import mirror_files
from pipeline.settings import Settings


class SweepReport(BaseModel):
    """What waits for a word. `rows`: each table's rows that would go, and all it has; empty where nothing waits."""

    projection: str
    rows: dict[str, tuple[int, int]]
    allowed: bool = False
    """Said to go; the worker takes them away within a second, or when it starts."""


def look(settings: Settings, projection: Projection[Any]) -> SweepReport:
    """Count anew what a sweep would take away, of all partitions whose mirrors are here; changes nothing."""
    waiting: dict[str, tuple[int, int]] = {}
    said: list[bool] = []
    for path in mirror_files(settings, projection).values():
        with closing(connect(str(path), readonly=True)) as db:
            found = held(value(db, "SELECT value FROM meta WHERE name = 'held'"))
            if found is None:
                continue
            ordinal = _ordinal(db, found[0])
            for table in found[1]:
                count = f"SELECT count(*) FILTER (WHERE _generation < ?), count(*) FROM {quoted(table)}"
                ((old, every),) = rows(db, count, (ordinal,))
                others = waiting.get(table, (0, 0))
                waiting[table] = others[0] + old, others[1] + every
            said.append(value(db, "SELECT value FROM meta WHERE name = 'sweep'") == found[0])
    return SweepReport(projection=projection.name, rows=waiting, allowed=bool(said) and all(said))


def allow(settings: Settings, projection: Projection[Any]) -> SweepReport:
    """Let go what is held now."""
    report = look(settings, projection)
    if report.rows and not report.allowed:
        for path in mirror_files(settings, projection).values():
            with closing(connect(str(path))) as db, transaction(db):
                found = held(value(db, "SELECT value FROM meta WHERE name = 'held'"))
                if found is not None:
                    db.execute("INSERT OR REPLACE INTO meta VALUES('sweep', ?)", (found[0],))
                    report.allowed = True
    return report


def _ordinal(db: Any, number: int) -> int:
    labels = f"s{number}/%"
    return int(value(db, "SELECT ordinal FROM source_log WHERE identity LIKE ?", (labels,)) or 0)
