"""What whole-poll delivery promises on a real Kafka, defect by defect of stock Faust (docs/decisions/0002)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

import faust
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.consumer import fetcher
from aiokafka.structs import TopicPartition
from faust.exceptions import AlreadyConfiguredWarning
from faust.types import TP

from pipeline.runtime.assignors import OldestTakesAll
from pipeline.runtime.batches import SHORT_WAIT_MS, Batch, NoTables, batch_topic, install, now
from pipeline.settings import Endpoints

pytestmark = [
    pytest.mark.stack,
    # Faust and aiokafka leave these behind when an app is stopped inside a test's loop
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Store:
    """Positions kept in memory: what a mirror is to the worker. It outlives the reader, as a file would."""

    def __init__(self) -> None:
        self.offsets: dict[TP, int] = {}
        self.values: list[bytes] = []
        self.batches = 0
        self.assignments: list[set[TP]] = []
        self.fail_at: bytes | None = None
        self.failed = asyncio.Event()
        self.lost: dict[TP, int] = {}
        self.open = asyncio.Event()
        """Whether anything is taken."""
        self.open.set()
        self.seconds = 0.0
        """How long it takes to say from where on."""

    async def assigned(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        self.assignments.append(set(partitions))
        await asyncio.sleep(self.seconds)
        return {tp: self.offsets.get(tp, 0) for tp in self.assignments[-1]}

    async def revoked(self) -> None:
        pass

    def durable(self) -> Mapping[TP, int]:
        return dict(self.offsets)

    def gone(self, offsets: Mapping[TP, int]) -> None:
        self.lost = dict(offsets)

    def apply(self, batch: Batch) -> None:
        """All of a batch or nothing, with its offset: a checkpoint."""
        values = [value for _, _, value in batch.records if value is not None]
        if self.fail_at in values:
            self.failed.set()
            raise RuntimeError("nobody foresaw it")
        self.values += values
        self.offsets[batch.tp] = batch.records[-1][0] + 1
        self.batches += 1


class Reader:
    """A Faust app that reads one topic into a store."""

    def __init__(self, bootstrap: str, group: str, topic: str, store: Store, folder: str) -> None:
        self.store = store
        self.app = faust.App(
            group, broker=f"kafka://{bootstrap}", store="memory://", datadir=folder, web_enabled=False,
            topic_disable_leader=True, topic_allow_declare=False, table_standby_replicas=0,
            consumer_auto_offset_reset="none", stream_wait_empty=False, stream_buffer_maxsize=8,
            broker_commit_interval=0.3, broker_session_timeout=10, broker_heartbeat_interval=1, autodiscover=False,
            TableManager=NoTables,
        )  # fmt: skip
        install(self.app, store)

        async def read(stream: Any) -> None:
            async for event in stream.noack().events():
                await store.open.wait()
                if not event.value.stale():
                    store.apply(event.value)

        self.app.agent(batch_topic(self.app, [topic]), name="read")(read)

    async def __aenter__(self) -> Reader:
        self.app.finalize()
        await self.app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wait_for(self.app.stop(), 15)


async def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def make_topic(bootstrap: str, partitions: int = 1) -> str:
    topic = f"faust.{uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1)])
    finally:
        await admin.close()
    return topic


async def send(bootstrap: str, topic: str, values: Iterable[bytes], **options: Any) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, **options) as producer:
        for value in values:
            await producer.send(topic, value)
        await producer.flush()


async def committed(reader: Reader, topic: str) -> int | None:
    consumer = reader.app.consumer._thread._consumer
    found = await reader.app.consumer._thread.call_thread(consumer.committed, TopicPartition(topic, 0))
    return None if found is None else int(found)


async def test_every_record_once_and_in_whole_polls(stack: Endpoints, tmp_path: Any) -> None:
    topic, store = await make_topic(stack.kafka), Store()
    values = [b"%d" % n for n in range(5000)]
    await send(stack.kafka, topic, values)
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)):
        await until(lambda: len(store.values) >= 5000)
    assert store.values == values
    assert store.batches < 100


async def test_an_exception_acknowledges_nothing_and_what_failed_is_read_again(stack: Endpoints, tmp_path: Any) -> None:
    """Defects 1, 2, 3 and 11: stock Faust acknowledges the event, or the whole buffer, that an agent failed on."""
    topic, store = await make_topic(stack.kafka), Store()
    store.fail_at = b"5"
    await send(stack.kafka, topic, [b"%d" % n for n in range(10)], linger_ms=50)
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        await store.failed.wait()
        await asyncio.sleep(1)  # several commit intervals pass
        assert b"5" not in store.values
        reached = store.offsets.get(TP(topic, 0), 0)
        assert (await committed(reader, topic) or 0) <= reached <= 5
    store.fail_at = None
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)):
        await until(lambda: len(store.values) >= 10)
    assert store.values == [b"%d" % n for n in range(10)]


async def test_the_store_wins_over_kafkas_committed_offset(stack: Endpoints, tmp_path: Any) -> None:
    topic, store = await make_topic(stack.kafka), Store()
    await send(stack.kafka, topic, [b"a", b"b", b"c"])
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        await until(lambda: len(store.values) == 3)
        async with asyncio.timeout(20):
            while await committed(reader, topic) != 3:
                await asyncio.sleep(0.05)
    older = Store()
    older.offsets[TP(topic, 0)] = 1  # a mirror that was restored from a snapshot
    async with Reader(stack.kafka, topic, topic, older, str(tmp_path)):
        await until(lambda: len(older.values) == 2)
    assert older.values == [b"b", b"c"]


async def test_positions_that_take_longer_than_a_request_may_are_waited_for(stack: Endpoints, tmp_path: Any) -> None:
    """Stock takes it for its own end, and reads nothing for the rest of its life; a mirror may have to be fetched first."""
    topic, store = await make_topic(stack.kafka), Store()
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        await until(lambda: store.assignments)
        with pytest.warns(AlreadyConfiguredWarning):
            reader.app.conf.broker_request_timeout = 1.0  # what a recovery waits; the client has its own by now
        store.seconds = 4.0
        thread = reader.app.consumer._thread
        await thread.call_thread(thread._consumer._coordinator.request_rejoin)
        await until(lambda: len(store.assignments) == 2)
        await send(stack.kafka, topic, [b"a", b"b"])
        await until(lambda: store.values == [b"a", b"b"])


async def test_a_member_that_is_stopped_amid_a_rebalance_ends(stack: Endpoints, tmp_path: Any) -> None:
    """Its thread does not wait for positions that nobody gives any more: it would keep the partitions, heartbeat by heartbeat."""
    topic, store = await make_topic(stack.kafka), Store()
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        store.seconds = 300.0
        thread = reader.app.consumer._thread
        await thread.call_thread(thread._consumer._coordinator.request_rejoin)
        await until(lambda: len(store.assignments) == 2)
    assert not reader.app.consumer._thread._thread.is_alive()


async def test_a_transactional_topic_is_read_to_its_end_and_committed(stack: Endpoints, tmp_path: Any) -> None:
    """Defects 5 and 6: holes in the offsets (markers, compaction) stop stock Faust's commits."""
    topic, store = await make_topic(stack.kafka), Store()
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka, transactional_id=topic) as producer:
        for n in range(20):
            async with producer.transaction():
                await producer.send(topic, b"kept %d" % n)
        with pytest.raises(RuntimeError):
            async with producer.transaction():
                await producer.send_and_wait(topic, b"aborted")
                raise RuntimeError
        async with producer.transaction():
            await producer.send(topic, b"last")
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        await until(lambda: b"last" in store.values)
        async with asyncio.timeout(20):
            while await committed(reader, topic) != store.offsets[TP(topic, 0)]:
                await asyncio.sleep(0.05)
    assert len(store.values) == 21 and b"aborted" not in store.values


async def test_one_member_reads_all_and_the_other_takes_over(stack: Endpoints, tmp_path: Any) -> None:
    """Defect 7: stock Faust throws away what was processed and not committed when partitions move."""
    topic, store = await make_topic(stack.kafka, partitions=3), Store()
    other = Store()
    other.offsets = store.offsets  # as one mirror that both know
    await send(stack.kafka, topic, [b"%d" % n for n in range(300)])
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path / "a")) as first:
        await until(lambda: len(store.values) == 300)
        async with Reader(stack.kafka, topic, topic, other, str(tmp_path / "b")) as second:
            await until(lambda: len(other.assignments) == 1 and len(store.assignments) == 2)
            # Faust can't be stopped within a rebalance: the group would wait for who has not left it
            await until(lambda: not (first.app.rebalancing or second.app.rebalancing))
            both = [store.assignments[-1], other.assignments[-1]]
            assert sorted(map(len, both)) == [0, 3]
            await first.app.stop()
            await until(lambda: len(other.assignments[-1]) == 3)
            await send(stack.kafka, topic, [b"after"])
            await until(lambda: b"after" in other.values + store.values)
    assert sorted(store.values + other.values) == sorted([b"%d" % n for n in range(300)] + [b"after"])


async def test_members_that_come_and_go_under_load_leave_no_hole_in_what_is_read(
    stack: Endpoints, tmp_path: Any
) -> None:
    """A poll that a rebalance overtakes is read again; one from Kafka's committed offset is never taken for ours."""
    topic, store, sent, over = await make_topic(stack.kafka, partitions=4), Store(), [0] * 4, asyncio.Event()

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=stack.kafka) as producer:
            while not over.is_set():
                for partition in range(4):
                    await producer.send(topic, b"%d:%d" % (partition, sent[partition]), partition=partition)
                    sent[partition] += 1
                await asyncio.sleep(0.005)
            await producer.flush()

    producing = asyncio.create_task(produce())
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path / "a")):
        await until(lambda: store.values)
        for n in range(5):
            other = Store()
            async with Reader(stack.kafka, topic, topic, other, str(tmp_path / f"b{n}")) as second:
                await until(lambda other=other: other.assignments)
                await until(lambda second=second: not second.app.rebalancing)
            reached = len(store.values)
            await until(lambda reached=reached: len(store.values) > reached)
        over.set()
        await producing
        await until(lambda: len(store.values) >= sum(sent))
    for partition in range(4):
        mine = [value for value in store.values if value.startswith(b"%d:" % partition)]
        assert mine == [b"%d:%d" % (partition, n) for n in range(sent[partition])]


async def test_a_request_that_leaves_out_a_busy_partition_does_not_wait_for_the_idle_ones(
    stack: Endpoints, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock waits a second and a half for data of the idle ones, and asks for nothing of the busy one meanwhile."""
    topic, store, asked = await make_topic(stack.kafka, partitions=2), Store(), list[tuple[int, set[int]]]()

    class Asked(fetcher.FetchRequest):  # type: ignore[misc]
        def __init__(self, wait: int, *others: Any, **options: Any) -> None:
            super().__init__(wait, *others, **options)
            asked.append((wait, {number for _, of in self.topics for number, _, _ in of}))

    monkeypatch.setattr(fetcher, "FetchRequest", Asked)
    store.open.clear()
    async with (
        Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader,
        AIOKafkaProducer(bootstrap_servers=stack.kafka) as producer,
    ):
        await until(lambda: store.assignments)
        sent = 0
        while (SHORT_WAIT_MS, {1}) not in asked:  # until nobody takes any more of the first partition
            await producer.send_and_wait(topic, b"%d" % sent, partition=0)
            sent += 1
        store.open.set()
        await until(lambda: len(store.values) == sent)
        patience = reader.app.consumer._thread._consumer._fetch_max_wait_ms
        await until(lambda: asked[-1] == (patience, {0, 1}))
    assert patience > SHORT_WAIT_MS and {wait for wait, of in asked if of == {1}} == {SHORT_WAIT_MS}


async def test_the_group_is_heard_for_as_long_as_it_answers(stack: Endpoints, tmp_path: Any) -> None:
    topic, store = await make_topic(stack.kafka), Store()
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        await until(lambda: store.assignments)
        first = reader.app.consumer.heard
        assert 0 <= now() - first < 10
        await until(lambda: reader.app.consumer.heard > first)
        coordinator = reader.app.consumer._thread._consumer._coordinator
        coordinator.member_id = "nobody"  # as after an expulsion: the group answers, and says no
        last = reader.app.consumer.heard
        await until(lambda: coordinator.member_id != "nobody")
        assert reader.app.consumer.heard == last
        await until(lambda: reader.app.consumer.heard > last)


async def test_offsets_that_kafka_no_longer_has_are_told(stack: Endpoints, tmp_path: Any) -> None:
    topic, store = await make_topic(stack.kafka), Store()
    await send(stack.kafka, topic, [b"a", b"b", b"c"])
    store.offsets[TP(topic, 0)] = 77
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)):
        await until(lambda: store.lost)
    assert store.lost == {TP(topic, 0): 77} and not store.values


def test_the_oldest_member_keeps_everything_whoever_comes() -> None:
    class Cluster:
        def partitions_for_topic(self, topic: str) -> set[int]:
            return {0, 1}

    metadata = OldestTakesAll.metadata(["a"])
    older = type(metadata)(metadata.version, metadata.subscription, b"1")
    assigned = OldestTakesAll.assign(Cluster(), {"new": metadata, "old": older})  # type: ignore[arg-type]
    assert [(topic, list(numbers)) for topic, numbers in assigned["old"].assignment] == [("a", [0, 1])]
    assert assigned["new"].assignment == []


async def test_a_member_that_the_group_has_put_out_comes_back_as_the_youngest(stack: Endpoints, tmp_path: Any) -> None:
    """However short the time was for which it did not run: the group says so, no clock of its own."""
    topic, store = await make_topic(stack.kafka), Store()
    await send(stack.kafka, topic, [b"a"])
    async with Reader(stack.kafka, topic, topic, store, str(tmp_path)) as reader:
        await until(lambda: store.values)
        before = OldestTakesAll.member_since
        reader.app.consumer._thread._ensure_consumer()._coordinator.member_id = "put-out"
        await until(lambda: OldestTakesAll.member_since > before)
        await send(stack.kafka, topic, [b"b"])
        await until(lambda: store.values[-1] == b"b")
