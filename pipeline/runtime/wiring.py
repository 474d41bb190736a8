"""Puts a projection's parts together: its mirror, its topics, its sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.sinks import IN_PARTS, open_sink
from connectors.sources.debezium import ConnectorDefinition, capturing, load_definitions
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.authoring.withheld import taken
from pipeline.engine.engine import Inputs
from pipeline.engine.layout import Layout
from pipeline.errors import DefinitionError
from pipeline.operations.in_parts import in_parts
from pipeline.operations.layouts import layout_of
from pipeline.operations.status import mirror_file
from pipeline.ports import Sink
from pipeline.settings import Settings


@dataclass(slots=True)
class Wired:
    """One projection, ready to run."""

    projection: Projection[Any]
    shape: Shape
    layout: Layout
    definition: ConnectorDefinition
    """Of its root's table."""
    inputs: Inputs
    by_table: Mapping[str, ConnectorDefinition]
    """Of each table, which are several for a projection across sources."""
    sinks: list[Sink] = field(default_factory=list)


def wire(settings: Settings, projection: Projection[Any]) -> Wired:
    """Find the connector that captures all its tables; raises DefinitionError where none does, or a target may not have a column."""
    shape = shape_of(projection.shape)
    for target in projection.to:
        for found in taken(shape, settings.withheld(target.kind)):
            raise DefinitionError(f"{projection.id}: {found.column} is withheld from {target.kind}: see `cdc check`.")
    layout = layout_of(settings, projection)
    by_table = definitions_of(settings, projection)
    own = by_table[layout.root.name]
    topics = {by_table[table].topic(table): table for table in layout.tables}
    others = {of.topic(table): of.name for table, of in by_table.items() if of.name != own.name}
    others |= {of.transaction_topic: of.name for of in by_table.values() if of.name != own.name}
    heard = frozenset(of.transaction_topic for of in by_table.values()) if others else frozenset()
    inputs = Inputs(topics, None if others else own.transaction_topic, own.name, others, heard)
    return Wired(projection, shape, layout, own, inputs, by_table)


def check_workers(settings: Settings, wired: Wired) -> None:
    """Raises DefinitionError where this build was begun with another number of workers, or can't have several."""
    projection, mirror = wired.projection, mirror_file(settings, wired.projection.id)
    if projection.workers > 1:
        complaints = [*in_parts(projection, wired.layout, IN_PARTS)]
        if wired.definition.kind != "postgres":
            complaints.append("Its source has to be Postgres.")
        if settings.worker.consistency == "row":
            complaints.append('worker.consistency = "row" is for one worker.')
        if complaints:
            raise DefinitionError(f"{projection.id} can't have {projection.workers} workers: {' '.join(complaints)}")
    if mirror.exists() if projection.workers > 1 else any(mirror.parent.glob(f"{projection.id}@*.db")):
        raise DefinitionError(
            f"{projection.id} was begun with another number of workers, which is part of its version: raise `version`."
        )


def open_sinks(settings: Settings, wired: Wired, part: str | None = None) -> None:
    wired.sinks = [open_sink(target, wired.projection, wired.shape, settings, part) for target in wired.projection.to]


def pace(settings: Settings, sink: Sink) -> dict[str, Any]:
    """How a sink is written: `rows` a write, `in_flight` at once; `whole`: each write all that is dirty."""
    worker = settings.worker
    if sink.atomic and worker.consistency == "transaction":
        return {"rows": settings.postgres.cut_rows, "in_flight": 1, "whole": True}
    # a sink's name begins with its kind
    own = getattr(settings, sink.name.partition(":")[0], settings.elasticsearch)
    return {"rows": worker.flush_rows, "in_flight": own.in_flight, "whole": False}


def definition_of(settings: Settings, projection: Projection[Any]) -> ConnectorDefinition:
    """The connector that captures all tables of a projection; raises DefinitionError where none does, or several."""
    found = {of.name: of for of in definitions_of(settings, projection).values()}
    if len(found) > 1:
        raise DefinitionError(
            f"{projection.name} reads the tables of several connectors, {' and '.join(sorted(found))}, whose positions have"
            " no common order: it can't be waited for, verified or rebuilt. Raise its version for a new one."
        )
    return next(iter(found.values()))


def definitions_of(settings: Settings, projection: Projection[Any]) -> dict[str, ConnectorDefinition]:
    """The connector that captures each table of a projection: one, unless it may be several."""
    wanted, definitions = set(shape_of(projection.shape).columns()), load_definitions(settings.connectors)
    if (one := capturing(definitions, wanted)) is not None:
        return dict.fromkeys(wanted, one)
    if projection.across_sources:
        each = {table: capturing(definitions, {table}) for table in sorted(wanted)}
        found = {table: of for table, of in each.items() if of is not None}
        if len(found) == len(wanted):
            return found
    best = max(definitions.values(), key=lambda d: len(wanted & set(d.tables)), default=None)
    missing = sorted(wanted - set(best.tables)) if best else sorted(wanted)
    raise DefinitionError(
        f"{projection.name}: no connector in {settings.connectors} captures {', '.join(missing)}; "
        f"add {'it' if len(missing) == 1 else 'them'} to `tables` of {best.name + '.toml' if best else 'a definition'}"
        " and run `cdc connector apply`."
    )
