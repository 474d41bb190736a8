"""What Kafka tells of topics: their ids and leaders, and that those that were made are there."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import NoError, TopicAlreadyExistsError, for_code
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

SERVERS_OWN = -1
"""Kafka's default.replication.factor, as in the topics that the connector makes."""
TOLD_WITHIN = 30
"""Seconds after which a topic that was made is missed."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it is now; one that is deleted and made again has another id."""

    id: str
    leaders: Mapping[int, int]
    """The node that leads each partition; -1 where none does."""


async def described(client: Any, topics: Iterable[str]) -> dict[str, Topic]:
    """Those of the topics that are there, by a connected aiokafka client; none is made by asking."""
    answer = await client.send(client.get_random_node(), _Describe(list(topics)))
    return {
        name: Topic(str(number), {partition: leader for _, partition, leader, *_ in partitions})
        for error, name, number, _, partitions, *_ in answer.topics
        if not error
    }


async def topic_ids(client: Any, topics: Iterable[str]) -> dict[str, str]:
    """`{topic: id}` by a connected aiokafka client."""
    return {name: topic.id for name, topic in (await described(client, topics)).items()}


async def make_topics(admin: AIOKafkaAdminClient, topics: Sequence[NewTopic]) -> str:
    """Make those that are not there yet, and wait until Kafka tells of all; why one was not made, with what to do, or nothing."""
    made = {topic.name: topic for topic in topics}
    for name, code, *why in (await admin.create_topics(list(topics))).topic_errors:
        error = for_code(code)
        if error not in (NoError, TopicAlreadyExistsError):
            reason = " ".join(filter(None, [error.__name__, *why]))
            return (
                f"Kafka did not make the topic {name} ({reason}): make it yourself with {made[name].num_partitions} partitions, "
                "or let this user make it."
            )
    return await _told(admin, set(made))


async def _told(admin: AIOKafkaAdminClient, names: set[str]) -> str:
    """Kafka answers before its servers know; a consumer that came too early would ask again after half a minute."""
    ends = time.monotonic() + TOLD_WITHIN
    while missing := names - {
        topic["topic"]
        for topic in await admin.describe_topics()
        if topic["partitions"] and all(partition["leader"] >= 0 for partition in topic["partitions"])
    }:
        if time.monotonic() > ends:
            return f"Kafka made {', '.join(sorted(missing))} and does not tell of it: is a server down?"
        await asyncio.sleep(0.05)
    return ""


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
