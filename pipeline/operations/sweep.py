"""Rows that a new snapshot of the source left out, where they were too many to go unseen."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.sql import connect, quoted, rows, transaction, value
from pipeline.engine.sweep import held
from pipeline.operations.in_parts import one_worker
from pipeline.operations.status import mirror_file
from pipeline.settings import Settings


class SweepReport(BaseModel):
    """What waits for a word. `rows`: each table's rows that would go, and all it has; empty where nothing waits."""

    projection: str
    rows: dict[str, tuple[int, int]]
    allowed: bool = False
    """Said to go; the worker takes them away within a second, or when it starts."""


def look(settings: Settings, projection: Projection[Any]) -> SweepReport:
    """Count anew what a sweep would take away; changes nothing."""
    one_worker(projection, "a sweep")
    path = mirror_file(settings, projection.id)
    report = SweepReport(projection=projection.name, rows={})
    if not path.exists():
        return report
    db = connect(str(path), readonly=True)
    try:
        found = held(value(db, "SELECT value FROM meta WHERE name = 'held'"))
        if found is None:
            return report
        ordinal = _ordinal(db, found[0])
        for table in found[1]:
            count = f"SELECT count(*) FILTER (WHERE _generation < ?), count(*) FROM {quoted(table)}"
            old, every = rows(db, count, (ordinal,))[0]
            report.rows[table] = int(old), int(every)
        report.allowed = value(db, "SELECT value FROM meta WHERE name = 'sweep'") == found[0]
    finally:
        db.close()
    return report


def allow(settings: Settings, projection: Projection[Any]) -> SweepReport:
    """Let go what is held now."""
    report = look(settings, projection)
    if report.rows and not report.allowed:
        db = connect(str(mirror_file(settings, projection.id)))
        with transaction(db):
            found = held(value(db, "SELECT value FROM meta WHERE name = 'held'"))
            if found is not None:
                db.execute("INSERT OR REPLACE INTO meta VALUES('sweep', ?)", (found[0],))
                report.allowed = True
        db.close()
    return report


def _ordinal(db: Any, number: int) -> int:
    labels = f"s{number}/%"
    return int(value(db, "SELECT ordinal FROM source_log WHERE identity LIKE ?", (labels,)) or 0)
