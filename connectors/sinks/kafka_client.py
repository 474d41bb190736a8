"""One sink's way to Kafka: what it asks, what it reads of topics, and what failures are called."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    NoError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.offset import OffsetRequest, OffsetResetStrategy

from pipeline.addresses import KafkaAddress
from pipeline.errors import SinkError, SinkUnavailable, TargetMissing
from pipeline.metadata import SERVERS_OWN, Topic, described, make_topics
from pipeline.reach import unreachable

NAME = "cdc-sink"
FORBIDDEN = (
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
)
# Records at a time, so that nothing else waits long for what is done with them.
SOME = 2000
# Further on than this a document is sought, and nearer read up to.
NEAR = 500


class Client:
    """Connects with its first request, and anew after each failure."""

    def __init__(self, kafka: KafkaAddress, sink: str, timeout: float) -> None:
        self._kafka, self._sink, self.timeout = kafka, sink, timeout
        self._client: Any = None

    async def connected(self) -> Any:
        """aiokafka's client."""
        if self._client is None:
            client = AIOKafkaClient(**self._options())
            try:
                await client.bootstrap()
            except BaseException:
                await client.close()
                raise
            self._client = client
        return self._client

    async def topics(self, *names: str) -> dict[str, Topic]:
        """Those that are there."""
        async with self.errors():
            return await described(await self.connected(), names)

    async def names(self) -> set[str]:
        """All topics of the server."""
        async with self._admin() as admin:
            return set(await admin.list_topics())

    async def settings(self, *names: str) -> dict[str, dict[str, str]]:
        """What the topics are told."""
        async with self._admin() as admin:
            answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
        found: dict[str, dict[str, str]] = {}
        for answer in answers:
            for code, why, _, name, entries in answer.resources:
                if code:
                    raise SinkError(f"{self._sink}: Kafka does not tell how {name} is kept ({why or for_code(code)}).")
                found[name] = {entry[0]: entry[1] for entry in entries}
        return found

    async def make(self, *topics: tuple[str, int, dict[str, str]]) -> None:
        """Names, partitions and settings; what is there stays as it is."""
        wanted = [NewTopic(name, number, SERVERS_OWN, {}, settings) for name, number, settings in topics]
        async with self._admin() as admin:
            refused = await make_topics(admin, wanted)
        if refused:
            raise SinkError(f"{self._sink}: {refused}")

    async def remove(self, *names: str) -> None:
        """Until Kafka's servers have forgotten them; what is not there is well."""
        async with self._admin() as admin:
            for name, code in (await admin.delete_topics(list(names))).topic_error_codes:
                if for_code(code) not in (NoError, UnknownTopicOrPartitionError):
                    raise for_code(code)(name)
        ends = time.monotonic() + self.timeout
        while left := await self.topics(*names):
            if time.monotonic() > ends:
                raise SinkUnavailable(f"{self._sink}: Kafka has not removed {', '.join(left)} in {self.timeout:g} s.")
            await asyncio.sleep(0.05)

    @asynccontextmanager
    async def log(self, topic: str, partitions: Collection[int]) -> AsyncIterator[Log]:
        """What is committed of a topic that is there."""
        async with self.consumer() as consumer:
            consumer.assign([TopicPartition(topic, number) for number in partitions])
            consumer.pause(*consumer.assignment())
            yield Log(consumer, topic, self.timeout)

    @asynccontextmanager
    async def consumer(self, wait_ms: int = 100) -> AsyncIterator[Any]:
        """Reads what is committed, of no group. `wait_ms`: after which Kafka says that there is nothing yet."""
        consumer = AIOKafkaConsumer(
            **self._options(), isolation_level="read_committed", enable_auto_commit=False,
            auto_offset_reset="earliest", fetch_max_wait_ms=min(wait_ms, int(self.timeout * 500)),
        )  # fmt: skip
        async with self.errors():
            try:
                await consumer.start()
                yield consumer
            finally:
                await consumer.stop()

    async def ends(self, topic: str, leaders: Mapping[int, int], *, committed: bool) -> dict[int, int]:
        """Where each partition ends; `committed`: before the first transaction that is open."""
        by_node: dict[int, list[int]] = defaultdict(list)
        for number, node in leaders.items():
            by_node[node].append(number)
        client, found = await self.connected(), dict[int, int]()
        for node, numbers in by_node.items():
            asked = OffsetRequest(-1, int(committed), [(topic, [(n, OffsetResetStrategy.LATEST) for n in numbers])])
            for _, partitions in (await client.send(node, asked)).topics:
                for number, code, _, offset in partitions:
                    if code:
                        raise for_code(code)(f"{topic}/{number}")
                    found[number] = int(offset)
        return found

    async def settled(self, topic: str, leaders: Mapping[int, int], upto: Mapping[int, int]) -> None:
        """Until all that was written before these offsets can be read, or never will; others' transactions may be open before."""
        until = time.monotonic() + 3 * self.timeout  # Kafka ends what takes longer than two
        while True:
            ends = await self.ends(topic, leaders, committed=True)
            if all(ends[number] >= offset for number, offset in upto.items()):
                return
            if time.monotonic() > until:
                raise TimeoutError
            await asyncio.sleep(0.01)

    def missing(self) -> TargetMissing:
        return TargetMissing(f"{self._sink}: Kafka has no such version, or has lost it: run `cdc apply`.")

    @asynccontextmanager
    async def errors(self) -> AsyncIterator[None]:
        """What Kafka's client raises, as errors of a sink."""
        try:
            yield
        except (KafkaError, OSError, TimeoutError) as error:
            await self.close()
            raise await self._failed(error) from None

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _failed(self, error: BaseException) -> SinkError:
        if isinstance(error, UnknownTopicOrPartitionError):
            return self.missing()
        if isinstance(error, FORBIDDEN):
            return SinkError(f"{self._sink}: not allowed ({error}): give the user the rights of docs/guides/kafka.md.")
        if not isinstance(error, RequestTimedOutError | TimeoutError):
            try:
                async with asyncio.timeout(self.timeout):
                    return SinkUnavailable(f"{self._sink}: {await unreachable(self._kafka, error)}")
            except TimeoutError:
                pass
        return SinkUnavailable(f"{self._sink}: Kafka at {self._kafka} has not answered in {self.timeout:g} s.")

    @asynccontextmanager
    async def _admin(self) -> AsyncIterator[Any]:
        async with self.errors():
            admin = AIOKafkaAdminClient(**self._options())
            try:
                await admin.start()
                yield admin
            finally:
                await admin.close()

    def _options(self) -> dict[str, Any]:
        return self._kafka.options() | {"client_id": NAME, "request_timeout_ms": int(self.timeout * 1000)}


class Log:
    """Reads a topic; each partition from one offset to another."""

    def __init__(self, consumer: Any, topic: str, timeout: float) -> None:
        self._consumer, self._topic, self._timeout = consumer, topic, timeout

    async def ends(self) -> dict[int, int]:
        """Where each partition ends, without what is not committed yet."""
        found = await self._consumer.end_offsets(list(self._consumer.assignment()))
        return {tp.partition: int(offset) for tp, offset in found.items()}

    async def between(self, starts: Mapping[int, int], ends: Mapping[int, int]) -> AsyncIterator[Sequence[Any]]:
        """The records from these offsets to those, some at a time; in the order of each partition."""
        left = {TopicPartition(self._topic, number) for number, end in ends.items() if starts.get(number, 0) < end}
        for tp in left:
            self._consumer.seek(tp, starts.get(tp.partition, 0))
        heard = time.monotonic()
        while left:
            self._consumer.resume(*left)
            for tp, records in (await self._consumer.getmany(*left, timeout_ms=200, max_records=SOME)).items():
                heard = time.monotonic()
                yield [record for record in records if record.offset < ends[tp.partition]]
            for tp in [tp for tp in left if await self._consumer.position(tp) >= ends[tp.partition]]:
                left.discard(tp)
                self._consumer.pause(tp)
            if time.monotonic() - heard > self._timeout:
                raise TimeoutError

    async def at(self, wanted: Mapping[int, Collection[int]]) -> AsyncIterator[Any]:
        """The records at these offsets."""
        for number, offsets in wanted.items():
            run: list[int] = []
            for offset in sorted(offsets):
                if run and offset > run[-1] + NEAR:
                    async for record in self._run(number, run):
                        yield record
                    run = []
                run.append(offset)
            async for record in self._run(number, run):
                yield record

    async def _run(self, number: int, offsets: Sequence[int]) -> AsyncIterator[Any]:
        these = set(offsets)
        async for records in self.between({number: offsets[0]}, {number: offsets[-1] + 1}):
            for record in records:
                if record.offset in these:
                    yield record
