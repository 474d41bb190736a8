"""How far a build is that is under way: from the job, the two mirrors, and what its worker says of itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from pipeline.authoring import builds
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.builds import Build, Job
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.sql import connect, quoted, value
from pipeline.operations.status import Building, StatusReport, mirror_file, mirror_files, said_of, status
from pipeline.settings import Settings

STEPS = {
    "prepare": "preparing", "copy": "copying the mirror", "read": "reading the source", "load": "writing",
    "verify": "comparing", "ready": "ready to be cut over", "switch": "cutting over",
}  # fmt: skip
SURE_AFTER = 3.0
"""Seconds of a step before its pace says anything."""


def with_builds(
    settings: Settings, projections: Sequence[Projection[Any]], *, fail_behind: float = 30.0
) -> StatusReport:
    """How far these projections are, and the builds of them that are under way; needs no service."""
    report = status(settings, projections, fail_behind=fail_behind)
    report.building = [far for p in projections if (far := building(settings, p)) is not None]
    return report


def building(settings: Settings, code: Projection[Any]) -> Building | None:
    """The build of this projection that is under way; needs no service."""
    known = builds.read(settings, code.name)
    if (job := known.job) is None:
        return None
    new = job.target.of(code)
    live = builds.as_begun(settings, known.live or Build(version=code.version), code)
    found = Building(
        projection=code.name, id=new.id, origin=job.origin, why=job.why, phase=job.phase, step=STEPS[job.phase],
        seconds=round(time.time() - job.started, 1),
    )  # fmt: skip
    if job.phase == "read" or (job.phase == "load" and _catching_up(settings, new)):
        _rows(settings, live, new, job, found)
    elif job.phase == "load":
        _documents(settings, new, found)
    return found


def _catching_up(settings: Settings, new: Projection[Any]) -> bool:
    return any(
        said.get("catching_up", not mirror_file(settings, part).exists()) for part, said in _said(settings, new).items()
    )


def _rows(settings: Settings, live: Projection[Any], new: Projection[Any], job: Job, found: Building) -> None:
    """Rows that came into the new mirror, of those that the live one has."""
    tables = sorted(shape_of(new.shape).columns())
    found.unit = "rows"
    if job.phase == "load":
        found.step = "reading the log"
    found.done, found.total = _count(settings, new, tables), _count(settings, live, tables)
    found.total = max(found.total, found.done) if found.total else 0
    _estimate(found, found.done, time.time() - job.since)


def _documents(settings: Settings, new: Projection[Any], found: Building) -> None:
    """Documents written, by the pace of the worker's process."""
    found.unit = "documents"
    found.total, left = documents_in(settings, new)
    found.done = max(0, found.total - left)
    each = [said for said in _said(settings, new).values() if said]
    written = sum(int(sink["applied"]) for said in each for sink in said.get("sinks", {}).values())
    ages = (said.get("at", 0.0) - (said.get("reading_since") or said.get("at", 0.0)) for said in each)
    _estimate(found, written, max(ages, default=0.0))


def _estimate(found: Building, done: int, seconds: float) -> None:
    if found.total and done and seconds > SURE_AFTER:
        found.rate = round(done / seconds, 1)
        found.seconds_left = round((found.total - found.done) / (done / seconds), 1)


def _said(settings: Settings, new: Projection[Any]) -> dict[str, dict[str, Any]]:
    """What its worker last said, or those of its partitions, by name."""
    return {part: said_of(settings, part) for part in new.parts}


def _count(settings: Settings, projection: Projection[Any], tables: list[str]) -> int:
    return sum(_rows_in(path, tables) for path in mirror_files(settings, projection).values())


def _rows_in(path: Path, tables: list[str]) -> int:
    db = connect(str(path), readonly=True)
    try:
        return sum(int(value(db, f"SELECT count(*) FROM {quoted(table)}") or 0) for table in tables)
    except apsw.SQLError:
        return 0  # its worker is just making it, or the old one has other tables
    finally:
        db.close()


def documents_in(settings: Settings, projection: Projection[Any]) -> tuple[int, int]:
    """Documents that its mirrors have, and those that are still to be written."""
    each = [_documents_in(path, projection) for path in mirror_files(settings, projection).values()]
    return sum(found for found, _ in each), sum(left for _, left in each)


def _documents_in(path: Path, projection: Projection[Any]) -> tuple[int, int]:
    db = connect(str(path), readonly=True)
    try:
        if value(db, "SELECT 1 FROM sqlite_schema WHERE name = 'meta'") is None:
            return 0, 0  # its worker is just making it
        shape = shape_of(projection.shape)
        table = "grouped" if isinstance(shape, AggregateShape) else quoted(shape.table)
        found = int(value(db, f"SELECT count(*) FROM {table}") or 0)
        return found, int(value(db, "SELECT count(*) FROM dirty") or 0)
    finally:
        db.close()
