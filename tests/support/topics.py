"""Topics of documents, read as a consumer reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer


async def records(topic: str, **kafka: Any) -> list[Any]:
    """All that is committed of a topic, in the order of each partition."""
    kafka = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"} | kafka
    async with AIOKafkaConsumer(topic, **kafka) as consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        found: list[Any] = []
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for some in (await consumer.getmany(*ends, timeout_ms=100)).values():
                found += some
        return found


async def live(target: str, **kafka: Any) -> dict[str, Any]:
    """What readers are told to read."""
    return dict(json.loads((await records(target, **kafka))[-1].value))


async def documents(target: str, **kafka: Any) -> Mapping[str, Any]:
    """The documents of the version that readers are told to read."""
    last = {
        record.key.decode(): record.value for record in await records((await live(target, **kafka))["topic"], **kafka)
    }
    return {id: json.loads(value) for id, value in last.items() if value is not None}
