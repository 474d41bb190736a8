"""The Kafka sink keeps the promises of every sink, against a real server."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from pydantic import SecretStr
from sink_contract import SECRET, SHAPE, Lab, Order, PartsContract, ServerOfParts, delete, put, text

from connectors.sinks import open_sink
from connectors.sinks.kafka import KafkaSink
from connectors.sinks.kafka_client import Client
from connectors.sinks.kafka_transaction import Message, Part, Producer, _bounded, parts
from connectors.sinks.parts import ONE, Parts
from pipeline.addresses import KafkaAddress
from pipeline.authoring.projection import kafka, projection
from pipeline.authoring.shape import Shape
from pipeline.demo.truth import kafka_documents, kafka_live, kafka_records
from pipeline.errors import DefinitionError, NotAllowed, SinkError, SinkUnavailable, TargetMissing
from pipeline.metadata import make_topics
from pipeline.ports import APPLIED, STALE, Rejected, Sink, Throttled, Write
from pipeline.reports.doctor import _documents_in_kafka as look_at_topics
from pipeline.settings import KafkaSettings, Settings
from pipeline.stack import stack as local_stack

pytestmark = [
    pytest.mark.stack,
    # aiokafka leaves a connection open that is cancelled while it is made; it is closed as garbage
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def garbage_of_its_own() -> Iterator[None]:
    """What is left behind here is not told of in another module's test."""
    yield
    gc.collect()


class KafkaServer:
    """The server, and a topic `<prefix>.orders` of which each test has its own."""

    def __init__(self, settings: Settings, prefix: str) -> None:
        self.settings, self.address = settings, settings.kafka_address()
        self.target, self.timeout = f"{prefix}.orders", 10.0

    def open(
        self, projection: str, *, shape: Shape = SHAPE, bulk_bytes: int = 900_000,
        address: KafkaAddress | None = None, parts: Parts = ONE, **options: object,
    ) -> KafkaSink:  # fmt: skip
        return KafkaSink(
            kafka=address or self.address, target=self.target, projection=projection, shape=shape,
            options={"partitions": 3} | options,
            settings=KafkaSettings(bulk_bytes=bulk_bytes, request_timeout=self.timeout), parts=parts,
        )  # fmt: skip

    def unreachable(self, projection: str) -> KafkaSink:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address = KafkaAddress(f"127.0.0.1:{port}", None, "me", SecretStr(SECRET), "PLAIN")
        return self.open(projection, address=address)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        admin = AIOKafkaAdminClient(**self.address.options())
        await admin.start()
        yield admin
        await admin.close()

    async def topics(self) -> list[str]:
        async with self.admin() as admin:
            return sorted(name for name in await admin.list_topics() if name.startswith(self.target))

    def documents(self, projection: str) -> str:
        return f"{self.target}.{projection.rpartition('-')[2]}"

    async def lose(self, projection: str) -> None:
        async with self.admin() as admin:
            await admin.delete_topics([self.documents(projection)])
        while self.documents(projection) in await self.topics():
            await asyncio.sleep(0.02)

    async def tell(self, topic: str, **settings: str) -> None:
        """Settings of a topic beside those that it has."""
        told = {"cleanup.policy": "compact"} | {name.replace("_", "."): value for name, value in settings.items()}
        async with self.admin() as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, told)])

            async def now() -> Mapping[str, str]:
                (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
                return {entry[0]: entry[1] for resource in answer.resources for entry in resource[4]}

            while not told.items() <= (await now()).items():
                await asyncio.sleep(0.02)

    async def block(self, projection: str, on: bool) -> None:
        # a disk of its own can't be filled here; this refuses all but the ends of transactions
        await self.tell(self.documents(projection), max_message_bytes="100" if on else "10485760")

    @contextmanager
    def silent(self) -> Iterator[None]:
        (pid,) = [service.pid for service in local_stack.status(self.settings).services if service.name == "kafka"]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def records(self, topic: str, **options: Any) -> list[Any]:
        return await kafka_records(topic, **self.address.options(), **options)

    async def visible(self) -> str | None:
        if not await self.records(self.target):
            return None
        return str((await kafka_documents(self.target, **self.address.options()))["which"]["note"])

    async def close(self) -> None:
        assert await self.topics() == []


@asynccontextmanager
async def _left_open(server: KafkaServer, topic: str, part: str = "") -> AsyncIterator[None]:
    """A worker has begun to write into each of the topic's partitions, and is killed."""
    killed = Client(server.address, "killed", 10)
    leaders = (await killed.topics(topic))[topic].leaders
    producer = Producer(await killed.connected(), f"cdc-{topic}{part}", 10)
    await producer.begin()
    sent = [Part(n, [Message(b"1", text(note="never").encode(), [("revision", b"99")])]) for n in leaders]
    writing = asyncio.create_task(producer.write(topic, leaders, sent))
    while any(part.offset < 0 for part in sent):
        await asyncio.sleep(0)
    writing.cancel()
    await killed.close()
    yield


class TestKafkaSink(PartsContract):
    @pytest.fixture
    def prefix(self) -> str:
        return f"t_{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def server(self, stack_settings: Settings, prefix: str) -> ServerOfParts:
        return KafkaServer(stack_settings, prefix)

    @pytest.fixture
    def own(self, server: KafkaServer) -> KafkaServer:
        return server

    async def test_consumers_get_the_text_as_it_was_written_and_what_they_need_to_know_of_it(
        self, lab: Lab, own: KafkaServer
    ) -> None:
        sink = await lab.prepared()
        document = '{"id": 1,  "note":"é"}'
        assert await sink.write([Write("a:b", 7, document)], 0) == [APPLIED]
        assert await sink.write([Write("a:b", 9, None)], 0) == [APPLIED]
        records = await own.records(f"{own.target}.v1")
        assert [(r.key, r.value) for r in records] == [(b"a:b", document.encode()), (b"a:b", None)]
        version = ("version", lab.projection(1).encode())
        assert [list(r.headers) for r in records] == [[("revision", b"7"), version], [("revision", b"9"), version]]

    async def test_an_id_is_where_other_producers_put_it(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        ids = [f"key {n}" for n in range(50)]
        await sink.write([Write(id, 5, text()) for id in ids], 0)
        async with AIOKafkaProducer(**own.address.options()) as producer:
            theirs = {id: (await producer.send_and_wait(f"{own.target}.v1", b"", id.encode())).partition for id in ids}
        ours = {r.key.decode(): r.partition for r in await own.records(f"{own.target}.v1") if r.value}
        assert ours == theirs and len(set(ours.values())) == 3

    @pytest.mark.edge_case(47)
    async def test_after_a_claim_an_older_owner_puts_nothing_into_the_log(self, lab: Lab, own: KafkaServer) -> None:
        old, new = await lab.prepared(), lab.sink()
        before = (await old.claim("a", 0)).epoch
        assert await put(old, "gone", 4, epoch=before) == APPLIED
        assert await delete(old, "gone", 5, epoch=before) == APPLIED
        after = (await new.claim("b", 0)).epoch
        there = len(await own.records(f"{own.target}.v1", isolation_level="read_uncommitted"))
        # the deletes of the old owner are forgotten, and yet it can't undo them
        assert await put(old, "gone", 6, epoch=before) == STALE
        assert await put(old, "never seen", 7, epoch=before) == STALE
        assert len(await own.records(f"{own.target}.v1", isolation_level="read_uncommitted")) == there
        # and has not ended what the new one may do
        assert await put(new, "1", 1, epoch=after) == APPLIED and await new.count() == 1

    @pytest.mark.edge_case(47)
    async def test_what_a_killed_worker_had_not_committed_is_never_seen(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1, note="committed")
        topic = f"{own.target}.v1"
        async with _left_open(own, topic):
            pass
        epoch = (await sink.claim("a", 0)).epoch
        assert await put(sink, "1", 2, epoch=epoch, note="next") == APPLIED
        seen = [json.loads(record.value)["note"] for record in await own.records(topic)]
        assert seen == ["committed", "next"] and await lab.sink().read(["1"]) == await sink.read(["1"])

    @pytest.mark.edge_case(38)
    async def test_what_another_partitions_killed_worker_left_open_is_waited_for(
        self, lab: Lab, own: KafkaServer, parts: tuple[Sink, Sink, Sink]
    ) -> None:
        """It hides what others commit behind it, so no record says that they can be read, and nobody counts them as missing."""
        one, two, both = parts
        record = await one.claim("a", 0)
        assert await put(one, "1", 1, epoch=record.epoch) == APPLIED
        topic = f"{own.target}.v1"
        async with _left_open(own, topic, "@1"):
            assert await put(one, "1", 2, epoch=record.epoch) == APPLIED
            saving, reading = asyncio.create_task(one.save(record)), asyncio.create_task(both.read(["1"]))
            _, waiting = await asyncio.wait({saving, reading}, timeout=1)
            assert waiting == {saving, reading}
        await two.claim("b", 0)
        await saving
        assert {id: stored.revision for id, stored in (await reading).items()} == {"1": record.epoch << 40 | 2}
        assert len(await own.records(topic)) == 2

    async def test_a_write_that_is_cut_off_anywhere_leaves_no_document_wrong(self, lab: Lab, own: KafkaServer) -> None:
        sink, again = await lab.prepared(), random.Random(1)
        for turn in range(1, 31):
            writes = [Write(str(n), turn * 10, text(note=f"{turn}")) for n in range(300)]
            writing = asyncio.create_task(sink.write(writes, 0))
            await asyncio.sleep(again.random() * 0.03)
            writing.cancel()
            await asyncio.wait([writing])
            assert set(await sink.write(writes, 0)) <= {APPLIED, STALE}
            assert await delete(sink, "0", turn * 10 + 1) == APPLIED
            last = {record.key: record.value for record in await own.records(f"{own.target}.v1")}
            assert last.pop(b"0") is None and len(last) == 299
            assert {json.loads(value)["note"] for value in last.values()} == {f"{turn}"}
            assert await put(sink, "0", turn * 10) == STALE

    async def test_another_process_knows_what_was_written_and_deleted(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 5)
        await put(sink, "2", 5)
        await delete(sink, "2", 6)
        assert await put(lab.sink(), "1", 5) == STALE and await put(lab.sink(), "2", 6) == STALE
        assert await delete(lab.sink(), "1", 4) == STALE and await put(lab.sink(), "2", 7) == APPLIED

    async def test_documents_far_apart_are_found(self, lab: Lab) -> None:
        sink = await lab.prepared()
        for start in range(0, 6000, 1000):
            await sink.write([Write(str(n), 1, text(note=f"{n}")) for n in range(start, start + 1000)], 0)
        wanted = [str(n) for n in range(3, 6000, 701)]
        found = await lab.sink().read([*wanted, "none"])
        assert {id: stored.document["note"] for id, stored in found.items()} == {id: id for id in wanted}

    async def test_the_record_is_found_behind_what_was_not_taken(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        record = await sink.claim("a", 0)
        await own.tell(f"{own.target}.v1.record", max_message_bytes="100")
        for _ in range(20):
            with pytest.raises(SinkUnavailable, match="refuses a record"):
                await sink.save(record)
        assert await lab.sink().record() == record
        await own.tell(f"{own.target}.v1.record", max_message_bytes="1000000")
        await sink.save(record)

    @pytest.mark.edge_case(48)
    async def test_a_document_that_the_topic_does_not_take_is_rejected_alone(self, lab: Lab) -> None:
        sink = await lab.prepared()
        writes = [Write("1", 1, text()), Write("2", 1, text(note="x" * 11_000_000)), Write("3", 1, text())]
        first, large, last = await sink.write(writes, 0)
        assert [first, last] == [APPLIED, APPLIED]
        assert isinstance(large, Rejected) and "11000" in large.reason and "MessageSizeTooLarge" in large.reason
        assert sorted(await sink.read(["1", "2", "3"])) == ["1", "3"]
        assert await put(sink, "2", 2) == APPLIED

    async def test_what_kafka_refuses_for_no_fault_of_a_document_waits(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        assert await put(sink, "1", 1, note="taken") == APPLIED
        # records that are a millisecond old; no server of several, of which some are away, is needed to see one refuse
        await own.tell(f"{own.target}.v1", message_timestamp_before_max_ms="0")
        for sequence in range(2, 20):
            outcomes = await sink.write([Write("1", sequence << 40, text(note="not taken")), Write("2", 1, None)], 0)
            if outcomes != [APPLIED, APPLIED]:  # within the same millisecond
                break
        for outcome in outcomes:
            assert isinstance(outcome, Throttled) and "InvalidTimestamp" in outcome.reason and outcome.retry_after > 0

    @pytest.mark.edge_case(51)
    async def test_who_follows_as_the_guide_says_is_where_readers_are(self, lab: Lab, own: KafkaServer) -> None:
        guide = Path(__file__).parents[2] / "docs/guides/kafka.md"
        (code,) = [part for part in guide.read_text().split("```") if "async def follow" in part]
        names: dict[str, Any] = {}
        exec(code.removeprefix("python\n"), names)
        sinks = [await lab.prepared(version) for version in (1, 2)]
        for version, sink in enumerate(sinks, start=1):
            await put(sink, "which", 1, note=f"v{version}")
            await put(sink, f"only {version}", 1)
        await sinks[0].switch()
        kept: dict[str, tuple[str, Any]] = {}

        async def keep() -> None:
            async for record in names["follow"](own.target, f"{own.target}.readers", **own.address.options()):
                version = dict(record.headers)["version"].decode()
                kept.pop(record.key.decode(), None)
                if record.value:
                    kept[record.key.decode()] = version, json.loads(record.value).get("note")

        async def become(*, note: str, version: int) -> None:
            async with asyncio.timeout(20):
                while kept.get("which") != (lab.projection(version), note):
                    await asyncio.sleep(0.02)

        following = asyncio.create_task(keep())
        try:
            await become(note="v1", version=1)
            await put(sinks[0], "which", 2, note="changed")
            await become(note="changed", version=1)
            await sinks[1].switch()
            await become(note="v2", version=2)
            assert {id: version for id, (version, _) in kept.items()} == {
                "only 1": lab.projection(1), "which": lab.projection(2), "only 2": lab.projection(2)
            }  # fmt: skip
            pointer = await kafka_live(own.target, **own.address.options())
            ends = {str(r.partition): r.offset + 1 for r in await own.records(f"{own.target}.v2")}
            assert all(pointer["ends"][number] >= end for number, end in ends.items())
            await sinks[0].switch()
            await put(sinks[0], "which", 3, note="back")
            await become(note="back", version=1)
            await delete(sinks[0], "which", 4)
            async with asyncio.timeout(20):
                while "which" in kept:
                    await asyncio.sleep(0.02)
        finally:
            following.cancel()
            await asyncio.wait([following])

    async def test_a_topic_from_which_kafka_deletes_is_refused(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        await own.tell(f"{own.target}.v1", cleanup_policy="delete")
        for attempt in (sink.prepare(), sink.claim("a", 0)):
            with pytest.raises(SinkError, match=r"cleanup.policy delete\): set it to compact"):
                await attempt

    async def test_the_topics_of_others_are_not_taken(self, lab: Lab, own: KafkaServer) -> None:
        async with AIOKafkaProducer(**own.address.options()) as producer:
            for topic, partitions in ((f"{own.target}.v2", 3), (own.target, 1)):
                async with own.admin() as admin:
                    made = NewTopic(topic, partitions, 1, topic_configs={"cleanup.policy": "compact"})
                    await make_topics(admin, [made])
                await producer.send_and_wait(topic, b"of others", b"key")
                with pytest.raises(SinkError, match=rf"{topic} is somebody else's: give the target another name"):
                    await lab.sink(2).prepare()
                async with own.admin() as admin:
                    await admin.delete_topics([topic])
                while topic in await own.topics():
                    await asyncio.sleep(0.02)
        await lab.prepared()
        other = own.open("returns-v1")
        with pytest.raises(SinkError, match=f"that of {lab.projection(1)}: give one of the two another name"):
            await other.prepare()
        await other.close()

    async def test_a_topic_made_anew_by_others_is_missed(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        record = await sink.claim("a", 0)
        await put(sink, "1", 1)
        await own.lose(lab.projection(1))
        async with own.admin() as admin:
            await make_topics(admin, [NewTopic(f"{own.target}.v1", 3, 1, topic_configs={"cleanup.policy": "compact"})])
        for attempt in (put(sink, "2", 1), sink.save(record), sink.claim("a", 0)):
            with pytest.raises(TargetMissing, match="cdc apply"):
                await attempt
        await sink.prepare()
        assert await sink.record() is None and await put(sink, "1", 1) == APPLIED

    async def test_other_partitions_take_a_new_version(self, lab: Lab, own: KafkaServer) -> None:
        sink = await lab.prepared()
        other = own.open(lab.projection(1), partitions=4)
        lab.opened.append(other)
        with pytest.raises(SinkError, match="has 3 partitions, and not 4: raise the projection's version"):
            await other.prepare()
        async with own.admin() as admin:
            await admin.create_partitions({f"{own.target}.v1": NewPartitions(4)})
            while len((await admin.describe_topics([f"{own.target}.v1"]))[0]["partitions"]) < 4:
                await asyncio.sleep(0.02)
        for attempt in (lambda: put(sink, "1", 1), lambda: sink.claim("a", 0)):
            with pytest.raises(SinkError, match=r"4 partitions, and was made with 3.*cdc rebuild"):
                await attempt()

    async def test_doctor_names_topics_from_which_documents_go(self, lab: Lab, own: KafkaServer) -> None:
        for version in (1, 2):
            await lab.prepared(version)
        await own.tell(f"{own.target}.v2", cleanup_policy="compact,delete")

        async def found() -> dict[str, tuple[str, str]]:
            looked = [f for f in await look_at_topics(own.settings) if own.target in f.subject]
            return {f.subject: (f.level, f.found) for f in looked}

        deletes = ("error", "cleanup.policy compact,delete: Kafka deletes documents")
        assert await found() == {f"documents {own.target}.v1": ("ok", "compact"), f"documents {own.target}.v2": deletes}
        await own.lose(lab.projection(1))
        assert (await found())[f"documents {own.target}.v1"][0] == "error"
        gone = Settings(kafka=KafkaSettings(bootstrap="127.0.0.1:9", username="me", password=SECRET))  # type: ignore[arg-type]
        (finding,) = await look_at_topics(gone)
        assert finding.level == "error" and "can't be reached" in finding.found and SECRET not in finding.found

    async def test_nothing_is_sent_when_it_is_not_allowed(self, lab: Lab) -> None:
        sink = await lab.prepared()
        answers = iter((True, False))
        for allowed in (lambda: False, lambda: next(answers)):
            with pytest.raises(NotAllowed):
                await sink.write([Write("1", 1, text())], 0, allowed)
        assert await sink.count() == 0

    async def test_a_server_that_falls_silent_is_told_in_time(self, lab: Lab, own: KafkaServer) -> None:
        await lab.prepared()
        own.timeout = 0.5
        sink = lab.sink()
        await put(sink, "1", 1)
        with own.silent():
            for attempt in (put(sink, "1", 2), sink.count(), sink.record(), sink.prepare()):
                start = time.monotonic()
                with pytest.raises(SinkUnavailable):
                    await attempt
                assert time.monotonic() - start < 4
        own.timeout = 10.0
        assert await put(lab.sink(), "1", 3) == APPLIED


def test_a_large_write_is_many_requests_of_bounded_size() -> None:
    messages = {number: [Message(b"%d" % n, b"x" * (n * 1000)) for n in range(1000)] for number in (3, 5)}
    sent = parts(messages, 900_000)
    assert all(part.size <= 900_000 or len(part.messages) == 1 for part in sent) and len(sent) < 1400
    assert {p: [m for part in sent if part.partition == p for m in part.messages] for p in messages} == messages
    many = parts({number: [Message(b"1", b"x" * 3_000_000)] for number in range(50)}, 900_000)
    assert [len(request) for request in _bounded(many)] == [2] * 25


def test_a_target_is_opened_with_the_settings() -> None:
    own = Settings(kafka=KafkaSettings(bootstrap="nowhere:9092", username="me", password=SECRET, withheld=["a.b.c"]))  # type: ignore[arg-type]
    assert SECRET not in json.dumps(own.shown()) + repr(own) and own.withheld("kafka") == ("a.b.c",)
    target = kafka("crm.orders", partitions=2)
    projected = projection(Order, to=target, version=3)
    assert projected.name == "orders"
    sink: Sink = open_sink(target, replace(projected, build=2), SHAPE, own)
    assert sink.name == "kafka:crm.orders.v3.2" and not sink.atomic


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": 1}, "no option replicas; known are partitions"),
        *[({"partitions": number}, "no number from 1 to 1000") for number in (0, -1, True, "6", 2.0, 1001)],
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        KafkaSink(
            kafka=KafkaAddress("there:9092"), target="o", projection="o-v1", shape=SHAPE, options=options,
            settings=KafkaSettings(),
        )  # fmt: skip
