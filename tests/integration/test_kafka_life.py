"""Topics that change under a worker: more partitions, records gone, topics made anew, a forgotten group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from pipeline.demo import truth
from pipeline.demo.shop import Load
from pipeline.runtime.worker import EXIT_STOP_AND_SAY
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_kafka")
    project.create()
    project.start_worker()
    project.wait_for(truth.position(project.dsn))
    yield project


def admin(shop: Project, work: Callable[[AIOKafkaAdminClient], Any]) -> Any:
    async def run() -> Any:
        client = AIOKafkaAdminClient(bootstrap_servers=shop.endpoints.kafka)
        await client.start()
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(run())


def topic(shop: Project, table: str) -> str:
    return f"{shop.name}.shop.{table}"


@pytest.mark.edge_case(36)
def test_partitions_that_are_added_are_read_and_no_row_loses_its_order(shop: Project) -> None:
    wider = {topic(shop, table): NewPartitions(5) for table in ("orders", "order_lines")}
    admin(shop, lambda client: client.create_partitions(wider))
    shop.cdc("connector", "restart", shop.name, "--yes")  # its producer sees the new partitions at once
    load = Load(shop.dsn, rate=40, seconds=60)
    load.start()
    try:
        until(lambda: f"{topic(shop, 'orders')}/4" in shop.mirror_offsets(), 60, "the new partitions are read")
    finally:
        load.stop()
        load.join(10)
    assert load.error is None
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert any(shop.mirror_offsets()[f"{topic(shop, 'orders')}/{n}"] for n in range(1, 5)), "rows came that way"


@pytest.mark.edge_case(37)
def test_a_groups_offsets_that_somebody_reset_change_nothing_for_the_mirror_has_its_own(shop: Project) -> None:
    shop.stop_workers()
    position = shop.sql("UPDATE shop.orders SET status = 'while nobody read' WHERE id <= 20")
    name, group = topic(shop, "orders"), f"{shop.name.replace('_', '-')}-{shop.name}-orders-v1"
    until(lambda: sum(ends(shop, name).values()) > sum(read(shop, name).values()), 30, "the changes are in Kafka")
    # a static member is one until its session is over
    until(lambda: asyncio.run(_commit(shop.endpoints.kafka, group, name)), 60, "the group's offsets are at the end")
    worker = shop.start_worker()
    shop.wait_for(position)
    shop.assert_equal()
    assert worker.poll() is None


async def _commit(bootstrap: str, group: str, name: str) -> bool:
    """Say for the group that all was read; False while it has members."""
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False) as consumer:
        await consumer.topics()
        partitions = [TopicPartition(name, n) for n in await _partitions(bootstrap, name)]
        consumer.assign(partitions)
        try:
            await consumer.commit(await consumer.end_offsets(partitions))
        except KafkaError:
            return False
    return True


async def _partitions(bootstrap: str, name: str) -> list[int]:
    return list(await _ends(bootstrap, name))


@pytest.mark.edge_case(35, 37)
def test_records_gone_before_they_were_read_stop_the_worker_which_says_so(shop: Project) -> None:
    shop.stop_workers()
    shop.sql("UPDATE shop.orders SET status = 'lost' WHERE id <= 20")
    name = topic(shop, "orders")
    until(lambda: sum(ends(shop, name).values()) > sum(read(shop, name).values()), 30, "the changes are in Kafka")
    gone = {TopicPartition(name, n): RecordsToDelete(before_offset=end) for n, end in ends(shop, name).items() if end}
    admin(shop, lambda client: client.delete_records(gone))
    worker = shop.start_worker()
    assert worker.wait(60) == EXIT_STOP_AND_SAY
    assert "LogTruncated" in shop.log() and "changes are missing" in shop.log()
    assert "LogTruncated" in str(shop.status())
    order = shop.document(1)
    assert order is not None and order["status"] != "lost", "nothing was written past the gap"


@pytest.mark.edge_case(37)
def test_a_topic_that_was_made_anew_stops_the_worker_even_when_it_is_long_again(
    new_project: Callable[[str], Project],
) -> None:
    shop = new_project("it_anew")
    shop.create(orders=20)
    shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    shop.stop_workers()
    shop.cdc("connector", "pause", shop.name, "--yes")
    name = topic(shop, "orders")
    admin(shop, lambda client: client.delete_topics([name]))
    until(lambda: name not in admin(shop, lambda client: client.list_topics()), 30, "the topic is gone")
    admin(shop, lambda client: client.create_topics([NewTopic(name, 1, 1)]))
    shop.cdc("connector", "resume", shop.name)
    for n in range(5):
        shop.sql(f"UPDATE shop.orders SET status = 'anew {n}'")
    until(lambda: sum(ends(shop, name).values()) >= 100, 30, "the new topic is longer than the old one was")
    assert shop.start_worker().wait(60) == EXIT_STOP_AND_SAY
    assert "made anew" in shop.log()


@pytest.mark.edge_case(35)
def test_a_compacted_topic_has_holes_and_its_documents_are_right(new_project: Callable[[str], Project]) -> None:
    """Of a row only the newest change is left, so no transaction is whole, and each END counts more than there is.

    They are released as they are once they have waited, all at the same time.
    """
    shop = new_project("it_compact")
    shop.create(orders=30)
    name, policy = topic(shop, "orders"), {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.001"}
    fast = {**policy, "segment.ms": "100", "delete.retention.ms": "0"}
    configure(shop, name, fast)
    for n in range(12):
        shop.sql(f"UPDATE shop.orders SET status = 'round {n}'", f"UPDATE shop.customers SET name = 'round {n}'")
    shop.sql("DELETE FROM shop.order_lines WHERE order_id = 30", "DELETE FROM shop.orders WHERE id = 30")

    def compacted() -> bool:
        shop.sql("UPDATE shop.orders SET status = 'and on' WHERE id = 1")  # a new segment: the old ones may be cleaned
        return asyncio.run(_records(shop.endpoints.kafka, name)) < 200 < ends(shop, name)[0]

    until(compacted, 120, "the topic is compacted")
    configure(shop, name, policy)  # what comes now lies in one segment, which is not cleaned
    worker = shop.start_worker()
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'afterwards' WHERE id <= 5"))
    shop.assert_equal()
    assert worker.poll() is None and shop.status()["dead_letters"] == 0


def configure(shop: Project, name: str, settings: dict[str, str]) -> None:
    config = ConfigResource(ConfigResourceType.TOPIC, name, settings)
    admin(shop, lambda client: client.alter_configs([config]))


async def _records(bootstrap: str, name: str) -> int:
    """How many there are, from the first offset to the end."""
    async with AIOKafkaConsumer(name, bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        found = await consumer.end_offsets(list(consumer.assignment()))
        count = 0
        while any([await consumer.position(tp) < end for tp, end in found.items()]):
            count += sum(map(len, (await consumer.getmany(timeout_ms=500)).values()))
    return count


def ends(shop: Project, name: str) -> dict[int, int]:
    return asyncio.run(_ends(shop.endpoints.kafka, name))


async def _ends(bootstrap: str, name: str) -> dict[int, int]:
    async with AIOKafkaConsumer(name, bootstrap_servers=bootstrap) as consumer:
        found = await consumer.end_offsets(list(consumer.assignment()))
    return {tp.partition: end for tp, end in found.items()}


def read(shop: Project, name: str) -> dict[int, int]:
    return {
        int(partition.rpartition("/")[2]): offset
        for partition, offset in shop.mirror_offsets().items()
        if partition.startswith(f"{name}/")
    }
