"""Aggregates on the real stack: what changes in Postgres is in its group in Elasticsearch, and in no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

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
