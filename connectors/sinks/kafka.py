"""The Kafka sink: a compacted topic of documents for each version, and one that tells consumers which of them to read."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar

from aiokafka.partitioner import DefaultPartitioner

from connectors.sinks.documents import ID_BYTES, parsed
from connectors.sinks.kafka_client import Client
from connectors.sinks.kafka_index import Index, Last
from connectors.sinks.kafka_topics import Topics
from connectors.sinks.kafka_transaction import Message, Part, Producer, Replaced, parts
from connectors.sinks.kafka_version import LIVE, Held, Version, revision
from connectors.sinks.parts import ONE, Parts
from pipeline.addresses import KafkaAddress
from pipeline.authoring.shape import Shape
from pipeline.errors import NotAllowed, SinkError, SinkUnavailable
from pipeline.metadata import Topic
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, SinkRecord, Stored, Throttled, Write, always
from pipeline.settings import KafkaSettings

T = TypeVar("T")
# Ids alone are small.
IDS = 5000
# A request is of 100 MB at most.
DOCUMENT_BYTES = 90_000_000
TURNS = 30
_java = DefaultPartitioner()


class KafkaSink:
    """Writes the documents of one projection version to a topic, each `write` in one transaction.

    Kafka compares nothing with what it has. But who begins transactions with a name ends what others may write with it: so
    whoever began last, and has read the topics since, knows what is in them.
    """

    atomic = False

    def __init__(
        self,
        *,
        kafka: KafkaAddress,
        target: str,
        projection: str,
        shape: Shape,
        options: Mapping[str, object],
        settings: KafkaSettings,
        parts: Parts = ONE,
    ) -> None:
        self._topics, self._shape = Topics(target, projection, options, len(parts.suffixes)), shape
        self._parts = parts
        self._part_bytes = settings.bulk_bytes
        self._client = Client(kafka, self.name, settings.request_timeout)
        self._lock = asyncio.Lock()
        self._version = Version(self._client, self._topics, self.name, parts)
        self._producer: Producer | None = None
        """While it is not replaced, nobody else has written these documents since `_held` and `_read` were read."""
        self._held: Held | None = None
        self._read: Index | None = None

    @property
    def name(self) -> str:
        return f"kafka:{self._topics.documents}"

    async def prepare(self) -> None:
        own = self._topics
        async with self._lock:
            each = await self._version.each()
            found = await self._client.topics(own.documents, own.record)
            await self._version.refuse_foreign(next(filter(None, each), None), found)
            there = found[own.documents].id if own.documents in found else None
            if lacking := [n for n, held in enumerate(each) if held is None or held.topic != there]:
                await self._client.make(*map(own.wanted, (own.target, own.record, own.documents)))
                topic = await self._version.there()
                await self._version.refuse_loss(own.target, own.record, own.documents)
                fresh = Held(own.projection, topic.id, len(topic.leaders))
                await (
                    self._version.each()
                )  # a topic just made has leaders that do not know it yet: reading waits for them
                self._producer = None  # another begins with its name now
                for number in lacking:
                    await self._in_turns(partial(self._put_first, fresh, number))
            await self._version.refuse_loss(own.target, own.documents)

    async def claim(self, owner: str, at_least: int) -> SinkRecord:
        async with self._lock:
            topic = await self._version.there()
            await self._version.refuse_loss(self._topics.documents)
            return await self._in_turns(lambda: self._claim(owner, at_least, topic))

    async def record(self) -> SinkRecord | None:
        held = await self._version.stored()
        return held.record if held is not None else None

    async def save(self, record: SinkRecord) -> None:
        topic = await self._version.there()
        if not self._parts.alone:  # what it says of its documents, readers can see
            async with self._client.errors():
                await self._client.settled(self._topics.documents, topic.leaders, self._version.index.written)
        async with self._lock:
            await self._in_turns(lambda: self._save(record, topic))

    async def write(
        self, writes: Sequence[Write], epoch: int, allowed: Callable[[], bool] = always
    ) -> Sequence[Outcome]:
        found: dict[int, Outcome] = {}
        ready: dict[int, Message] = {}
        for place, write in enumerate(writes):
            try:
                ready[place] = self._ready(write)
            except ValueError as error:
                found[place] = Rejected(f"The document can't be stored: {error}.")
        if ready:
            async with self._lock:
                found |= await self._in_turns(lambda: self._write(writes, ready, epoch, allowed))
        return [found[place] for place in range(len(writes))]

    async def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        found: dict[str, Stored] = {}
        wanted: dict[int, set[int]] = defaultdict(set)
        async with self._lock, self._version.log() as log:
            await self._version.catch_up(log)
            for last in self._version.index.get(id.encode() for id in ids).values():
                if last.there:
                    wanted[last.partition].add(last.offset)
            async for record in log.at(wanted):
                found[record.key.decode()] = Stored(revision(record), json.loads(record.value))
        return found

    async def ended(self, ids: Sequence[str]) -> Collection[str]:
        return ()

    async def scan(self, *, documents: bool = True) -> AsyncIterator[Mapping[str, Stored]]:
        async with self._lock, self._version.log() as log:
            await self._version.catch_up(log)
            index, ends = self._version.index, dict(self._version.index.positions)
        if not documents:
            for page in index.pages(IDS):
                yield {id.decode(): Stored(number, {}) for id, number in page}
            return
        async with self._version.log() as log:
            async for records in log.between({}, ends):
                last = index.get({record.key for record in records})
                found = {
                    record.key.decode(): Stored(revision(record), json.loads(record.value))
                    for record in records
                    if record.value is not None
                    and (known := last.get(record.key)) is not None
                    and known.offset == record.offset
                }
                if found:
                    yield found

    async def loading(self, on: bool) -> None:
        await self._version.there()
        if on and await self._version.live() == self._topics.documents:
            raise SinkError(
                f"{self.name}: readers see this topic through {self._topics.target}: rebuild into a new version."
            )

    async def switch(self) -> None:
        own = self._topics
        async with self._lock, self._version.log() as log:
            ends = await log.ends()
            await self._client.make(own.wanted(own.target))
            await self._version.refuse_loss(own.target)
            await self._in_turns(lambda: self._point(ends))

    async def drop(self) -> None:
        own = self._topics
        async with self._lock:
            self._producer = None
            live = await self._version.live()
            gone = [own.target] if live in (None, own.documents) else []
            await self._client.remove(*gone, own.documents, own.record)

    async def refresh(self) -> None:
        await self._version.there()

    async def count(self) -> int:
        async with self._lock, self._version.log() as log:
            await self._version.catch_up(log)
            return self._version.index.count()

    async def close(self) -> None:
        self._version.index.close()
        await self._client.close()

    # ---- who may write ------------------------------------------------------------------------------------

    async def _in_turns(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt comes to that nobody interrupts by beginning meanwhile."""
        for turn in range(TURNS):
            try:
                async with self._client.errors():
                    return await attempt()
            except Replaced:
                self._producer = None
                await asyncio.sleep(random.random() * 0.02 * (turn + 1))  # noqa: S311
            except BaseException:
                self._producer = None
                raise
        raise SinkUnavailable(
            f"{self.name}: others begin to write it again and again: is a worker of it run elsewhere?"
        )

    async def _begin(self) -> Producer:
        """Begin where that was not done, and read what the version's record says."""
        if self._producer is None:
            producer = await self._begun(self._parts.name(self._topics.documents))
            self._held, self._read = await self._version.stored(), None
            self._producer = producer
        return self._producer

    async def _begun(self, topic: str) -> Producer:
        producer = Producer(await self._client.connected(), f"cdc-{topic}", self._client.timeout)
        await producer.begin()
        return producer

    async def _begin_where(self, topic: Topic, mine: Callable[[SinkRecord | None], bool]) -> Held:
        """What the version's record says; who was replaced is told so, and ends nothing of who replaced it."""
        held = await self._version.stored() if self._producer is None else self._held
        if held is not None and mine(held.record):
            await self._begin()
            held = self._held
        if held is None or held.topic != topic.id:
            raise self._client.missing()
        if held.partitions != len(topic.leaders):
            raise SinkError(
                f"{self.name}: the topic has {len(topic.leaders)} partitions, and was made with {held.partitions}: documents are no"
                " longer where their ids say. Rebuild it (cdc rebuild)."
            )
        return held

    async def _claim(self, owner: str, at_least: int, topic: Topic) -> SinkRecord:
        held = await self._begin_where(topic, lambda stored: True)
        known = held.record or SinkRecord()
        record = replace(known, epoch=max(known.epoch, at_least) + 1, owner=owner)
        await self._note(replace(held, record=record))
        # no older epoch writes from here on
        self._version.index.forget_deleted()
        return deepcopy(record)

    async def _save(self, record: SinkRecord, topic: Topic) -> None:
        held = await self._begin_where(topic, lambda stored: _owned(stored, record))
        if not _owned(held.record, record):
            raise record.fenced_by(held.record, self.name)
        await self._note(replace(held, record=deepcopy(record)))

    # ---- what is written ----------------------------------------------------------------------------------

    def _ready(self, write: Write) -> Message:
        """Raises ValueError where it can't be sent."""
        id = write.id.encode()
        if not 0 < len(id) <= ID_BYTES:
            raise ValueError(f"the id has to be of 1 to {ID_BYTES} bytes")
        text = None
        if write.document is not None:
            parsed(write.document, self._shape)
            text = write.document.encode()
            if len(text) > DOCUMENT_BYTES:
                raise ValueError(f"it has {len(text)} bytes, and a request to Kafka {DOCUMENT_BYTES} at most")
        headers = [("revision", str(write.revision).encode()), ("version", self._topics.projection.encode())]
        return Message(id, text, headers)

    async def _write(
        self, writes: Sequence[Write], ready: Mapping[int, Message], epoch: int, allowed: Callable[[], bool]
    ) -> dict[int, Outcome]:
        if not allowed():
            raise NotAllowed
        topic = await self._version.there()
        held = await self._begin_where(topic, lambda stored: _past(stored, epoch))
        if not _past(held.record, epoch):
            return dict.fromkeys(ready, STALE)
        known = (await self._up_to_date()).get(message.key for message in ready.values())
        fresh = {
            message.key: place
            for place, message in ready.items()
            if message.key not in known or known[message.key].revision < writes[place].revision
        }
        found: dict[int, Outcome] = dict.fromkeys(ready, STALE)
        if fresh:
            messages: dict[int, list[Message]] = defaultdict(list)
            for key, place in fresh.items():
                messages[_partition(key, held.partitions)].append(ready[place])
            if not allowed():
                raise NotAllowed
            found |= {fresh[key]: outcome for key, outcome in await self._send(messages, topic.leaders)}
        return found

    async def _up_to_date(self) -> Index:
        """The index, of all that is in the topic since this one began."""
        if self._read is not self._version.index:
            async with self._version.log() as log:
                await self._version.catch_up(log)
            self._read = self._version.index
        return self._read

    async def _send(
        self, messages: Mapping[int, Sequence[Message]], leaders: Mapping[int, int]
    ) -> Iterable[tuple[bytes, Outcome]]:
        sent = parts(messages, self._part_bytes)
        well = await (await self._begin()).write(self._topics.documents, leaders, sent)
        if well:
            index, lasts = self._version.index, [*_lasts(sent)]
            index.learn(lasts)
            index.written |= {last.partition: last.offset + 1 for last in lasts}
            if self._parts.alone:
                index.positions |= index.written
        return [(message.key, outcome) for part, outcome in self._outcomes(sent, well) for message in part.messages]

    def _outcomes(self, sent: Sequence[Part], well: bool) -> Iterable[tuple[Part, Outcome]]:
        refused = next((str(part.error) for part in sent if part.error is not None and not part.too_large), "")
        for part in sent:
            if part.too_large and part.size > self._part_bytes:
                yield part, Rejected(f"It has {part.size} bytes, and Kafka takes less ({part.error}).")
            elif part.too_large:
                yield part, Throttled(f"{part.error}: the topic's max.message.bytes is less than kafka.bulk_bytes")
            else:
                yield part, APPLIED if well else Throttled(f"Kafka refuses: {refused}")

    async def _note(self, held: Held) -> None:
        """Make it what the record says that is this worker's."""
        await self._put(await self._begin(), self._topics.record, b"record", asdict(held), self._parts.number)
        self._held = held

    async def _put_first(self, held: Held, number: int) -> None:
        """The first record of a partition, whoever will own it."""
        producer = await self._begun(self._parts.names(self._topics.documents)[number])
        await self._put(producer, self._topics.record, b"record", asdict(held), number)

    async def _point(self, ends: Mapping[int, int]) -> None:
        own = self._topics
        told = {"topic": own.documents, "version": own.projection, "ends": ends}
        await self._put(await self._begun(own.target), own.target, LIVE, told)

    async def _put(self, producer: Producer, topic: str, key: bytes, value: Mapping[str, Any], number: int = 0) -> None:
        there = (await self._client.topics(topic)).get(topic)
        if there is None:
            raise self._client.missing()
        part = Part(number, [Message(key, json.dumps(value).encode())])
        if not await producer.write(topic, there.leaders, [part]) or part.error:
            raise SinkUnavailable(f"{self.name}: Kafka refuses a record of {topic} now ({part.error}).")


def _owned(stored: SinkRecord | None, by: SinkRecord) -> bool:
    return stored is not None and (stored.epoch, stored.owner) == (by.epoch, by.owner)


def _past(stored: SinkRecord | None, epoch: int) -> bool:
    return stored is None or stored.epoch <= epoch


def _partition(key: bytes, partitions: int) -> int:
    """As Java's producers do."""
    return 0 if partitions == 1 else int(_java(key, range(partitions), ()))


def _lasts(sent: Sequence[Part]) -> Iterator[Last]:
    for part in sent:
        if part.error is None:
            for place, message in enumerate(part.messages):
                number, offset = int(message.headers[0][1]), part.offset + place
                yield Last(message.key, number, part.partition, offset, message.value is not None)
