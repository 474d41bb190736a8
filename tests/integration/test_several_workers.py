"""A read model moves from one worker to two and back, and what a number of workers can't do is said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pipeline.demo import truth
from pipeline.demo.shop import Load
from pipeline.engine.exchange import Frame
from pipeline.engine.owners import owner_of
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

ORDERS = (Path(__file__).parents[2] / "projections" / "orders.py").read_text()
TARGET = 'to=elasticsearch("orders")'


def _code(project: Project, more: str) -> None:
    text = ORDERS.replace(TARGET, f'to=elasticsearch("{project.name}-orders"){more}')
    project.write_projection("orders", text)


def _new_code(project: Project, more: str) -> None:
    """As it is deployed: `cdc apply`, and `cdc run` anew."""
    project.stop_workers()
    _code(project, more)
    project.cdc("apply", "--yes")
    project.start_run()


def _seen(project: Project) -> list[str]:
    return list(httpx.get(f"{project.endpoints.elasticsearch}/_alias/{project.name}-orders").json())


def _records(project: Project) -> list[str]:
    """Which parts have a checkpoint record."""
    url = f"{project.endpoints.elasticsearch}/cdc-checkpoints"
    httpx.post(f"{url}/_refresh")
    hits = httpx.post(f"{url}/_search", json={"size": 1000, "_source": False}).json()["hits"]["hits"]
    return sorted(hit["_id"] for hit in hits if hit["_id"].startswith(f"{project.name}-orders-"))


def _exchange(project: Project) -> str:
    """How its exchange topics' names begin."""
    return f"{project.name.replace('_', '-')}.exchange."


def _exchanges(project: Project) -> list[str]:
    """Exchange topics that there are."""

    async def found() -> list[str]:
        async with AIOKafkaConsumer(bootstrap_servers=project.endpoints.kafka) as consumer:
            return [topic for topic in await consumer.topics() if topic.startswith(_exchange(project))]

    return asyncio.run(found())


def _sent_from(project: Project, version: int) -> int:
    """The first offset of the orders' topic that went through the version's exchange topic."""

    async def starts() -> list[int]:
        topic = f"{_exchange(project)}{project.name}-orders-v{version}"
        async with AIOKafkaConsumer(
            topic, bootstrap_servers=project.endpoints.kafka, auto_offset_reset="earliest"
        ) as consumer:
            while True:
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    frames = [msgspec.msgpack.decode(record.value, type=Frame) for record in records]
                    if found := [frame.start for frame in frames if frame.source == f"{project.name}.shop.orders/0"]:
                        return found

    return min(asyncio.run(asyncio.wait_for(starts(), 30)))


def _right(project: Project) -> None:
    project.cdc("wait", f"{project.name}-orders", "--now", "--timeout", "90")
    project.assert_equal()


def test_a_live_read_model_gets_two_workers_by_a_rebuild_and_one_again(new_project: Callable[[str], Project]) -> None:
    project = new_project("it_several")
    project.create(orders=300)
    name = f"{project.name}-orders"
    project.start_run()
    project.wait_for(truth.position(project.dsn), seconds=120)
    load = Load(project.dsn, rate=20, seconds=300)
    load.start()

    _code(project, ", workers=2")
    refused = project.start_worker(number=1)
    assert refused.wait(60) == 78, "the number of workers is part of the version"
    assert "raise `version`" in project.log()

    _new_code(project, ", workers=2, version=2")
    project.cdc("rebuild", name)
    assert _seen(project) == [f"{name}-v2"], "verified, and cut over"
    found: dict[str, Any] = json.loads(project.cdc("status", name, "-o", "json", check=False).stdout)["projections"][0]
    assert (found["version"], len(found["partitions"])) == (2, 2)
    for seen in ("v1", "v2"):
        project.cdc("rollback", name, "--yes")
        assert _seen(project) == [f"{name}-{seen}"], "kept current with its own number of workers"

    project.sql("DELETE FROM shop.order_lines WHERE order_id = 7", "DELETE FROM shop.orders WHERE id = 7")
    erased = json.loads(project.cdc("erase", "shop.orders", "7", "--yes", "-o", "json").stdout)
    places = [(place["kind"], place["where"], place["after"]) for place in erased["places"] if place["kind"] == "row"]
    assert {("row", f"{name}-v2@{part}", 0) for part in (0, 1)} <= set(places)
    assert [place["where"].endswith(f".exchange.{name}-v2") for place in erased["places"]].count(True) == 1

    _new_code(project, ", workers=2, version=3")
    built = project.cdc("rebuild", name, "--keep", "0.001")
    assert f"built from the mirror: the mirror of {name}-v2 has every row and column" in built.stderr
    assert _seen(project) == [f"{name}-v3"]
    assert (_sent_from(project, 2), _sent_from(project, 3) > 300) == (0, True), (
        "what the mirrors have is not sent again"
    )

    _new_code(project, ", version=4")
    built = project.cdc("rebuild", name, "--keep", "0.001")
    assert "built from the log" in built.stderr
    assert "has 2 workers" in built.stderr
    assert _seen(project) == [f"{name}-v4"]
    load.stop()
    load.join(10)
    assert load.error is None
    _right(project)
    until(lambda: not any("@" in record for record in _records(project)), 120, f"builds of two go\n{project.log()}")
    until(lambda: not _exchanges(project), 30, lambda: f"and what went through them: {_exchanges(project)}")


@pytest.mark.edge_case(12)
def test_what_a_new_snapshot_left_out_and_what_nobody_can_decode_leave_all_partitions_at_a_word(
    new_project: Callable[[str], Project],
) -> None:
    project = new_project("it_several_logs")
    name = f"{project.name}-orders"
    project.create(orders=300, projections=(), own={"orders": ORDERS.replace(TARGET, f"{TARGET}, workers=2")})
    project.start_run()
    _right(project)

    def made_anew(*meanwhile: str) -> None:
        project.cdc("connector", "delete", project.name, "--drop-slot", "--yes")
        project.sql(*meanwhile)
        project.cdc("connector", "apply", project.name, "--yes")

    def held() -> list[bool]:
        return [bool(part["held"]) for part in project.status()["partitions"]]

    made_anew(
        "DELETE FROM shop.orders WHERE id BETWEEN 100 AND 120",
        "UPDATE shop.customers SET name = 'Meanwhile' WHERE id = 3",
    )
    _right(project)
    made_anew("DELETE FROM shop.orders WHERE id BETWEEN 121 AND 290")
    until(lambda: held() == [True, True], 60, lambda: f"the sweep is held: {project.status()}")
    counted = json.loads(project.cdc("sweep", name, "--dry-run", "-o", "json").stdout)
    assert counted["rows"]["shop.orders"] == [170, 279]
    assert counted["allowed"] is False
    assert project.document(200) is not None
    project.cdc("sweep", name, "--yes")
    until(lambda: not any(held()), 30, "the sweep is done")
    _right(project)

    def letters() -> list[int]:
        return [letter["id"] for letter in json.loads(project.cdc("deadletters", "list", "-o", "json").stdout)]

    asyncio.run(_send(project.endpoints.kafka, f"{project.name}.shop.customers", b"no key", b"no envelope"))
    until(lambda: len(letters()) == 2, 30, "each partition has the letter, for customers go to both")
    project.cdc("deadletters", "discard", name, *map(str, letters()), "--yes")
    assert letters() == []


def test_rows_that_are_wrong_in_a_partition_are_read_again_by_its_worker(new_project: Callable[[str], Project]) -> None:
    project = new_project("it_several_rows")
    name = f"{project.name}-orders"
    project.create(orders=300, projections=(), own={"orders": ORDERS.replace(TARGET, f"{TARGET}, workers=2")})
    project.start_run()
    _right(project)
    project.sql(
        "UPDATE shop.orders SET status = 'changed' WHERE id <= 40",
        "UPDATE shop.customers SET name = 'Changed' WHERE id = 3",
    )
    _right(project)

    def wrong_orders(where: str) -> None:
        for part in ("@0", "@1"):
            project.damage("orders", f"""UPDATE "shop.orders" SET status = 'wrong' WHERE {where}""", part=part)

    def wrong_customer(part: str) -> None:
        project.damage("orders", """UPDATE "shop.customers" SET name = 'Wrong' WHERE id = 3""", part=part)

    # what Kafka still has says it
    wrong_orders("id BETWEEN 5 AND 14")
    wrong_customer("@1")
    told = project.cdc("replay", name, "--since", "1d", "--dry-run", "-o", "json", check=False)
    assert told.returncode == 3, told.stderr
    report = json.loads(told.stdout)
    assert (report["wrong"], report["undecodable"]) == (11, 0)
    mended = json.loads(project.cdc("replay", name, "--since", "1d", "-o", "json").stdout)["repaired"]
    assert (mended["refreshed"], mended["left"]) == (11, [])
    _right(project)

    # what is written says it, and to write it again from the mirror is not enough
    wrong_customer("@0")
    project.sql("UPDATE shop.orders SET status = 'again' WHERE customer_id = 3")
    project.cdc("wait", name, "--now", "--timeout", "90")
    seen = project.cdc("verify", name, "--all", "-o", "json", check=False)
    assert seen.returncode == 3, seen.stderr
    differing = [found["id"] for found in json.loads(seen.stdout)["sinks"][0]["differences"]]
    assert differing
    assert {owner_of(id, 2) for id in differing} == {0}
    project.cdc("verify", name, "--all", "--repair")
    _right(project)

    # what nobody can decode was a change of these rows
    def letters() -> list[int]:
        return [letter["id"] for letter in json.loads(project.cdc("deadletters", "list", "-o", "json").stdout)]

    wrong_orders("id IN (7, 8)")
    wrong_customer("@0")
    wrong_customer("@1")
    for table, key in (("orders", b'{"id":7}'), ("orders", b'{"id":8}'), ("customers", b'{"id":3}')):
        asyncio.run(_send(project.endpoints.kafka, f"{project.name}.shop.{table}", key, b"no envelope"))
    until(lambda: len(letters()) == 4, 30, lambda: f"customers go to both: {letters()}")
    tried = json.loads(project.cdc("deadletters", "retry", name, "--all", "-o", "json").stdout)
    assert (len(tried["retried"]), tried["left"], letters()) == (4, [], [])
    _right(project)


async def _send(bootstrap: str, topic: str, key: bytes, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait(topic, value, key=key)
