"""The topics a worker reads: made where they are missing, and whether they still hold everything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from faust.auth import SASLCredentials, SSLCredentials

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.retention import forget_topic
from pipeline.addresses import KafkaAddress
from pipeline.authoring.projection import Projection
from pipeline.errors import SourceUnavailable
from pipeline.metadata import SERVERS_OWN, make_topics
from pipeline.operations.in_parts import exchange_topic
from pipeline.reach import unreachable
from pipeline.runtime.wiring import connectors_of
from pipeline.settings import Settings


def credentials(kafka: KafkaAddress) -> SSLCredentials | SASLCredentials | None:
    """The address's own, as Faust wants them."""
    if kafka.login is not None:
        name, password = kafka.login
        return SASLCredentials(username=name, password=password, mechanism=kafka.mechanism, ssl_context=kafka.tls)
    return SSLCredentials(kafka.tls) if kafka.tls is not None else None


async def forget_exchange(settings: Settings, old: Projection[Any]) -> None:
    """Delete the exchange topic of a build that is no more; one worker has none. Raises SourceUnavailable."""
    if old.workers > 1:
        kafka = next(iter(connectors_of(settings, old).values())).kafka
        await forget_topic(settings.kafka_address(kafka), exchange_topic(settings, old))


async def ensure_topics(kafka: KafkaAddress, definition: ConnectorDefinition, topics: Mapping[str, int]) -> None:
    """Create the topics that are not there yet (a table that is empty has none), as the connector would.

    `topics`: `{name: partitions}`; once it returns, a consumer finds them all.
    Raises SourceUnavailable where Kafka is away, refuses to make one, or does not tell of it.
    """
    retention = str(int(definition.retention_days * 86_400_000))
    settings = {
        "cleanup.policy": "delete",
        "retention.ms": retention,
        "max.message.bytes": str(definition.max_message_bytes),
    }
    admin = AIOKafkaAdminClient(**kafka.options(), client_id="cdc-worker")
    try:
        await admin.start()
        known = set(await admin.list_topics())
        missing = [
            NewTopic(name, partitions, SERVERS_OWN, {}, settings)
            for name, partitions in topics.items()
            if name not in known
        ]
        if missing and (refused := await make_topics(admin, missing)):
            raise SourceUnavailable(refused)
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    finally:
        await admin.close()


async def assure_topics(kafka: KafkaAddress, topics: Iterable[str]) -> None:
    """These, which others make, are there; raises SourceUnavailable where one is not, or Kafka is away."""
    wanted = set(topics)
    if not wanted:
        return
    admin = AIOKafkaAdminClient(**kafka.options(), client_id="cdc-worker")
    try:
        await admin.start()
        missing = sorted(wanted - set(await admin.list_topics()))
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    finally:
        await admin.close()
    if missing:
        raise SourceUnavailable(
            f"Kafka at {kafka} has no topic {', '.join(missing)}, which others produce: is it the name, and may this user"
            " read it? It is waited for."
        )


async def missing_log(kafka: KafkaAddress, topics: Iterable[str]) -> str:
    """Why these topics no longer hold everything since their start; nothing where they do."""
    topics = list(topics)
    try:
        async with AIOKafkaConsumer(**kafka.options(), client_id="cdc-rebuild") as consumer:
            if missing := sorted(set(topics) - await consumer.topics()):
                return f"there is no topic {', '.join(missing)}"
        # only of the topics that it reads does a consumer know the partitions
        async with AIOKafkaConsumer(*topics, **kafka.options(), client_id="cdc-rebuild") as consumer:
            starts = await consumer.beginning_offsets(list(consumer.assignment()))
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    cut = [f"{tp.topic}/{tp.partition} starts at {offset}" for tp, offset in starts.items() if offset > 0]
    return f"{min(cut)}: what came before is gone" if cut else ""


async def ends_of(kafka: KafkaAddress, definition: ConnectorDefinition, topics: Iterable[str]) -> dict[str, int]:
    """Where these topics end now, `{"topic/0": 17}`; those that are not there yet are made."""
    topics = list(topics)
    await ensure_topics(
        kafka, definition, {t: 1 if t == definition.transaction_topic else definition.partitions for t in topics}
    )
    try:
        async with AIOKafkaConsumer(*topics, **kafka.options(), client_id="cdc-rebuild") as consumer:
            found = await consumer.end_offsets(list(consumer.assignment()))
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    if missing := sorted(set(topics) - {tp.topic for tp in found}):
        raise SourceUnavailable(f"Kafka at {kafka} does not tell of {', '.join(missing)} now: try again.")
    return {f"{tp.topic}/{tp.partition}": int(offset) for tp, offset in found.items()}
