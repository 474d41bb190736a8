"""The topics a worker reads: made where they are missing, and told apart from those that were made anew."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)
from faust.auth import SASLCredentials, SSLCredentials

from connectors.sources.debezium import ConnectorDefinition
from pipeline.addresses import KafkaAddress
from pipeline.errors import SourceUnavailable
from pipeline.reach import unreachable

SERVERS_OWN = -1
"""Kafka's default.replication.factor, as in the topics that the connector makes."""
TOLD_WITHIN = 30
"""Seconds after which a topic that was made is missed."""


def credentials(kafka: KafkaAddress) -> SSLCredentials | SASLCredentials | None:
    """The address's own, as Faust wants them."""
    if kafka.login is not None:
        name, password = kafka.login
        return SASLCredentials(username=name, password=password, mechanism=kafka.mechanism, ssl_context=kafka.tls)
    return SSLCredentials(kafka.tls) if kafka.tls is not None else None


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
        if missing:
            _complain(await admin.create_topics(missing), topics)
            await _told(admin, {topic.name for topic in missing})
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    finally:
        await admin.close()


def _complain(answer: Response, topics: Mapping[str, int]) -> None:
    """Raise SourceUnavailable where a topic was not made, with what to do."""
    for name, code, *why in answer.topic_errors:
        error = for_code(code)
        if error not in (NoError, TopicAlreadyExistsError):
            reason = " ".join(filter(None, [error.__name__, *why]))
            raise SourceUnavailable(
                f"Kafka did not make the topic {name} ({reason}): make it yourself with {topics[name]} partitions, "
                "or let this user make it."
            )


async def _told(admin: AIOKafkaAdminClient, names: set[str]) -> None:
    """Kafka answers before its servers know; a consumer that came too early would ask again after half a minute."""
    ends = time.monotonic() + TOLD_WITHIN
    while missing := names - {
        topic["topic"]
        for topic in await admin.describe_topics()
        if topic["partitions"] and all(partition["leader"] >= 0 for partition in topic["partitions"])
    }:
        if time.monotonic() > ends:
            raise SourceUnavailable(
                f"Kafka made {', '.join(sorted(missing))} and does not tell of it: is a server down?"
            )
        await asyncio.sleep(0.05)


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


async def topic_ids(client: Any, topics: Iterable[str]) -> dict[str, str]:
    """`{topic: id}` by a connected aiokafka client; a topic that is deleted and made again has another id."""
    answer = await client.send(client.get_random_node(), _Describe(list(topics)))
    return {name: str(number) for error, name, number, *_ in answer.topics if not error}


class _Uuid(AbstractType[uuid.UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


_TEXT, _NUMBERS, _TAGS = CompactString("utf-8"), CompactArray(Int32), ("tags", TaggedFields)
_BROKER = CompactArray(("node", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT), _TAGS)
_PARTITION = CompactArray(
    ("error", Int16), ("partition", Int32), ("leader", Int32), ("epoch", Int32),
    ("replicas", _NUMBERS), ("in_sync", _NUMBERS), ("offline", _NUMBERS), _TAGS,
)  # fmt: skip
_TOPIC = CompactArray(
    ("error", Int16), ("name", _TEXT), ("id", _Uuid), ("internal", Boolean), ("partitions", _PARTITION),
    ("operations", Int32), _TAGS,
)  # fmt: skip


class _Answer(Response):  # type: ignore[misc]
    """aiokafka's own metadata answers, up to version 5, have no ids of topics."""

    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle", Int32), ("brokers", _BROKER), ("cluster", _TEXT), ("controller", Int32), ("topics", _TOPIC), _TAGS
    )


class _Struct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("id", _Uuid), ("name", _TEXT), _TAGS)),
        ("create", Boolean),
        ("operations", Boolean),
        _TAGS,
    )


class _Describe(Request[_Struct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_Struct]) -> _Struct:
        nothing = uuid.UUID(int=0)
        return request_struct_class([(nothing, name, {}) for name in self._topics], False, False, {})
