"""The documents of a Kafka target as they change: read from the topic of the live version, and from the next after a cut-over."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from aiokafka import TopicPartition

from connectors.sinks.kafka_client import Client
from connectors.sinks.kafka_topics import DAY, DOCUMENTS
from connectors.sinks.kafka_version import LIVE, revision
from pipeline.addresses import KafkaAddress
from pipeline.errors import QueryRefused
from pipeline.ports import Change, Moved, Told

BEAT_MS = 1000
SOME = 500
# A day before Kafka may forget deletes.
REMEMBERED_MS = int(DOCUMENTS["delete.retention.ms"]) - DAY
PLACE = re.compile(r"(?P<version>[^~\s]{1,250})~(?P<at>[0-9]{1,16})~(?P<offsets>[0-9]{1,18}(\.[0-9]{1,18}){0,999})")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader stands: in which version, since when, and at which offset of each partition of its topic."""

    version: str
    at: int
    """Milliseconds since 1970."""
    offsets: tuple[int, ...]

    @classmethod
    def parsed(cls, text: str) -> Self:
        found = PLACE.fullmatch(text)
        if found is None:
            raise QueryRefused(f"{text[:100]!r} is no place in a feed.")
        return cls(found["version"], int(found["at"]), tuple(map(int, found["offsets"].split("."))))

    def __str__(self) -> str:
        return f"{self.version}~{self.at}~{'.'.join(map(str, self.offsets))}"

    def behind(self, record: Any) -> Place:
        """Where one stands who has read this record."""
        number = record.partition
        offsets = (*self.offsets[:number], record.offset + 1, *self.offsets[number + 1 :])
        return replace(self, offsets=offsets)


class KafkaFeed:
    """Each `follow` has connections of its own."""

    def __init__(self, *, kafka: KafkaAddress, target: str, timeout: float) -> None:
        self._kafka, self._target, self._timeout = kafka, target, timeout

    @property
    def name(self) -> str:
        return f"kafka:{self._target}"

    async def follow(self, place: str | None = None, *, everything: bool = False) -> AsyncIterator[Told]:
        before = Place.parsed(place) if place is not None else None
        client = Client(self._kafka, self.name, self._timeout)
        try:
            if not await client.topics(self._target):
                raise client.missing()
            async with client.consumer(BEAT_MS) as live, client.consumer(BEAT_MS) as documents:
                live.assign([TopicPartition(self._target, 0)])
                async for found in self._followed(client, live, documents, before, everything):
                    yield found
        finally:
            await client.close()

    async def _followed(
        self, client: Client, live: Any, documents: Any, before: Place | None, everything: bool
    ) -> AsyncIterator[Told]:
        told = await _told(live)
        if told is None:
            raise client.missing()
        at = await self._begun(client, documents, told, before, everything)
        yield str(at), [Moved(at.version, str(at))] if before is not None and before.version != at.version else []
        while True:
            for records in (await live.getmany(timeout_ms=0)).values():
                following = _read(records[-1])
                if following["topic"] != told["topic"]:
                    told = following
                    at = await self._begun(client, documents, told, None, True)
                    yield str(at), [Moved(at.version, str(at))]
            at = replace(at, at=int(time.time() * 1000))
            changes: list[Change | Moved] = []
            for records in (await documents.getmany(timeout_ms=BEAT_MS, max_records=SOME)).values():
                for record in records:
                    at = at.behind(record)
                    changes.append(Change(record.key.decode(), revision(record), record.value, str(at)))
            yield str(at), changes

    async def _begun(
        self, client: Client, documents: Any, told: Mapping[str, Any], before: Place | None, everything: bool
    ) -> Place:
        """Have the consumer begin in the version's topic: behind the place, where it is of it; at its end, or with everything."""
        topic = str(told["topic"])
        found = (await client.topics(topic)).get(topic)
        if found is None:
            raise client.missing()
        partitions = [TopicPartition(topic, number) for number in sorted(found.leaders)]
        documents.assign(partitions)
        own = Place(str(told["version"]), int(time.time() * 1000), (0,) * len(partitions))
        if before is not None and before.version == own.version:
            ends = await documents.end_offsets(partitions)
            self._refuse(before, [ends[tp] for tp in partitions])
            for tp, offset in zip(partitions, before.offsets, strict=True):
                documents.seek(tp, offset)
            return before
        if everything or before is not None:
            await documents.seek_to_beginning(*partitions)
            return own
        await documents.seek_to_end(*partitions)
        return replace(own, offsets=tuple([await documents.position(tp) for tp in partitions]))

    def _refuse(self, before: Place, ends: Sequence[int]) -> None:
        if len(before.offsets) != len(ends) or any(map(int.__gt__, before.offsets, ends)):
            raise QueryRefused(f"{self.name}: there is no such place in {before.version}: its topic was made anew.")
        if time.time() * 1000 - before.at > REMEMBERED_MS:
            raise QueryRefused(f"{self.name}: that place is too old: of what went since, Kafka may say nothing.")


async def _told(live: Any) -> Mapping[str, Any] | None:
    """The last record of the topic that says which version is live; the consumer stands behind it."""
    (tp,) = live.assignment()
    await live.seek_to_beginning(tp)
    end, told = (await live.end_offsets([tp]))[tp], None
    while await live.position(tp) < end:
        for records in (await live.getmany(tp, timeout_ms=BEAT_MS)).values():
            told = _read(records[-1])
    return told


def _read(record: Any) -> Mapping[str, Any]:
    if record.key != LIVE:
        raise QueryRefused(f"The topic {record.topic} is somebody else's: it says nothing of versions.")
    return dict(json.loads(record.value))
