"""What is lost is named, and healed by one command; what has to be lost is erased, and shown to be gone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from pipeline.demo import shop, truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack
NAMES = ("customers", "orders", "order_saga")


@pytest.fixture(scope="module")
def sold(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_lost")
    project.create(orders=60, projections=NAMES, more=True)
    project.start_run()
    project.sql("ALTER TABLE shop.orders DROP CONSTRAINT orders_customer_id_fkey")
    for name in NAMES:
        project.wait_for(truth.position(project.dsn), name=name)
    yield project


def test_rows_that_are_not_as_kept_history_says_are_read_again(sold: Project) -> None:
    name = f"{sold.name}-orders"
    sold.wait_for(sold.sql("UPDATE shop.orders SET status = 'kept' WHERE id IN (7, 8, 9)"))
    right = json.loads(sold.cdc("replay", name, "--since", "1h", "-o", "json").stdout)
    assert (right["wrong"], right["repaired"]) == (0, None) and right["equal"] >= 3

    sold.damage("orders", """UPDATE "shop.orders" SET status = 'wrong' WHERE id = 7""")
    sold.damage("orders", 'DELETE FROM "shop.orders" WHERE id = 8')
    dry = sold.cdc("replay", name, "--since", "1h", "--dry-run", "-o", "json", check=False)
    found = {(row["kind"], *row["key"]) for row in json.loads(dry.stdout)["rows"]}
    assert dry.returncode == 3 and found == {("different", 7), ("missing", 8)}

    mended = json.loads(sold.cdc("replay", name, "--since", "1h", "-o", "json").stdout)
    assert (mended["wrong"], mended["repaired"]["refreshed"], mended["repaired"]["left"]) == (2, 2, [])
    again = json.loads(sold.cdc("replay", name, "--since", "0/1", "-o", "json").stdout)
    assert again["wrong"] == 0 and again["equal"] > 0
    sold.wait_for(sold.sql("UPDATE shop.orders SET status = 'last' WHERE id = 9"))
    sold.assert_equal()


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
    assert done.returncode == 1 and "is stopped" in done.stderr and "start it, cdc run" in done.stderr
    sold.start_run()


GONE = "is not there: cdc connector apply {name}; it says where changes are missing, and then it takes --anew"
LOST = "is lost: the source has removed log that was not read yet: cdc connector apply {name} --anew: a new snapshot is read"


@pytest.mark.parametrize(("lose", "told", "gone"), [("drop", GONE, 5), ("outrun", LOST, 7)])
def test_a_lost_slot_is_named_and_a_new_log_begins_with_one_command(
    sold: Project, lose: str, told: str, gone: int
) -> None:
    connector = f"{sold.endpoints.connect}/connectors/{sold.name}"
    httpx.put(f"{connector}/stop").raise_for_status()
    inactive = f"not read now, reserved: cdc connector restart {sold.name}, or resume where it was paused"
    until(lambda: any(line.endswith(inactive) for line in attention(sold)), 60, "status says that nobody reads it")
    sold.sql("UPDATE shop.orders SET status = 'unseen' WHERE id = 4", f"DELETE FROM shop.orders WHERE id = {gone}")
    if lose == "drop":
        until(lambda: dropped(sold), 60, "nobody reads the slot")
    else:
        outrun(sold)

    (line,) = attention(sold)
    assert line.endswith(f"of connector {sold.name}: {told.format(name=sold.name)}")
    looked = json.loads(sold.cdc("doctor", "-o", "json", check=False).stdout)
    slots = [finding["level"] for finding in looked if finding["subject"].startswith("slot ")]
    assert slots == ["error"]
    refused = sold.cdc("connector", "apply", sold.name, "--yes", check=False)
    said = " ".join(refused.stderr.split())
    assert refused.returncode == 1 and f"Run `cdc connector apply {sold.name} --anew`" in said, said

    sold.cdc("connector", "apply", sold.name, "--anew", "--yes")
    sold.wait_for(sold.sql("UPDATE shop.orders SET status = 'seen' WHERE id = 6"), seconds=120)
    sold.assert_equal()
    assert attention(sold) == []


def dropped(sold: Project) -> bool:
    try:
        sold.sql(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
        )
    except psycopg.errors.ObjectInUse:
        return False
    return True


def outrun(sold: Project) -> None:
    """The source writes more log than it may keep for a slot."""
    lost = "SELECT bool_and(wal_status = 'lost') FROM pg_replication_slots WHERE database = current_database()"
    with psycopg.connect(sold.dsn, autocommit=True) as db:
        db.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        db.execute("SELECT pg_reload_conf()")
        try:
            while db.execute(lost).fetchone() != (True,):
                db.execute("UPDATE shop.orders SET status = 'outrun' WHERE id = 4")
                db.execute("SELECT pg_switch_wal()")
                db.execute("CHECKPOINT")
        finally:
            db.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
            db.execute("SELECT pg_reload_conf()")


def attention(sold: Project) -> list[str]:
    """What status says of the slot."""
    found: list[str] = json.loads(sold.cdc("status", "-o", "json", check=False).stdout)["attention"]
    return found


def test_a_deleted_index_is_named_and_built_anew_from_the_mirror(sold: Project) -> None:
    name = f"{sold.name}-orders"
    httpx.delete(f"{sold.endpoints.elasticsearch}/{name}-v1").raise_for_status()
    sold.sql("UPDATE shop.orders SET status = 'lost' WHERE id = 3")
    told = "is missing: run `cdc apply`"
    until(lambda: told in sold.cdc("status", name, check=False).stderr, 60, f"status names it\n{sold.log()}")
    refused = sold.cdc("apply", "--yes", check=False)
    said = " ".join((refused.stderr + refused.stdout).split())
    assert refused.returncode == 1 and f"is gone from the sink: cdc rebuild {name}" in said, said

    sold.cdc("rebuild", name)
    sold.assert_equal()
