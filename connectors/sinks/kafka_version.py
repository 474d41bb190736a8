"""What Kafka has of a projection version: whose it is, what its record says, and which document is where."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from connectors.sinks.kafka_client import Client, Log
from connectors.sinks.kafka_index import Index, Last
from connectors.sinks.kafka_topics import Topics
from connectors.sinks.parts import Parts
from pipeline.errors import SinkError
from pipeline.metadata import Topic
from pipeline.ports import SinkRecord

# Records at the end of a topic of which each second is the end of a transaction.
TAIL = 16
LIVE = b"live"


@dataclass(slots=True)
class Held:
    """What the last record of the record's topic says: whose the version is, and the checkpoint record where it was claimed."""

    projection: str
    topic: str
    """The id of the documents' topic: one made anew by others is another."""
    partitions: int
    record: SinkRecord | None = None


class Version:
    """Reads, and writes nothing."""

    def __init__(self, client: Client, topics: Topics, sink: str, parts: Parts) -> None:
        self._client, self._topics, self._sink, self._parts = client, topics, sink, parts
        self.index = Index()
        """Of what was in the documents' topic when `catch_up` was last called."""

    async def there(self) -> Topic:
        """The documents' topic; raises TargetMissing."""
        own = self._topics
        found = await self._client.topics(own.documents, own.record)
        if len(found) < 2:
            raise self._client.missing()
        topic = found[own.documents]
        if topic.id != self.index.topic:
            self._anew(topic.id)
        return topic

    @asynccontextmanager
    async def log(self) -> AsyncIterator[Log]:
        """The documents' topic, to be read."""
        topic = await self.there()
        async with self._client.log(self._topics.documents, topic.leaders) as log:
            yield log

    async def catch_up(self, log: Log) -> None:
        """The index is of all that is in the topic now."""
        if not self._parts.alone:
            await self._until_settled()
        ends = await log.ends()
        if any(ends[number] < position for number, position in self.index.positions.items()):
            self._anew(self.index.topic)  # Kafka has lost the end of its log
        async for records in log.between(self.index.positions, ends):
            self.index.learn(
                Last(record.key, revision(record), record.partition, record.offset, record.value is not None)
                for record in records
            )
        self.index.positions = ends

    async def _until_settled(self) -> None:
        """What others have not committed yet hides what lies behind it, too."""
        own = self._topics.documents
        leaders = (await self.there()).leaders
        await self._client.settled(own, leaders, await self._client.ends(own, leaders, committed=False))

    def _anew(self, topic: str) -> None:
        self.index.close()
        self.index = Index(topic)

    async def stored(self) -> Held | None:
        """What the record says, or those of all partitions together; None where one is missing."""
        if self._parts.own is not None:
            return await self._stored(self._parts.number)
        each = await self.each()
        if (held := next(filter(None, each), None)) is None or None in each:
            return None
        names = self._parts.names(self._topics.projection)
        said = {name: one.record for name, one in zip(names, each, strict=True) if one is not None and one.record}
        return replace(held, record=self._parts.record(self._topics.projection, said))

    async def each(self) -> list[Held | None]:
        """What the record of each partition says."""
        return [await self._stored(number) for number in range(len(self._parts.suffixes))]

    async def _stored(self, number: int) -> Held | None:
        found = await self._last(self._topics.record, number)
        if found is None:
            return None
        said = json.loads(found.value)
        record = SinkRecord(**said["record"]) if said["record"] is not None else None
        return Held(said["projection"], said["topic"], said["partitions"], record)

    async def live(self) -> str | None:
        """The topic that readers are told to read."""
        found = await self._last(self._topics.target)
        if found is not None and found.key != LIVE:
            raise self._foreign(self._topics.target)
        return None if found is None else str(json.loads(found.value)["topic"])

    async def _last(self, topic: str, number: int = 0) -> Any:
        """The last record of a topic's partition; None where there is none."""
        there = (await self._client.topics(topic)).get(topic)
        if there is None or number not in there.leaders:
            return None
        async with self._client.log(topic, [number]) as log:
            start = end = (await log.ends())[number]
            back = TAIL
            while start > 0:
                start, back = max(0, end - back), back * TAIL
                found = [record async for records in log.between({number: start}, {number: end}) for record in records]
                if found:
                    return found[-1]
        return None

    async def refuse_foreign(self, held: Held | None, found: Mapping[str, Topic]) -> None:
        """Topics that others have made, or that were made otherwise."""
        own = self._topics
        await self.live()
        if held is not None and held.projection != own.projection:
            raise SinkError(
                f"{self._sink}: the topic {own.documents} is that of {held.projection}: give one of the two another name."
            )
        if own.documents not in found:
            return
        partitions = list(found[own.documents].leaders)
        if len(partitions) != own.partitions:
            raise SinkError(
                f"{self._sink}: its topic has {len(partitions)} partitions, and not {own.partitions}: raise the projection's"
                " version and rebuild."
            )
        if held is None:
            async with self._client.log(own.documents, partitions) as log:
                if any((await log.ends()).values()):
                    raise self._foreign(own.documents)

    def _foreign(self, topic: str) -> SinkError:
        return SinkError(f"{self._sink}: the topic {topic} is somebody else's: give the target another name.")

    async def refuse_loss(self, *topics: str) -> None:
        for topic, settings in (await self._client.settings(*topics)).items():
            if (policy := settings.get("cleanup.policy")) != "compact":
                raise SinkError(
                    f"{self._sink}: Kafka deletes what is old in the topic {topic} (cleanup.policy {policy}): set it to compact,"
                    " or give the target another name."
                )


def revision(record: Any) -> int:
    """That of the document in a record of Kafka's."""
    return int(dict(record.headers)["revision"])
