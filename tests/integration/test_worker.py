"""A worker on the real stack: changes in Postgres become documents in Elasticsearch."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.demo import truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_worker")
    project.create(projections=("orders", "customers"))
    project.start_worker()
    project.start_worker(f"{project.name}-customers")
    yield project


def test_the_first_sync_gives_every_document(shop: Project) -> None:
    position = truth.position(shop.dsn)
    shop.wait_for(position)
    shop.wait_for(position, name="customers")
    shop.assert_equal()
    shop.assert_equal("customers", truth.CUSTOMERS)


def test_a_change_in_any_joined_table_arrives(shop: Project) -> None:
    shop.wait_for(
        shop.sql(
            "UPDATE shop.orders SET status = 'sent' WHERE id = 10",
            "UPDATE shop.customers SET name = 'Ada' WHERE id = (SELECT customer_id FROM shop.orders WHERE id = 10)",
            "UPDATE shop.products SET title = 'Sencha' WHERE id = (SELECT product_id FROM shop.order_lines"
            " WHERE order_id = 10 AND line_no = 1)",
        )
    )
    order = shop.document(10)
    assert order is not None
    assert order["status"] == "sent" and order["customer"]["name"] == "Ada"
    assert order["lines"][0]["product"]["title"] == "Sencha"
    shop.assert_equal()


@pytest.mark.edge_case(41)
def test_a_line_that_moves_leaves_one_order_and_enters_the_other(shop: Project) -> None:
    shop.wait_for(
        shop.sql("UPDATE shop.order_lines SET order_id = 12, line_no = 9 WHERE order_id = 11 AND line_no = 3")
    )
    left, entered = shop.document(11), shop.document(12)
    assert left is not None and entered is not None
    assert [line["line_no"] for line in left["lines"]] == [1, 2]
    assert [line["line_no"] for line in entered["lines"]] == [1, 2, 3, 9]


@pytest.mark.edge_case(43)
def test_a_deleted_order_is_gone_and_may_come_back(shop: Project) -> None:
    shop.wait_for(shop.sql("DELETE FROM shop.orders WHERE id = 13"))
    assert shop.document(13) is None
    shop.wait_for(shop.sql("INSERT INTO shop.orders VALUES(13, 1, 'new', now(), 0)"))
    order = shop.document(13)
    assert order is not None and order["lines"] == []


@pytest.mark.edge_case(43)
def test_a_soft_deleted_customer_leaves_and_returns(shop: Project) -> None:
    shop.wait_for(shop.sql("UPDATE shop.customers SET deleted_at = now() WHERE id = 2"), name="customers")
    assert shop.document(2, "customers") is None
    shop.wait_for(shop.sql("UPDATE shop.customers SET deleted_at = NULL WHERE id = 2"), name="customers")
    assert shop.document(2, "customers") is not None
    shop.assert_equal("customers", truth.CUSTOMERS)


@pytest.mark.edge_case(6)
def test_a_changed_key_moves_the_document(shop: Project) -> None:
    shop.wait_for(
        shop.sql("DELETE FROM shop.order_lines WHERE order_id = 14", "UPDATE shop.orders SET id = 100014 WHERE id = 14")
    )
    assert shop.document(14) is None
    assert shop.document(100014) is not None


@pytest.mark.edge_case(9)
def test_a_truncate_empties_what_hung_on_it(shop: Project) -> None:
    shop.wait_for(
        shop.sql(
            "TRUNCATE shop.order_lines",
            "UPDATE shop.orders SET charged = 0",
            "INSERT INTO shop.order_lines VALUES(15, 1, 1, 2, 3.50)",
            "UPDATE shop.orders SET charged = 7 WHERE id = 15",
        )
    )
    shop.assert_equal()


@pytest.mark.edge_case(39)
def test_the_watermark_moves_on_an_idle_source(shop: Project) -> None:
    before = shop.watermark()
    until(lambda: shop.watermark() > before, 15, "the watermark moves by heartbeats alone")
    behind = shop.status()["behind"]
    assert behind is not None and behind < 10


@pytest.mark.edge_case(53)
def test_what_the_watermark_claims_is_there(shop: Project) -> None:
    for n in range(20):
        position = shop.sql(f"UPDATE shop.orders SET status = 'claim{n}' WHERE id IN (16, 17, 18)")
        shop.wait_for(position)
        orders = [shop.document(key) for key in (16, 17, 18)]
        assert [order and order["status"] for order in orders] == [f"claim{n}"] * 3


async def _send(bootstrap: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait(topic, value, key=b'{"id":1}')


def test_an_event_that_cannot_be_decoded_is_a_dead_letter_and_the_stream_goes_on(shop: Project) -> None:
    asyncio.run(_send(shop.endpoints.kafka, f"{shop.name}.shop.orders", b'{"op": "u", "no": "envelope"}'))
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'after' WHERE id = 19"))
    order = shop.document(19)
    assert order is not None and order["status"] == "after"
    status = shop.status()
    assert status["dead_letters"] == 1 and status["attention"]
    listed = shop.cdc("deadletters", "list", "-o", "json").stdout
    assert "MalformedEnvelope" in listed and "no" in listed
    assert shop.cdc("status", f"{shop.name}-orders", check=False).returncode == 4
    shop.cdc("deadletters", "discard", f"{shop.name}-orders", "1", "--yes")
    assert shop.status()["dead_letters"] == 0


def test_a_second_worker_stands_by_and_takes_over(shop: Project) -> None:
    first = shop.workers[0]
    second = shop.start_worker()
    until(lambda: "standing by" in shop.log(200), 30, "the second worker says that it stands by")
    first.kill()
    first.wait()
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'taken over' WHERE id = 20"))
    order = shop.document(20)
    assert order is not None and order["status"] == "taken over"
    assert second.poll() is None


def test_sigterm_ends_a_worker_within_seconds(shop: Project) -> None:
    worker = shop.workers[-1]
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert time.monotonic() - began < 12
    assert shop.said()["state"] == "stopped"


def test_a_document_the_authors_code_fails_on_is_quarantined_and_the_others_are_written(shop: Project) -> None:
    text = (shop.folder / "projections" / "customers.py").read_text()
    text = text.replace(f"{shop.name}-customers", f"{shop.name}-fragile").replace(
        "        return self.deleted_at is None",
        '        if self.name == "boom":\n            raise ValueError("this name is not allowed")\n        return True',
    )
    shop.write_projection("fragile", text.replace("customers = projection", "fragile = projection"))
    shop.sql("UPDATE shop.customers SET name = 'boom' WHERE id = 3")
    shop.cdc("apply", "--yes")
    shop.start_worker(f"{shop.name}-fragile")
    shop.wait_for(truth.position(shop.dsn), name="fragile")
    assert shop.document(3, "fragile") is None and shop.document(4, "fragile") is not None
    listed = shop.cdc("quarantine", "list", "-o", "json").stdout
    assert "this name is not allowed" in listed
    shop.wait_for(shop.sql("UPDATE shop.customers SET name = 'calm' WHERE id = 3"), name="fragile")
    assert shop.document(3, "fragile") is not None
    assert shop.status("fragile")["quarantined"] == 0


def test_every_line_that_the_workers_logged_is_an_object(shop: Project) -> None:
    lines = [json.loads(line) for line in shop.log(10_000).splitlines()]
    said = [line["message"] for line in lines if line["projection"] == f"{shop.name}-orders"]
    assert any("epoch 1 claimed" in message for message in said), said
    assert all({"at", "level", "logger"} <= set(line) for line in lines)
