"""What Kafka still has of some topics, read once more and by nobody's consumer group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime

from aiokafka import AIOKafkaConsumer, TopicPartition

from connectors.sources.notices import started
from pipeline.addresses import KafkaAddress
from pipeline.events.sourcelog import HEADER

Kept = tuple[str, int, bytes | None, bytes | None, str]
"""Partition (`topic/0`), offset, key, value, and the label of its source log."""
SOME = 5000


async def history(
    kafka: KafkaAddress, ends: Mapping[str, int], since: datetime | None
) -> AsyncIterator[Sequence[Kept]]:
    """The records before these offsets of partitions, from that time on (None: all that are kept), some at a time.

    In order within a partition. Raises SourceUnavailable.
    """
    consumer = AIOKafkaConsumer(**kafka.options(), group_id=None, client_id="cdc-replay", auto_offset_reset="earliest")
    wanted = {
        TopicPartition(topic, int(n)): end for name, end in ends.items() for topic, _, n in [name.rpartition("/")]
    }
    async with started(consumer, kafka):
        consumer.assign(list(wanted))
        first = await consumer.beginning_offsets(list(wanted))
        if since is not None:
            at = await consumer.offsets_for_times(dict.fromkeys(wanted, int(since.timestamp() * 1000)))
            first = {tp: found.offset if (found := at.get(tp)) is not None else wanted[tp] for tp in wanted}
        for tp, offset in first.items():
            consumer.seek(tp, offset)
        left = {tp for tp, end in wanted.items() if first[tp] < end}
        while left:
            for tp, records in (await consumer.getmany(*left, timeout_ms=500, max_records=SOME)).items():
                yield [
                    (f"{tp.topic}/{tp.partition}", r.offset, r.key, r.value, _label(r.headers))
                    for r in records
                    if r.offset < wanted[tp]
                ]
            for tp in list(left):
                if await consumer.position(tp) >= wanted[tp]:
                    left.discard(tp)


def _label(headers: Sequence[tuple[str, bytes]]) -> str:
    return next((value.decode() for name, value in headers if name == HEADER and value), "")
