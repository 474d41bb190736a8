"""How far each projection is: read from its mirror and from what its worker last said of itself."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
from pydantic import BaseModel

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.sourcelog import bare, log_of
from pipeline.engine.sql import connect, quoted, rows, value
from pipeline.engine.sweep import held
from pipeline.engine.withholding import count as withheld
from pipeline.events.sourcelog import parsed
from pipeline.settings import Settings

TRIED_OFTEN = 4
"""Attempts to read a row again after which somebody should know."""
SILENT_AFTER = 5.0
"""Seconds after which a worker that says nothing is taken for gone."""
RUNNING = ("running", "catching up")
"""States of a projection that follows its source."""


class SinkStatus(BaseModel):
    """One sink of a projection. `behind` is in seconds of source time; None before the first watermark."""

    name: str
    dirty: int
    pending: int
    quarantined: int
    watermark: dict[str, dict[str, Any]]
    behind: float | None
    error: str | None
    written: dict[str, int]
    withheld: int = 0
    """Documents of rows that must not go there."""


class SourceLogStatus(BaseModel):
    """A log of the source: its label in watermarks, the source's system id and timeline, when it was first seen."""

    connector: str
    log: str
    identity: str
    seen_at: datetime


class ProjectionStatus(BaseModel):
    """One projection version."""

    name: str
    version: int
    state: str
    """`new`, `running`, `catching up`, `standby`, `stopped`, `gone`, `failed`; of a partition `moved`: another worker takes it."""
    documents: int
    behind: float | None
    dirty: int
    fanouts: int
    staged: int
    pending: int
    """Documents that wait for a row or a value that is not known yet."""
    refreshing: int
    """Rows that are to be read again from the source."""
    quarantined: int
    dead_letters: int
    released_incomplete: int
    changes: int = 0
    """Taken in since its worker started, in `transactions` of the source."""
    transactions: int = 0
    pid: int | None
    error: str | None
    given_up: bool = False
    """Its worker ended, and starting it again would not help; `error` says why."""
    saved_at: float | None = None
    """When its newest state snapshot was still the mirror's state, in seconds since 1970; None: there is none, or no place."""
    saving_error: str | None = None
    sinks: list[SinkStatus]
    source_logs: list[SourceLogStatus] = []
    """Which logs of the source were read, oldest first."""
    held: dict[str, tuple[int, int]] = {}
    """Rows of each table that a new snapshot left out, and all it has: kept until `cdc sweep`."""
    attention: list[str]
    """What needs somebody; empty where all is well."""
    partitions: list[ProjectionStatus] = []
    """Of a projection with several workers, each by itself: those that this machine has, or had."""

    @property
    def worked_on(self) -> bool:
        """Whether any worker of it runs here, be it for some of its partitions."""
        return any(part.state in RUNNING for part in self.partitions or [self])


class Building(BaseModel):
    """A build under way. `total` 0: not known. `rate` a second; `seconds_left` of this step, None where not known."""

    projection: str
    id: str
    origin: str
    why: str
    phase: str
    step: str
    unit: str = ""
    """What `done` and `total` count: `rows`, `documents`, or nothing that is counted."""
    done: int = 0
    total: int = 0
    rate: float = 0.0
    seconds: float
    """Since it began."""
    seconds_left: float | None = None


class StatusReport(BaseModel):
    """All projections, and the builds of them that are under way."""

    projections: list[ProjectionStatus]
    building: list[Building] = []
    attention: list[str] = []
    """What needs somebody at the replication slots that they live on; empty where the source was not asked."""

    @property
    def healthy(self) -> bool:
        return not self.attention and not any(p.attention for p in self.projections)


def status(settings: Settings, projections: Iterable[Projection[Any]], *, fail_behind: float = 30.0) -> StatusReport:
    """Needs neither Kafka nor a sink. `fail_behind`: seconds behind from which on a projection needs attention."""
    return StatusReport(projections=[_projection(settings, p, fail_behind) for p in projections])


def mirror_file(settings: Settings, projection_id: str) -> Path:
    """The mirror of a projection version (`orders-v3`)."""
    return settings.state_dir.resolve() / "mirrors" / f"{projection_id}.db"


def mirror_files(settings: Settings, projection: Projection[Any]) -> dict[int, Path]:
    """Its mirror, or by their numbers those of its partitions that are on this machine."""
    files = (mirror_file(settings, part) for part in projection.parts)
    return {number: path for number, path in enumerate(files) if path.exists()}


def worker_file(settings: Settings, projection_id: str) -> Path:
    """What its worker last said of itself."""
    return settings.state_dir.resolve() / "workers" / f"{projection_id}.json"


def verified_file(settings: Settings, projection_id: str) -> Path:
    """What `verify` last found."""
    return settings.state_dir.resolve() / "verified" / f"{projection_id}.json"


def write_verified(settings: Settings, projection_id: str, report: BaseModel) -> None:
    path = verified_file(settings, projection_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    fresh.write_text(report.model_dump_json())
    fresh.replace(path)


def _projection(settings: Settings, projection: Projection[Any], fail_behind: float) -> ProjectionStatus:
    parts = [_part(settings, projection, part, fail_behind) for part in projection.parts]
    if projection.workers == 1:
        return parts[0]
    for number, part in enumerate(parts):
        part.attention = [f"partition {number}: {said}" for said in part.attention]
    return _together([part for part in parts if part.state not in ("new", "moved")] or parts[:1], parts)


_WORST = ("failed", "gone", "stopped", "moved", "new", "standby", "catching up", "running")


def _together(here: list[ProjectionStatus], parts: list[ProjectionStatus]) -> ProjectionStatus:
    """What the partitions that are here come to: sums, the worst state, the watermark of the one that is furthest behind."""
    found = min(here, key=lambda part: _WORST.index(part.state)).model_copy()
    for name in ("documents", "dirty", "fanouts", "staged", "pending", "refreshing", "quarantined", "dead_letters",
                 "released_incomplete", "changes"):  # fmt: skip
        setattr(found, name, sum(getattr(part, name) for part in here))
    found.behind = max((part.behind for part in here if part.behind is not None), default=None)
    found.transactions = max(part.transactions for part in here)
    found.sinks = [_sinks_together([*same]) for same in zip(*(part.sinks for part in here if part.sinks), strict=True)]
    found.attention = list(dict.fromkeys(said for part in here for said in part.attention))
    found.partitions = parts
    return found


def _sinks_together(same: list[SinkStatus]) -> SinkStatus:
    found = max(same, key=lambda sink: sink.behind if sink.behind is not None else math.inf).model_copy()
    for name in ("dirty", "pending", "quarantined", "withheld"):
        setattr(found, name, sum(getattr(sink, name) for sink in same))
    found.error = next((sink.error for sink in same if sink.error), None)
    found.written = {kind: sum(sink.written[kind] for sink in same) for kind in found.written}
    return found


def _part(settings: Settings, projection: Projection[Any], part: str, fail_behind: float) -> ProjectionStatus:
    said = said_of(settings, part)
    path = mirror_file(settings, part)
    if not path.exists():
        return _new(projection, said)
    db = connect(str(path), readonly=True)
    try:
        if value(db, "SELECT 1 FROM sqlite_schema WHERE name = 'meta'") is None:
            return _new(projection, said)  # its worker is just making it
        return _from_mirror(settings, db, projection, said, fail_behind)
    finally:
        db.close()


def said_of(settings: Settings, part: str) -> dict[str, Any]:
    """What a worker last said of a projection, or of one of its partitions; nothing where none ever did."""
    try:
        return dict(json.loads(worker_file(settings, part).read_text()))
    except (FileNotFoundError, ValueError):
        return {}


def _state(said: dict[str, Any]) -> str:
    if not said:
        return "new"
    state = "standby" if said.get("standby") else str(said["state"])
    if state in ("stopped", "failed", "moved"):
        return state
    alive = time.time() - said["at"] < SILENT_AFTER and Path(f"/proc/{said['pid']}").exists()
    if not Path("/proc").exists():  # no Linux: what it last said has to do
        alive = time.time() - said["at"] < SILENT_AFTER and said["pid"] != os.getpid()
    return state if alive else "gone"


def _new(projection: Projection[Any], said: dict[str, Any]) -> ProjectionStatus:
    state = _state(said)
    found = ProjectionStatus(
        name=projection.name, version=projection.version, state=state, documents=0, behind=None, dirty=0, fanouts=0,
        staged=0, pending=0, refreshing=0, quarantined=0, dead_letters=0, released_incomplete=0, pid=said.get("pid"), error=said.get("error"),
        given_up=_given_up(state, said), sinks=[], attention=[],
    )  # fmt: skip
    if found.given_up:
        found.attention = _attention(found, 0.0)
    elif state != "running":
        found.attention = [f"{projection.name} is not running: cdc run"]
    return found


def _given_up(state: str, said: dict[str, Any]) -> bool:
    return state == "failed" and bool(said.get("given_up"))


def _from_mirror(
    settings: Settings, db: apsw.Connection, projection: Projection[Any], said: dict[str, Any], fail_behind: float
) -> ProjectionStatus:
    counters = dict(rows(db, "SELECT name, n FROM counters"))
    fanouts = int(value(db, "SELECT count(*) FROM fanout") or 0)
    sinks = [_sink(db, number, name, said) for number, name in rows(db, "SELECT id, name FROM sinks ORDER BY id")]
    state = _state(said)
    found = ProjectionStatus(
        name=projection.name,
        version=projection.version,
        state=state,
        documents=int(value(db, f"SELECT count(*) FROM {_documents(projection)}") or 0),
        behind=max((s.behind for s in sinks if s.behind is not None), default=None),
        dirty=sum(s.dirty for s in sinks),
        fanouts=fanouts,
        staged=int(said.get("staged") or 0),
        pending=sum(s.pending for s in sinks),
        refreshing=_refreshing(db)[0],
        quarantined=sum(s.quarantined for s in sinks),
        dead_letters=int(value(db, "SELECT count(*) FROM dead_letters") or 0),
        released_incomplete=int(counters.get("incomplete", 0)),
        changes=int(said.get("applied") or 0),
        transactions=int(said.get("transactions") or 0),
        pid=said.get("pid") if state not in ("stopped", "gone", "failed", "moved") else None,
        error=said.get("error") or said.get("standby") or None,
        given_up=_given_up(state, said),
        saved_at=said.get("saved_at"),
        saving_error=said.get("saving_error"),
        sinks=sinks,
        attention=[],
    )
    found.source_logs = source_logs(db)
    waits = held(value(db, "SELECT value FROM meta WHERE name = 'held'"))
    found.held = waits[1] if waits is not None else {}
    found.attention = _attention(found, fail_behind) + _verified(settings, projection)
    orphans = value(db, "SELECT sum(value) FROM meta WHERE name LIKE 'orphans held/%'")
    if orphans:
        found.attention.append(
            f"{found.name}: {orphans:,} documents are of nothing that the mirror knows, and are too many to go by"
            f" themselves: cdc rebuild {found.name}"
        )
    waiting, tried, error = _refreshing(db)
    if tried >= TRIED_OFTEN:
        found.attention.append(f"{found.name}: {waiting} rows wait to be read again from the source: {error}")
    return found


def source_logs(db: apsw.Connection) -> list[SourceLogStatus]:
    """The logs that a mirror knows, oldest first."""
    return [
        SourceLogStatus(
            connector=connector, log=label, identity=parsed(label).identity, seen_at=datetime.fromtimestamp(at, UTC)
        )
        for connector, label, at in rows(db, "SELECT connector, identity, seen_at FROM source_log ORDER BY ordinal")
    ]


def _documents(projection: Projection[Any]) -> str:
    """The mirror's table that has a row for each document."""
    shape = shape_of(projection.shape)
    return "grouped" if isinstance(shape, AggregateShape) else quoted(shape.table)


def _refreshing(db: apsw.Connection) -> tuple[int, int, str]:
    """Rows to be read again; how often one of them was tried, and what was said then."""
    found = rows(db, "SELECT count(*), max(attempts), error FROM refresh WHERE outcome IS NULL")[0]
    return int(found[0]), int(found[1] or 0), str(found[2] or "no answer yet")


def _verified(settings: Settings, projection: Projection[Any]) -> list[str]:
    """What the last `verify` found wrong."""
    try:
        report = json.loads(verified_file(settings, projection.id).read_text())
    except (FileNotFoundError, ValueError):
        return []
    wrong = sum(sink[kind] for sink in report["sinks"] for kind in ("missing", "extra", "different"))
    return (
        [f"{projection.name}: at {report['at'][:19]} {wrong} documents of {report['share']:.0%} were not what the source"
         f" says: cdc verify {projection.name} --all --repair"] if wrong else []
    )  # fmt: skip


def _sink(db: apsw.Connection, number: int, name: str, said: dict[str, Any]) -> SinkStatus:
    oldest = [value(db, "SELECT min(since) FROM dirty WHERE sink = ? AND low = ?", (number, low)) for low in (0, 1)]
    oldest.append(value(db, "SELECT min(seq) FROM fanout"))
    oldest.append(value(db, "SELECT value FROM meta WHERE name = 'owed'"))
    if value(db, "SELECT 1 FROM sqlite_schema WHERE name = 'touched'"):
        oldest.append(value(db, "SELECT min(since) FROM touched"))
    bound = min((n for n in oldest if n is not None), default=1 << 62)
    marks = rows(
        db, "SELECT connector, max(seq), lsn, txid, ts_ms FROM marks WHERE seq < ? GROUP BY connector", (bound,)
    )
    kinds = dict(rows(db, "SELECT kind = 'pending', count(*) FROM quarantine WHERE sink = ? GROUP BY 1", (number,)))
    own = said.get("sinks", {}).get(name, {})
    newest = min((ts for *_, ts in marks), default=None)
    return SinkStatus(
        name=name,
        dirty=int(value(db, "SELECT count(*) FROM dirty WHERE sink = ?", (number,)) or 0),
        pending=int(kinds.get(1, 0)),
        quarantined=int(kinds.get(0, 0)),
        watermark={
            c: {"lsn": lsn, "txid": bare(txid), "ts_ms": ts, "log": _label(db, log_of(txid))}
            for c, _, lsn, txid, ts in marks
        },
        behind=None if newest is None else max(0.0, round(time.time() - newest / 1000, 3)),
        error=own.get("error"),
        written={k: int(own.get(k, 0)) for k in ("applied", "stale", "rejected", "throttled", "split")},
        withheld=withheld(db, number),
    )


def _label(db: apsw.Connection, number: int) -> str:
    return next((log.log for log in source_logs(db) if parsed(log.log).number == number), "")


def _attention(found: ProjectionStatus, fail_behind: float) -> list[str]:
    name, wanted = found.name, []
    if found.given_up:
        wanted.append(f"{name} has given up, and starting it again would not help: {found.error}")
    elif found.state not in (*RUNNING, "moved"):
        told = f": {found.error}" if found.error else ""
        wanted.append(
            f"{name} is {found.state}{told}" + ("; start it with cdc run" if found.state != "standby" else "")
        )
    elif found.error:
        wanted.append(f"{name}: {found.error}")
    if found.state == "running" and found.behind is not None and found.behind > fail_behind:
        wanted.append(f"{name} is {found.behind:.0f} s behind")
    wanted += [f"{name}: {s.name}: {s.error}" for s in found.sinks if s.error and found.state == "running"]
    if found.saving_error and found.state in RUNNING:
        wanted.append(f"{name}: no state snapshot is taken: {found.saving_error}")
    if found.dead_letters:
        wanted.append(f"{name}: {found.dead_letters} changes could not be decoded: cdc deadletters list")
    for table, (old, every) in found.held.items():
        wanted.append(
            f"{name}: {old:,} of {every:,} rows of {table} are not in the source's new snapshot and are kept, and the"
            f" watermark stands until that is settled: cdc sweep {name} --dry-run"
        )
    if found.quarantined:
        wanted.append(f"{name}: {found.quarantined} documents are in quarantine: cdc quarantine list")
    return wanted
