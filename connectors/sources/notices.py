"""What a connector says of its incremental snapshots and transactions, and where its topics end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ConfigDict, ValidationError

from connectors.sources.debezium import ConnectorDefinition
from pipeline.addresses import KafkaAddress
from pipeline.events.envelope import decode_boundary
from pipeline.events.sourcelog import HEADER, SourceLog, parsed
from pipeline.reach import unreachable

AGGREGATE: Final = "Incremental Snapshot"
LAST: Final = 20
"""Records at a topic's end that are looked through for an END."""


class Notice(BaseModel):
    """One notification of Debezium."""

    model_config = ConfigDict(extra="ignore")

    id: str
    """The id of the signal that asked for it."""
    type: str
    """STARTED, IN_PROGRESS, TABLE_SCAN_COMPLETED, COMPLETED, ABORTED, …"""
    aggregate_type: str = ""
    additional_data: dict[str, str] = {}


@asynccontextmanager
async def notices(
    kafka: KafkaAddress, definition: ConnectorDefinition
) -> AsyncIterator[Callable[[], Awaitable[list[Notice]]]]:
    """A function that gives what the connector has said of incremental snapshots since; waits up to half a second."""
    partition = TopicPartition(definition.notification_topic, 0)
    consumer = AIOKafkaConsumer(**kafka.options(), auto_offset_reset="earliest", client_id="cdc-backfill")
    async with started(consumer, kafka):
        consumer.assign([partition])
        async with asyncio.timeout(15):
            await consumer.seek_to_end(partition)
            await consumer.position(partition)

        async def more() -> list[Notice]:
            found = await consumer.getmany(partition, timeout_ms=500)
            return [n for record in found.get(partition, ()) if (n := _notice(record.value)) is not None]

        yield more


async def end_offsets(kafka: KafkaAddress, topic: str) -> Mapping[str, int]:
    """Where a topic's partitions end now, `{"topic/0": 17}`."""
    consumer = AIOKafkaConsumer(topic, **kafka.options(), group_id=None, client_id="cdc-ends")
    async with started(consumer, kafka):
        # without a group all partitions are assigned at the start; an unknown topic is an error there
        found = await consumer.end_offsets(consumer.assignment())
    return {f"{tp.topic}/{tp.partition}": int(offset) for tp, offset in found.items()}


async def sent(kafka: KafkaAddress, topic: str) -> bool:
    """Whether anything was ever sent to a topic; raises SourceUnavailable."""
    consumer = AIOKafkaConsumer(**kafka.options(), group_id=None, client_id="cdc-ends")
    async with started(consumer, kafka):
        known = await consumer.topics()
    return topic in known and any((await end_offsets(kafka, topic)).values())


async def newest_commit(
    kafka: KafkaAddress, topic: str, of: Callable[[SourceLog], bool]
) -> tuple[int, SourceLog] | None:
    """The position of the last transaction that a transaction topic has of such a source log; None where it has none.

    Raises SourceUnavailable.
    """
    partition = TopicPartition(topic, 0)
    consumer = AIOKafkaConsumer(**kafka.options(), group_id=None, client_id="cdc-commit")
    found: list[tuple[int, SourceLog]] = []
    async with started(consumer, kafka), asyncio.timeout(15):
        if topic not in await consumer.topics():
            return None
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        begin = (await consumer.beginning_offsets([partition]))[partition]
        consumer.seek(partition, max(begin, end - LAST))
        while begin < end and await consumer.position(partition) < end:
            for record in (await consumer.getmany(partition, timeout_ms=500)).get(partition, ()):
                logs = [parsed((value or b"").decode()) for key, value in record.headers if key == HEADER]
                if record.value and logs and of(logs[0]):
                    boundary = decode_boundary(record.value)
                    found += [(boundary.lsn, logs[0])] if boundary.status == "END" else []
    return max(found, key=itemgetter(0), default=None)


@asynccontextmanager
async def started(consumer: AIOKafkaConsumer, kafka: KafkaAddress) -> AsyncIterator[None]:
    """A consumer that is stopped in the end; raises SourceUnavailable where Kafka is away."""
    try:
        await consumer.start()
        yield
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    finally:
        await consumer.stop()


def _notice(data: bytes | None) -> Notice | None:
    """A notification, with or without a schema around it; None where it is of something else."""
    try:
        found = Notice.model_validate_json(data or b"")
    except ValidationError:
        return None
    return found if found.aggregate_type == AGGREGATE else None
