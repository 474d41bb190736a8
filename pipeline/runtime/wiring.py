"""Puts a projection's parts together: its mirror, its topics, its sinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from connectors.sinks import open_sink
from connectors.sources.debezium import ConnectorDefinition, load_definitions
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.engine.engine import Inputs
from pipeline.engine.layout import Layout
from pipeline.errors import DefinitionError, LogTruncated, SourceUnavailable
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
    """Find the connector that captures all its tables; raises DefinitionError where none does."""
    shape = shape_of(projection.shape)
    layout = layout_of(settings, projection)
    definition = definition_of(settings, projection)
    topics = {definition.topic(table): table for table in layout.tables}
    inputs = Inputs(topics, definition.transaction_topic, definition.name)
    return Wired(projection, shape, layout, definition, inputs)


def open_sinks(settings: Settings, wired: Wired) -> None:
    wired.sinks = [open_sink(target, wired.projection, wired.shape, settings) for target in wired.projection.to]


def definition_of(settings: Settings, projection: Projection[Any]) -> ConnectorDefinition:
    """The connector that captures all tables of a projection; raises DefinitionError where none does."""
    wanted, definitions = set(shape_of(projection.shape).columns()), load_definitions(settings.connectors)
    for definition in definitions.values():
        if wanted <= set(definition.tables):
            return definition
    best = max(definitions.values(), key=lambda d: len(wanted & set(d.tables)), default=None)
    missing = sorted(wanted - set(best.tables)) if best else sorted(wanted)
    raise DefinitionError(
        f"{projection.name}: no connector in {settings.connectors} captures {', '.join(missing)}; "
        f"add {'it' if len(missing) == 1 else 'them'} to `tables` of {best.name + '.toml' if best else 'a definition'}"
        " and run `cdc connector apply`."
    )


async def ensure_topics(bootstrap: str, definition: ConnectorDefinition, topics: Mapping[str, int]) -> None:
    """Create the topics that are not there yet (a table that is empty has none), as the connector would."""
    retention = str(int(definition.retention_days * 86_400_000))
    settings = {"cleanup.policy": "delete", "retention.ms": retention}
    new = [
        NewTopic(
            name, partitions, 1, topic_configs={**settings, "max.message.bytes": str(definition.max_message_bytes)}
        )
        for name, partitions in topics.items()
    ]
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, client_id="cdc-worker")
    try:
        await admin.start()
        known = set(await admin.list_topics())
        missing = [topic for topic in new if topic.name not in known]
        if missing:
            await admin.create_topics(missing)
    except TopicAlreadyExistsError:
        pass
    except (KafkaError, OSError) as error:
        raise SourceUnavailable(f"Kafka at {bootstrap} can't be reached: {error}; is it up?") from None
    finally:
        await admin.close()


def check_log(projection: str, where: str, start: int, earliest: int, end: int) -> None:
    """Raise LogTruncated where Kafka no longer has what comes next in a partition, or never had what came before."""
    if start < earliest:
        raise LogTruncated(
            f"{projection}: the mirror goes on at {start} in {where}, but Kafka's log starts at {earliest}: "
            f"changes are missing. Rebuild from the source, or restore the mirror."
        )
    if start > end:
        raise LogTruncated(
            f"{projection}: the mirror stands at {start} in {where}, but Kafka's log ends at {end}: "
            f"the topic was made anew. Rebuild the projection."
        )


async def missing_log(bootstrap: str, topics: Iterable[str]) -> str:
    """Why these topics no longer hold everything since their start; nothing where they do."""
    topics = list(topics)
    try:
        async with AIOKafkaConsumer(bootstrap_servers=bootstrap, client_id="cdc-rebuild") as consumer:
            if missing := sorted(set(topics) - await consumer.topics()):
                return f"there is no topic {', '.join(missing)}"
        # only of the topics that it reads does a consumer know the partitions
        async with AIOKafkaConsumer(*topics, bootstrap_servers=bootstrap, client_id="cdc-rebuild") as consumer:
            starts = await consumer.beginning_offsets(list(consumer.assignment()))
    except (KafkaError, OSError) as error:
        raise SourceUnavailable(f"Kafka at {bootstrap} can't be reached: {error}; is it up?") from None
    cut = [f"{tp.topic}/{tp.partition} starts at {offset}" for tp, offset in starts.items() if offset > 0]
    return f"{min(cut)}: what came before is gone" if cut else ""
