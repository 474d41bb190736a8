"""Apply: create what the projections need in their sinks, and let readers see a first version."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.authoring.fingerprint import fingerprint
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.errors import OperationError, PlanOutdated, SinkError, TargetMissing
from pipeline.operations.differences import columns_of, differences, fields_of, rebuilt_from
from pipeline.ports import Sink

Opener = Callable[[Target, Projection[Any]], Sink]
Action = Literal["create", "beside", "adopt", "unchanged", "refuse", "left"]
DOCUMENTS_PER_SECOND: Final = 4000
"""What a plan reckons with; `cdc bench` measures it."""


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Report):
    """What is done, or would be, for one target of one projection."""

    projection: str
    version: int
    target: str
    """`elasticsearch:orders`, the name readers use."""
    action: Action
    """`create` a first version, build `beside` the live one, `adopt` what is there, leave `unchanged`, `refuse`;
    `left` is what was applied once and no file declares any more."""
    reason: str
    fingerprint: str = ""
    changes: tuple[str, ...] = ()
    """The fields that differ from the version before, `+ total decimal`."""
    documents: int | None = None
    """In the version before; None where nobody could be asked."""
    seconds: float | None = None
    """What building that many takes, roughly."""


class ApplyReport(_Report):
    """What `apply` did, or would do."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    done: bool = False

    @property
    def refused(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.action == "refuse")

    @property
    def changes(self) -> bool:
        return any(step.action in ("create", "beside", "adopt") for step in self.steps)


@dataclass(frozen=True, slots=True)
class CapturedBy:
    """A connector as defined, and whether Connect runs it; None where nobody could be asked."""

    name: str
    tables: frozenset[str]
    runs: bool | None


class Applied:
    """What was applied from this state directory: `applied.json`, one entry a projection version."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "applied.json"

    def read(self) -> dict[str, _Entry]:
        try:
            return _Entries.model_validate_json(self.path.read_bytes()).projections
        except FileNotFoundError:
            return {}
        except ValidationError:
            raise OperationError(
                f"{self.path} is damaged; delete it and run `cdc apply` again: what is there will be adopted."
            ) from None

    def write(self, entries: Mapping[str, _Entry]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        data = {"projections": {name: entries[name].model_dump() for name in sorted(entries)}}
        fresh.write_text(json.dumps(data, indent=2) + "\n")
        fresh.replace(self.path)


class _Entry(_Report):
    fingerprint: str
    targets: tuple[str, ...]
    fields: dict[str, str] = {}
    columns: dict[str, tuple[str, ...]] = {}


class _Entries(_Report):
    projections: dict[str, _Entry] = {}


def compare_plans(given: ApplyReport, now: ApplyReport) -> None:
    """Refuse a plan that was made for something else than what would be done now; raises PlanOutdated."""

    def said(report: ApplyReport) -> set[tuple[str, int, str, str, str]]:
        return {(s.projection, s.version, s.target, s.action, s.fingerprint) for s in report.steps}

    other = sorted({f"{s[0]} ({s[3]})" for s in said(given) ^ said(now)})
    if other:
        raise PlanOutdated(
            f"The plan is for something else than what would be done now: {', '.join(other)} differ. Make it again: `cdc plan --out`."
        )


async def plan(
    projections: Sequence[Projection[Any]],
    open_sink: Opener,
    applied: Applied,
    connectors: Sequence[CapturedBy] = (),
) -> ApplyReport:
    """Say what `apply` would do; changes nothing."""
    entries = applied.read()
    steps = [await _step(p, target, open_sink, entries) for p in projections for target in p.to]
    steps += _left(projections, entries)
    return ApplyReport(steps=tuple(steps), notes=tuple(_notes(projections, connectors)))


async def apply(
    planned: ApplyReport, projections: Sequence[Projection[Any]], open_sink: Opener, applied: Applied
) -> ApplyReport:
    """Do what was planned; raises OperationError where a step was refused, before anything is changed."""
    if planned.refused:
        raise OperationError("; ".join(step.reason for step in planned.refused))
    entries = applied.read()
    actions = {(s.projection, s.version, s.target): s.action for s in planned.steps}
    for projection in projections:
        for target in projection.to:
            action = actions.get((projection.name, projection.version, _named(target)), "unchanged")
            if action != "unchanged":
                await _prepare(projection, target, open_sink, first=action == "create")
            before = entries.get(projection.id)
            known = before.targets if before is not None else ()
            shape = shape_of(projection.shape)
            entries[projection.id] = _Entry(
                fingerprint=fingerprint(shape),
                targets=tuple(sorted({*known, _named(target)})),
                fields=fields_of(shape),
                columns=columns_of(shape),
            )
            applied.write(entries)
    return planned.model_copy(update={"done": True})


async def _prepare(projection: Projection[Any], target: Target, open_sink: Opener, *, first: bool) -> None:
    sink = open_sink(target, projection)
    try:
        await sink.prepare()
        if first:
            await sink.switch()
    finally:
        await sink.close()


def _left(projections: Sequence[Projection[Any]], entries: Mapping[str, _Entry]) -> list[Step]:
    """What was applied and belongs to no projection any more."""
    names = {p.name for p in projections}
    found = []
    for id, entry in entries.items():
        name, _, version = id.rpartition("-v")
        if name not in names:
            reason = "no file declares it any more; what readers see of it stays as it is, and nobody keeps it current"
            found += [
                Step(projection=name, version=int(version), target=target, action="left", reason=reason)
                for target in entry.targets
            ]
    return found


async def _step(projection: Projection[Any], target: Target, open_sink: Opener, entries: Mapping[str, _Entry]) -> Step:
    digest = fingerprint(shape_of(projection.shape))
    step = Step(
        projection=projection.name, version=projection.version, target=_named(target),
        action="create", reason="new; readers see it at once", fingerprint=digest,
    )  # fmt: skip
    known = entries.get(projection.id)
    if known is not None and known.fingerprint != digest:
        return _refused(step, projection, known)
    if known is not None and _named(target) in known.targets:
        if await _lost(projection, target, open_sink):
            reason = f"it was applied, and is gone from the sink: cdc rebuild {projection.name} builds it anew"
            return step.model_copy(update={"action": "refuse", "reason": reason})
        return step.model_copy(update={"action": "unchanged", "reason": "applied already"})
    if await _claimed(projection, target, open_sink):
        reason = "it exists in the sink, applied from elsewhere; readers go on seeing what they see"
        return step.model_copy(update={"action": "adopt", "reason": reason})
    older = await _older(projection, target, open_sink, entries)
    return (
        step if older is None else await _beside(step, replace(projection, version=older), target, open_sink, entries)
    )


def _refused(step: Step, projection: Projection[Any], known: _Entry) -> Step:
    wanted = projection.version + 1
    changes = differences(known.fields, fields_of(shape_of(projection.shape))) if known.fields else ()
    reason = (
        f"{projection.name} was changed, and version {projection.version} of it is applied already: raise its "
        f"version to {wanted} (projection(…, version={wanted}))"
    )
    return step.model_copy(update={"action": "refuse", "reason": reason, "changes": changes})


async def _beside(
    step: Step, older: Projection[Any], target: Target, open_sink: Opener, entries: Mapping[str, _Entry]
) -> Step:
    """The next version of what readers see: what differs, and what building it takes."""
    known, shape = entries.get(older.id), shape_of(older.shape)
    reason = f"built beside version {older.version}, which readers go on seeing until the cut-over"
    changes: tuple[str, ...] = ()
    if known is not None and known.fields:
        changes = differences(known.fields, fields_of(shape))
        reason += f"; its {rebuilt_from(known.columns, columns_of(shape))} has all that it needs"
    documents = await _documents(older, target, open_sink)
    seconds = None if documents is None else round(documents / DOCUMENTS_PER_SECOND, 1)
    return step.model_copy(
        update={"action": "beside", "reason": reason, "changes": changes, "documents": documents, "seconds": seconds}
    )


async def _lost(projection: Projection[Any], target: Target, open_sink: Opener) -> bool:
    async with AsyncExitStack() as stack:
        sink = open_sink(target, projection)
        stack.push_async_callback(sink.close)
        try:
            await sink.count()
        except TargetMissing:
            return True
        except SinkError:
            return False
        return False


async def _documents(older: Projection[Any], target: Target, open_sink: Opener) -> int | None:
    async with AsyncExitStack() as stack:
        sink = open_sink(target, older)
        stack.push_async_callback(sink.close)
        try:
            return await sink.count()
        except SinkError:
            return None


async def _older(
    projection: Projection[Any], target: Target, open_sink: Opener, entries: Mapping[str, _Entry]
) -> int | None:
    """The newest earlier version that is there."""
    for version in range(projection.version - 1, 0, -1):
        earlier = replace(projection, version=version)
        known = entries.get(earlier.id)
        if known is not None and _named(target) in known.targets:
            return version
        if await _claimed(earlier, target, open_sink):
            return version
    return None


async def _claimed(projection: Projection[Any], target: Target, open_sink: Opener) -> bool:
    """Whether a worker has ever owned this version: its checkpoint record is in the sink."""
    async with AsyncExitStack() as stack:
        sink = open_sink(target, projection)
        stack.push_async_callback(sink.close)
        return await sink.record() is not None


def _named(target: Target) -> str:
    return f"{target.kind}:{target.name}"


def _notes(projections: Sequence[Projection[Any]], connectors: Sequence[CapturedBy]) -> list[str]:
    """What `cdc connector apply` has still to do, for a projection without changes shows nothing."""
    notes: dict[str, None] = {}
    for projection in projections:
        tables = set(shape_of(projection.shape).columns())
        used = sorted(connectors, key=lambda c: -len(tables & c.tables))
        used = [c for c in used if tables & c.tables] if projection.across_sources else used[:1]
        if missing := sorted(tables.difference(*(c.tables for c in used))):
            into = f"connectors/debezium/{used[0].name}.toml" if used else "a definition in connectors/debezium"
            notes[f"{projection.name}: no connector captures {', '.join(missing)}: add to `tables` of {into}."] = None
            continue
        for one in used:
            if one.runs is False:
                notes[f"Connector {one.name} is not applied: run `cdc connector apply {one.name}`."] = None
            elif one.runs is None:
                notes[f"Connector {one.name} could not be asked for: see `cdc connector list`."] = None
    return list(notes)
