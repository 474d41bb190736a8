"""`cdc erase` on the real stack: a row that its owner deleted is nowhere any more, whatever was left of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pipeline.demo import shop, truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack
NAMES = ("customers", "orders", "order_saga")


@pytest.fixture(scope="module")
def sold(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_erase")
    project.create(orders=40, projections=NAMES, more=True)
    for name in NAMES:
        project.start_worker(f"{project.name}-{name}")
    project.sql("ALTER TABLE shop.orders DROP CONSTRAINT orders_customer_id_fkey")
    for name in NAMES:
        project.wait_for(truth.position(project.dsn), name=name)
    yield project


def erased(sold: Project, *arguments: str, code: int = 0) -> dict[tuple[str, str], tuple[Any, Any]]:
    """Each place, with how often the row was there before and after."""
    done = sold.cdc("erase", *arguments, "-o", "json", check=False)
    assert done.returncode == code, f"{done.stdout}{done.stderr}\n{sold.log()}"
    places = json.loads(done.stdout)["places"]
    return {(p["kind"], p["where"].replace(f"{sold.name}-", "")): (p["before"], p["after"]) for p in places}


def value(sold: Project, query: str) -> Any:
    with psycopg.connect(sold.dsn) as db:
        (found,) = db.execute(query.encode()).fetchone() or (None,)
    return found


def test_what_is_still_in_the_source_is_not_erased(sold: Project) -> None:
    done = sold.cdc("erase", "shop.customers", "4", "--yes", check=False)
    assert done.returncode == 1 and "shop.customers 4 is still in the source" in done.stderr
    done = sold.cdc("erase", "shop.order_lines", "4", "--yes", check=False)
    assert done.returncode == 1 and "give order_id,line_no" in done.stderr


def test_what_a_lost_delete_left_is_found_removed_and_shown_to_be_gone(sold: Project) -> None:
    at = sold.sql("DELETE FROM shop.customers WHERE id = 4")
    for name in ("customers", "orders"):
        sold.wait_for(at, name=name)
    ghost = """INSERT INTO "shop.customers"(id, name) VALUES(4, 'Ghost')"""
    dirty = (
        "INSERT INTO dirty(sink, k0, seq, since, low) SELECT 1, id, seq, seq, 1 FROM ({}),"
        " (SELECT value AS seq FROM meta WHERE name = 'seq') WHERE true ON CONFLICT DO NOTHING"
    )
    letter = (
        "INSERT INTO dead_letters(topic, partition, offset, key, value, error, at)"
        f""" VALUES('{sold.name}.shop.customers', 0, 99999, CAST('{{"id":4}}' AS BLOB), CAST('Ghost' AS BLOB), 'x', 0)"""
    )
    # as if the delete had never come
    sold.damage("customers", ghost, dirty.format("SELECT 4 AS id"))
    sold.damage("orders", ghost, dirty.format('SELECT id FROM "shop.orders" WHERE customer_id = 4'), letter)
    until(lambda: (sold.document(4, "customers") or {}).get("name") == "Ghost", 60, "the ghost is shown")
    order = value(sold, "SELECT min(id) FROM shop.orders WHERE customer_id = 4")
    until(lambda: ((sold.document(order) or {}).get("customer") or {}).get("name") == "Ghost", 60, "by orders too")

    orders = value(sold, "SELECT count(*) FROM shop.orders WHERE customer_id = 4")
    seen = erased(sold, "shop.customers", "4", "--dry-run")
    assert seen["row", "customers-v1"] == seen["row", "orders-v1"] == (1, None)
    assert seen["dead letter", "orders-v1"] == (1, None)
    documents = {where: n for (kind, where), n in seen.items() if kind == "document"}
    assert sorted(n for n, _ in documents.values()) == [1, orders]
    assert (sold.document(4, "customers") or {})["name"] == "Ghost"

    gone = erased(sold, "shop.customers", "4", "--yes")
    assert {place: after for place, (_, after) in gone.items() if place[0] != "topic"} == dict.fromkeys(
        (place for place in seen if place[0] != "topic"), 0
    )
    assert sold.document(4, "customers") is None and (sold.document(order) or {})["customer"] is None
    assert {after for _, after in erased(sold, "shop.customers", "4", "--yes").values()} <= {0, None}


def test_an_event_that_outlives_its_row_is_taken_out_of_its_fold(sold: Project) -> None:
    id = value(sold, "SELECT id FROM shop.outbox WHERE aggregate_id = 2 AND type = 'OrderPlaced'")
    sold.sql(f"{shop.TELL}VALUES('order', 2, 'OrderRefused', '{{\"reason\": \"her name\"}}')")
    told = value(sold, "SELECT max(id) FROM shop.outbox")
    sold.wait_for(sold.sql(f"DELETE FROM shop.outbox WHERE id = {told}"), name="order_saga")
    saga = sold.document(2, "order_saga")
    assert saga is not None and saga["refused_because"] == "her name" and id != told

    gone = erased(sold, "shop.outbox", str(told), "--yes")
    assert gone["row", "order_saga-v1"] == (1, 0)
    saga = sold.document(2, "order_saga")
    assert saga is not None and saga["refused_because"] is None and saga["steps"][0] == "placed"


def test_nothing_is_touched_where_no_worker_runs(sold: Project) -> None:
    sold.wait_for(sold.sql("DELETE FROM shop.customers WHERE id = 5"), name="customers")
    sold.stop_workers()
    done = sold.cdc("erase", "shop.customers", "5", "--yes", "--timeout", "5", check=False)
    assert done.returncode == 1 and "can't be erased from: it is stopped: start it, cdc run" in done.stderr
