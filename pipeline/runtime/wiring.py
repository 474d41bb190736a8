"""Puts a projection's parts together: its mirror, its topics, its sinks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from connectors.sinks import open_sink
from connectors.sources.debezium import ConnectorDefinition, capturing, load_definitions
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.authoring.withheld import taken
from pipeline.engine.engine import Inputs
from pipeline.engine.layout import Layout
from pipeline.errors import DefinitionError
from pipeline.operations.layouts import layout_of
from pipeline.ports import Sink
from pipeline.settings import Settings


@dataclass(slots=True)
class Wired:
    """One projection, ready to run."""

    projection: Projection[Any]
    shape: Shape
    layout: Layout
    definition: ConnectorDefinition
    inputs: Inputs
    sinks: list[Sink] = field(default_factory=list)


def wire(settings: Settings, projection: Projection[Any]) -> Wired:
    """Find the connector that captures all its tables; raises DefinitionError where none does, or a target may not have a column."""
    shape = shape_of(projection.shape)
    for target in projection.to:
        for found in taken(shape, settings.withheld(target.kind)):
            raise DefinitionError(f"{projection.id}: {found.column} is withheld from {target.kind}: see `cdc check`.")
    layout = layout_of(settings, projection)
    definition = definition_of(settings, projection)
    topics = {definition.topic(table): table for table in layout.tables}
    inputs = Inputs(topics, definition.transaction_topic, definition.name)
    return Wired(projection, shape, layout, definition, inputs)


def open_sinks(settings: Settings, wired: Wired) -> None:
    wired.sinks = [open_sink(target, wired.projection, wired.shape, settings) for target in wired.projection.to]


def pace(settings: Settings, sink: Sink) -> dict[str, Any]:
    """How a sink is written: `rows` a write, `in_flight` at once; `whole`: each write all that is dirty."""
    worker = settings.worker
    if sink.atomic and worker.consistency == "transaction":
        return {"rows": settings.postgres.cut_rows, "in_flight": 1, "whole": True}
    # a sink's name begins with its kind
    own = getattr(settings, sink.name.partition(":")[0], settings.elasticsearch)
    return {"rows": worker.flush_rows, "in_flight": own.in_flight, "whole": False}


def definition_of(settings: Settings, projection: Projection[Any]) -> ConnectorDefinition:
    """The connector that captures all tables of a projection; raises DefinitionError where none does."""
    wanted, definitions = set(shape_of(projection.shape).columns()), load_definitions(settings.connectors)
    if (found := capturing(definitions, wanted)) is not None:
        return found
    best = max(definitions.values(), key=lambda d: len(wanted & set(d.tables)), default=None)
    missing = sorted(wanted - set(best.tables)) if best else sorted(wanted)
    raise DefinitionError(
        f"{projection.name}: no connector in {settings.connectors} captures {', '.join(missing)}; "
        f"add {'it' if len(missing) == 1 else 'them'} to `tables` of {best.name + '.toml' if best else 'a definition'}"
        " and run `cdc connector apply`."
    )
