"""Puts a projection's parts together: its mirror, its topics, its sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.sinks import open_sink
from connectors.sources.debezium import ConnectorDefinition, capturing, load_definitions
from connectors.sources.registry import Registry
from connectors.sources.topics import ForeignTopics, foreign_tables, open_registry, refuse_foreign
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.authoring.withheld import taken
from pipeline.engine.engine import Inputs
from pipeline.engine.layout import Layout
from pipeline.engine.withholding import Rules, concerning, unkept
from pipeline.errors import DefinitionError, OperationError
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
    inputs: Inputs
    by_table: Mapping[str, ConnectorDefinition]
    """Of each table, which are several for a projection across sources; but for those of foreign topics."""
    rules: list[Rules]
    """Of each target, which rows must not go there."""
    foreign: Mapping[str, ForeignTopics] = field(default_factory=dict)
    """Of each table that others produce."""
    registries: Mapping[str, Registry] = field(default_factory=dict)
    """By the topics that need one."""
    sinks: list[Sink] = field(default_factory=list)

    @property
    def definition(self) -> ConnectorDefinition:
        """Of its root's table, which is not of a foreign topic."""
        return self.by_table[self.layout.root.name]

    @property
    def kafka(self) -> str:
        """The name of the cluster that its topics are in; that of `[kafka]` is empty, where foreign topics are."""
        return next((of.kafka for of in self.by_table.values()), "")

    def asked_of(self, table: str) -> ConnectorDefinition:
        """By which connector a table's rows are read again; raises OperationError where others produce them."""
        if (topics := self.foreign.get(table)) is not None:
            raise OperationError(
                f"{topics.topic(table)} is a topic of others ({topics.name}): its rows can't be asked for. What is missing"
                " comes with the row's next change."
            )
        return self.by_table[table]


def wire(settings: Settings, projection: Projection[Any]) -> Wired:
    """Find the connector that captures all its tables; raises DefinitionError where none does, or a target may not have a column,
    SettingsError where the salt of hashed fields is missing."""
    shape = shape_of(projection.shape)
    for target in projection.to:
        for found in taken(shape, settings.withheld(target.kind)):
            raise DefinitionError(f"{projection.id}: {found.column} is withheld from {target.kind}: see `cdc check`.")
    if "hash" in shape.masks:
        settings.salt(projection.id)
    layout = layout_of(settings, projection)
    by_table, foreign = producers_of(settings, projection)
    rules = [concerning(layout, settings.rows_withheld(target.kind, target.name)) for target in projection.to]
    for each in rules:
        for why, _ in unkept(layout, each):
            raise DefinitionError(f"{projection.id}: {why}.")
        if masked := [name for of in by_table.values() for name in of.mask if name in each]:
            raise DefinitionError(f"{projection.id}: rows are withheld by {masked[0]}, which its connector masks.")
    if foreign and any(of.kafka for of in by_table.values()):
        raise DefinitionError(f"{projection.id}: foreign topics are in [kafka], and a connector's in another cluster.")
    producers: dict[str, ConnectorDefinition | ForeignTopics] = {**by_table, **foreign}
    own = producers[layout.root.name]
    topics = {producers[table].topic(table): table for table in layout.tables}
    others = {of.topic(table): of.name for table, of in producers.items() if of.name != own.name}
    others |= {of.transaction_topic: of.name for of in by_table.values() if of.name != own.name}
    boundaries = None if isinstance(own, ForeignTopics) else own.transaction_topic
    opened = {of.name: open_registry(settings, of) for of in foreign.values()}
    read = {of.topic(table): of.foreign(table, opened[of.name]) for table, of in foreign.items()}
    asked = {of.topic(table): registry for table, of in foreign.items() if (registry := opened[of.name]) is not None}
    inputs = Inputs(topics, boundaries, own.name, others, foreign=read)
    return Wired(projection, shape, layout, inputs, by_table, rules, foreign, asked)


def check_workers(settings: Settings, wired: Wired) -> None:
    """Raises DefinitionError where this build was begun with another number of workers, or can't have several."""
    projection, mirror = wired.projection, mirror_file(settings, wired.projection.id)
    if projection.workers > 1:
        kinds = {"topics"} if wired.foreign else {of.kind for of in wired.by_table.values()}
        complaints = [*in_parts(projection, wired.layout, kinds)]
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


def connectors_of(settings: Settings, projection: Projection[Any]) -> dict[str, ConnectorDefinition]:
    """The connectors that capture its tables, by name: one, unless it may be several; its documents' own table's first."""
    by_table = definitions_of(settings, projection)
    own = by_table[shape_of(projection.shape).table]
    return {of.name: of for of in (own, *by_table.values())}


def producers_of(
    settings: Settings, projection: Projection[Any]
) -> tuple[dict[str, ConnectorDefinition], dict[str, ForeignTopics]]:
    """By table the connectors, and the producers of foreign topics: one of all of these, unless it may be several."""
    wanted, known = set(shape_of(projection.shape).columns()), foreign_tables(settings)
    foreign = {table: known[table] for table in sorted(wanted & known.keys())}
    own = _captured(settings, projection, wanted - foreign.keys()) if len(foreign) < len(wanted) else {}
    connectors, producers = ({of.name for of in found.values()} for found in (own, foreign))
    names = connectors | producers
    if connectors & producers:
        raise DefinitionError(f"{projection.name}: a connector and foreign topics have one name: see `cdc check`.")
    if foreign and len(names) > 1 and not projection.across_sources:
        raise DefinitionError(
            f"{projection.name} reads the tables of several producers, {' and '.join(sorted(names))}: that takes"
            " across_sources=True, for their rows are of no common moment."
        )
    return own, foreign


def definitions_of(settings: Settings, projection: Projection[Any]) -> dict[str, ConnectorDefinition]:
    """The connector that captures each table of a projection; raises DefinitionError where others produce one of them."""
    wanted = set(shape_of(projection.shape).columns())
    refuse_foreign(settings, wanted, projection.name)
    return _captured(settings, projection, wanted)


def _captured(settings: Settings, projection: Projection[Any], wanted: set[str]) -> dict[str, ConnectorDefinition]:
    definitions = load_definitions(settings.connectors)
    if (one := capturing(definitions, wanted)) is not None:
        return dict.fromkeys(wanted, one)
    if projection.across_sources:
        each = {table: capturing(definitions, {table}) for table in sorted(wanted)}
        found = {table: of for table, of in each.items() if of is not None}
        if len({of.kafka for of in found.values()}) > 1:
            raise DefinitionError(f"{projection.name} reads the topics of several Kafka clusters: see `cdc check`.")
        if len(found) == len(wanted):
            return found
    best = max(definitions.values(), key=lambda d: len(wanted & set(d.tables)), default=None)
    missing = sorted(wanted - set(best.tables)) if best else sorted(wanted)
    raise DefinitionError(
        f"{projection.name}: no connector in {settings.connectors} captures {', '.join(missing)}; "
        f"add {'it' if len(missing) == 1 else 'them'} to `tables` of {best.name + '.toml' if best else 'a definition'}"
        " and run `cdc connector apply`."
    )
