"""All that Kafka holds under a prefix, as bytes."""

from __future__ import annotations

import asyncio

from aiokafka import AIOKafkaConsumer, TopicPartition


def everything_in(bootstrap: str, prefix: str) -> bytes:
    """Keys and values of every record of the topics whose names begin so, of one partition each."""
    return asyncio.run(_read(bootstrap, prefix))


async def _read(bootstrap: str, prefix: str) -> bytes:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    await consumer.start()
    try:
        topics = [topic for topic in await consumer.topics() if topic.startswith(prefix)]
        parts = [TopicPartition(topic, 0) for topic in topics]
        ends = await consumer.end_offsets(parts)
        consumer.assign(parts)
        await consumer.seek_to_beginning(*parts)
        found: list[bytes] = []
        while [part for part in parts if await consumer.position(part) < ends[part]]:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += [part for record in records for part in (record.key, record.value) if part]
        return b"\n".join(found)
    finally:
        await consumer.stop()
