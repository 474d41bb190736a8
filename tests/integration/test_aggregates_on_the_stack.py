"""Aggregates on the real stack: what changes in Postgres is in its group in Elasticsearch, and in no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from pipeline.demo import shop, truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def sold(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_sales")
    project.create(orders=300, projections=("sales",))
    project.start_worker(f"{project.name}-sales")
    yield project


def day(sold: Project, key: str) -> dict[str, Any] | None:
    return sold.document(quote(key, safe=""), "sales")


def test_the_first_load_gives_every_group(sold: Project) -> None:
    sold.wait_for(truth.position(sold.dsn), name="sales")
    sold.assert_equal("sales", truth.SALES)
    assert sold.compare("sales", truth.SALES).documents == 3
    assert sold.status("sales")["documents"] == 3


def test_verify_counts_anew_names_the_groups_that_differ_and_repairs_them(sold: Project) -> None:
    name = f"{sold.name}-sales"
    right = json.loads(sold.cdc("verify", name, "--all", "-o", "json").stdout)["sinks"][0]
    assert (right["checked"], right["missing"], right["extra"], right["different"]) == (3, 0, 0, 0)

    change(sold, '["2026-06-01","new"]', lambda document: document.update(revenue="1.00"))
    change(sold, '["2026-06-01","paid"]', None)
    change(sold, '["2026-06-02","ghost"]', lambda document: document.update(status="ghost"))
    found = differences(sold)
    assert {one["id"]: one["kind"] for one in found} == {
        '["2026-06-01","new"]': "different", '["2026-06-01","paid"]': "missing", '["2026-06-02","ghost"]': "extra",
    }  # fmt: skip
    (field,) = next(one["fields"] for one in found if one["kind"] == "different")
    assert (field["path"], field["document"]) == ("revenue", "1")

    healed = json.loads(sold.cdc("verify", name, "--all", "--repair", "-o", "json").stdout)["sinks"][0]
    assert healed["repaired"] == 3
    sold.assert_equal("sales", truth.SALES)


def test_a_mirror_that_was_made_wrong_is_healed(sold: Project) -> None:
    with sold.connection() as source:
        (changed, lost) = (
            source.execute("SELECT max(id) FROM shop.orders WHERE charged > 1 AND status = %s", (status,)).fetchone()[0]
            for status in ("new", "paid")
        )
    sold.damage(
        "sales",
        f"""UPDATE "shop.orders" SET charged = '0.01' WHERE id = {changed}""",
        f"""INSERT INTO "shop.orders"(id, customer_id, status, placed_at, charged)
            SELECT 777777, customer_id, 'ghost', placed_at, charged FROM "shop.orders" WHERE id = {lost}""",
        f"""DELETE FROM "shop.orders" WHERE id = {lost}""",
        f"""INSERT INTO touched(k0, seq, since, low) SELECT j.value, m.value, m.value, 0
            FROM json_each('[{changed}, {lost}, 777777]') j, meta m WHERE m.name = 'seq'""",
    )
    # a change anywhere has the worker look at what was touched
    sold.wait_for(sold.sql("UPDATE shop.orders SET charged = charged WHERE id = 1"), name="sales")

    name = f"{sold.name}-sales"
    found = differences(sold)
    assert {one["id"]: one["kind"] for one in found} == {
        '["2026-06-01","new"]': "different", '["2026-06-01","paid"]': "different", '["2026-06-01","ghost"]': "extra",
    }  # fmt: skip

    untouched = stored(sold, '["2026-06-01","sent"]')
    healed = json.loads(sold.cdc("verify", name, "--all", "--repair", "-o", "json").stdout)["sinks"][0]
    assert healed["repaired"] == 3
    sold.assert_equal("sales", truth.SALES)
    assert stored(sold, '["2026-06-01","sent"]') == untouched


def differences(sold: Project) -> list[dict[str, Any]]:
    """What `cdc verify` finds wrong."""
    done = sold.cdc("verify", f"{sold.name}-sales", "--all", "-o", "json", check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["sinks"][0]["differences"]
    return found


def stored(sold: Project, key: str) -> dict[str, Any]:
    """A group's document and its version, as Elasticsearch has them."""
    path = f"{sold.endpoints.elasticsearch}/{sold.name}-sales-v1/_doc/{quote(key, safe='')}"
    found: dict[str, Any] = httpx.get(path).json()
    return found


def change(sold: Project, key: str, how: Callable[[dict[str, Any]], None] | None) -> None:
    """Write a group's document, or delete it (None), as no worker would have."""
    path = f"{sold.endpoints.elasticsearch}/{sold.name}-sales-v1/_doc/{quote(key, safe='')}"
    there = stored(sold, key)
    document = there.get("_source") or {"day": "2026-06-02", "_epoch": 1}
    if how is None:
        params = {"version": there["_version"] + 1, "version_type": "external"}
        httpx.delete(path, params=params).raise_for_status()
        return
    how(document)
    params = {"version": there.get("_version", 1), "version_type": "external_gte"}
    httpx.put(path, json=document, params=params).raise_for_status()


@pytest.mark.edge_case(41)
def test_an_order_that_moves_leaves_one_group_and_enters_another(sold: Project) -> None:
    before = day(sold, '["2026-06-01","new"]')
    sold.wait_for(sold.sql("UPDATE shop.orders SET status = 'paid' WHERE status = 'new' AND id <= 10"), name="sales")
    after = day(sold, '["2026-06-01","new"]')
    assert before is not None and after is not None and after["orders"] == before["orders"] - 3
    sold.assert_equal("sales", truth.SALES)


def test_what_the_group_knows_of_other_tables_follows_them(sold: Project) -> None:
    sold.wait_for(sold.sql("UPDATE shop.order_lines SET quantity = quantity + 1 WHERE order_id <= 20"), name="sales")
    sold.assert_equal("sales", truth.SALES)


def test_the_largest_order_gone_uncovers_the_next_and_an_empty_group_vanishes(sold: Project) -> None:
    largest = "(SELECT max(charged) FROM shop.orders WHERE status = 'sent')"
    sold.wait_for(sold.sql(f"DELETE FROM shop.orders WHERE status = 'sent' AND charged = {largest}"), name="sales")
    sold.assert_equal("sales", truth.SALES)
    sold.wait_for(sold.sql("UPDATE shop.orders SET charged = 0 WHERE status = 'sent'"), name="sales")
    assert day(sold, '["2026-06-01","sent"]') is None
    sold.assert_equal("sales", truth.SALES)
    sold.wait_for(sold.sql("UPDATE shop.orders SET charged = 1 WHERE status = 'sent'"), name="sales")
    sold.assert_equal("sales", truth.SALES)


@pytest.mark.edge_case(3)
def test_a_worker_killed_under_load_counts_nothing_twice(sold: Project) -> None:
    load = shop.Load(sold.dsn, 30, 8)
    load.start()
    for _ in range(2):
        done = load.done
        until(lambda done=done: load.done > done + 40 or not load.running, 60, "the load goes on")
        sold.workers[-1].kill()
        sold.workers[-1].wait()
        sold.start_worker(f"{sold.name}-sales")
    load.join(60)
    assert load.error is None
    sold.wait_for(truth.position(sold.dsn), seconds=120, name="sales")
    sold.assert_equal("sales", truth.SALES)


@pytest.mark.edge_case(35)
def test_a_group_that_vanished_goes_though_the_mirror_that_knew_it_is_lost(sold: Project) -> None:
    sold.wait_for(sold.sql("UPDATE shop.orders SET status = 'passing' WHERE id <= 30"), name="sales")
    assert day(sold, '["2026-06-01","passing"]') is not None
    sold.stop_workers()
    for path in (sold.folder / ".cdc" / "mirrors").glob("*.db*"):
        path.unlink()
    sold.sql("UPDATE shop.orders SET status = 'paid' WHERE status = 'passing'")
    quick = {"CDC_WORKER__SESSION_TIMEOUT": "10", "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "3"}
    sold.start_worker(f"{sold.name}-sales", **quick)
    until(lambda: day(sold, '["2026-06-01","passing"]') is None, 90, f"the group is gone\n{sold.log()}")
    sold.wait_for(truth.position(sold.dsn), name="sales")
    sold.assert_equal("sales", truth.SALES)
    sold.stop_workers()
    sold.start_worker(f"{sold.name}-sales")


def test_a_truncate_of_lines_takes_the_pieces_and_leaves_the_orders(sold: Project) -> None:
    sold.wait_for(sold.sql("TRUNCATE shop.order_lines"), name="sales")
    sold.assert_equal("sales", truth.SALES)
    sold.wait_for(sold.sql("TRUNCATE shop.orders CASCADE"), name="sales")
    assert sold.compare("sales", truth.SALES).documents == 0
