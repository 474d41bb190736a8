"""Rows read again from the source by a real Debezium: wrong ones, unknown ones, and those that are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from pipeline.authoring.discovery import find
from pipeline.demo import truth
from pipeline.demo.shop import Load
from pipeline.errors import OperationError
from pipeline.operations.refresh import RefreshReport, refresh
from pipeline.settings import Settings
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_refresh")
    project.create(orders=100)
    project.start_worker()
    project.wait_for(truth.position(project.dsn))
    yield project


def settings(shop: Project) -> Settings:
    return Settings(state_dir=shop.folder / ".cdc", projections=shop.folder / "projections", catalog=shop.folder / "projections/catalog.lock.json")  # fmt: skip


def refreshed(shop: Project, keys: dict[str, list[tuple[Any, ...]]], **options: Any) -> RefreshReport:
    own = settings(shop)
    return refresh(own, find(own, f"{shop.name}-orders"), keys, **options)


def written(shop: Project) -> None:
    shop.wait_for(truth.position(shop.dsn))


def test_rows_that_were_made_wrong_are_as_in_the_source_again(shop: Project) -> None:
    shop.damage(
        "orders",
        """UPDATE "shop.orders" SET status = 'wrong' WHERE id IN (10, 11)""",
        """UPDATE "shop.order_lines" SET quantity = 99 WHERE order_id = 12""",
        """DELETE FROM "shop.order_lines" WHERE order_id = 13 AND line_no = 2""",
        """UPDATE "shop.products" SET title = 'wrong'""",
    )
    products = [(key,) for key in range(1, 6)]
    lines = [(12, n) for n in (1, 2, 3)] + [(13, 2)]
    report = refreshed(shop, {"shop.orders": [(10,), (11,)], "shop.order_lines": lines, "shop.products": products})
    assert report.done and report.refreshed == 11, report
    written(shop)
    shop.assert_equal()


def test_a_document_that_only_the_sink_has_wrong_is_written_again(shop: Project) -> None:
    url = f"{shop.endpoints.elasticsearch}/{shop.name}-orders-v1/_doc/20"
    found = httpx.get(url).json()
    wrong = {**found["_source"], "status": "wrong"}
    httpx.put(url, params={"version": found["_version"] + 1, "version_type": "external"}, json=wrong).raise_for_status()
    report = refreshed(shop, {"shop.orders": [(20,)]})
    assert report.refreshed == 1
    written(shop)
    shop.assert_equal()


@pytest.mark.edge_case(12)
def test_rows_that_the_source_has_not_leave_the_mirror_and_the_sink(shop: Project) -> None:
    shop.damage(
        "orders",
        """CREATE TEMP TABLE o AS SELECT * FROM "shop.orders" WHERE id = 1; UPDATE o SET id = 900001;
        INSERT INTO "shop.orders" SELECT * FROM o""",
        """CREATE TEMP TABLE l AS SELECT * FROM "shop.order_lines" WHERE order_id = 30 AND line_no = 1;
        UPDATE l SET line_no = 77; INSERT INTO "shop.order_lines" SELECT * FROM l""",
    )
    httpx.put(
        f"{shop.endpoints.elasticsearch}/{shop.name}-orders-v1/_doc/900002",
        params={"version": 1, "version_type": "external"},
        json={"id": 900002},
    ).raise_for_status()
    report = refreshed(shop, {"shop.orders": [(900001,), (900002,)], "shop.order_lines": [(30, 77)]})
    assert report.done and (report.removed, report.absent) == (2, 1), report
    written(shop)
    assert shop.document(900002) is None
    shop.assert_equal()


def test_a_table_or_a_key_that_is_not_the_projections_is_refused(shop: Project) -> None:
    with pytest.raises(OperationError, match=r"does not read shop\.other; it reads shop\.customers"):
        refreshed(shop, {"shop.other": [(1,)]})
    with pytest.raises(OperationError, match=r"The key of shop\.order_lines is order_id, line_no"):
        refreshed(shop, {"shop.order_lines": [(1,)]})


@pytest.mark.edge_case(11)
def test_rows_that_change_while_they_are_refreshed_end_as_in_the_source(shop: Project) -> None:
    load = Load(shop.dsn, rate=60, seconds=300)
    load.start()
    try:
        for n in range(5):
            shop.damage("orders", f"""UPDATE "shop.orders" SET status = 'wrong' WHERE id % 5 = {n} AND id <= 100""")
            orders = [(key,) for key in range(1, 101) if key % 5 == n]
            lines = [(key, line) for (key,) in orders for line in (1, 2, 3, 4)]
            customers = [(key,) for key in range(1, 21)]
            report = refreshed(shop, {"shop.orders": orders, "shop.order_lines": lines, "shop.customers": customers})
            assert report.done, report
    finally:
        load.stop()
        load.join(10)
    assert load.error is None
    written(shop)
    shop.assert_equal()


@pytest.mark.edge_case(38)
def test_a_worker_killed_after_it_asked_leaves_the_rest_to_the_next(shop: Project) -> None:
    shop.stop_workers()
    doomed = shop.start_worker(fault="asked")
    until(lambda: shop.status()["state"] == "running" and shop.said().get("pid") == doomed.pid, 60, "it runs")
    shop.damage("orders", """UPDATE "shop.orders" SET status = 'wrong' WHERE id < 50""")
    with ThreadPoolExecutor(1) as threads:
        wanted = threads.submit(refreshed, shop, {"shop.orders": [(key,) for key in range(1, 50)]})
        assert doomed.wait(60) == -9
        shop.start_worker()
        report = wanted.result(90)
    assert (report.refreshed + report.absent, report.left) == (49, []), report
    written(shop)
    shop.assert_equal()


def test_without_a_worker_there_is_nobody_to_read_the_rows(shop: Project) -> None:
    shop.stop_workers()
    with pytest.raises(OperationError, match=r"is stopped, and only its worker reads rows again: start it"):
        refreshed(shop, {"shop.orders": [(1,)]})
