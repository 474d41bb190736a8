"""Rows that must not go to one of two real sinks: not at first, not under load and kills, not after another rule."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.demo import truth
from tests.support.project import Project, until
from tests.support.web import expected

pytestmark = pytest.mark.stack

BY_NAME = {"redis": {"shop.customers.name": ["Secret", "Hidden"]}}
ORDERS = (Path(__file__).parents[2] / "projections" / "orders.py").read_text()
SECRET = (
    "SELECT o.id FROM shop.orders o JOIN shop.customers c ON c.id = o.customer_id WHERE c.name IN ('Secret', 'Hidden')"
)


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_rows")
    withheld(project, BY_NAME)
    project.create(orders=120, also=f'redis("{project.name}:orders")')
    project.sql("UPDATE shop.customers SET name = 'Secret' WHERE id % 3 = 0")
    project.start_worker()
    yield project


def withheld(shop: Project, rules: dict[str, Any]) -> None:
    shop.settings["CDC_WITHHELD_ROWS"] = json.dumps(rules)


def written(shop: Project) -> None:
    """Both sinks are past all that was committed, and nothing is dirty."""
    lsn = truth.position(shop.dsn)

    def passed() -> bool:
        found = shop.status()
        sinks = found["sinks"]
        at = [s["watermark"].get(shop.name, {}).get("lsn", -1) for s in sinks]
        return len(sinks) == 2 and min(at) >= lsn and not found["dirty"]

    until(passed, 90, f"both sinks at {lsn}: {shop.status()}\n{shop.log()}")


def assert_withheld(shop: Project, query: str) -> None:
    """Elasticsearch has every document, Redis all but those of the query's keys; and status counts these."""
    shop.assert_equal()
    with shop.connection() as db:
        secret = {str(key) for (key,) in db.execute(query.encode())}
    right = {key: document for key, document in expected(shop).items() if key not in secret}
    assert dict(truth.in_redis(shop.endpoints.redis, f"{shop.name}:orders")) == right
    counts = {s["name"].partition(":")[0]: s["withheld"] for s in shop.status()["sinks"]}
    assert counts == {"elasticsearch": 0, "redis": len(secret)}


def killed(shop: Project) -> None:
    (worker,) = shop.workers
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    shop.workers.clear()


def test_documents_of_such_rows_are_in_the_sink_without_the_rule_only(shop: Project) -> None:
    written(shop)
    assert_withheld(shop, SECRET)
    verified = json.loads(shop.cdc("verify", f"{shop.name}-orders", "--all", "-o", "json").stdout)["sinks"]
    assert verified[0]["checked"] == 120 > verified[1]["checked"] > 0
    assert "documents are withheld from it" in shop.cdc("status", f"{shop.name}-orders", check=False).stderr

    withheld(shop, {})
    missing = json.loads(shop.cdc("verify", f"{shop.name}-orders", "--all", "-o", "json", check=False).stdout)["sinks"]
    withheld(shop, BY_NAME)
    assert missing[0]["missing"] == 0 < missing[1]["missing"], "without the rule they would be missed"


def test_rows_that_change_under_kills_are_nowhere_they_must_not_be(shop: Project) -> None:
    random = Random(3)
    for fault in ("writing:3", "written:3", "settled:3"):
        killed(shop)
        worker = shop.start_worker(fault=fault)
        for n in range(60):
            shop.sql(
                f"UPDATE shop.customers SET name = '{random.choice(['Secret', 'Hidden', f'open {n}'])}' WHERE id = {random.randrange(1, 25)}",
                f"UPDATE shop.orders SET customer_id = {random.randrange(1, 25)} WHERE id = {random.randrange(1, 121)}",
            )
        assert worker.wait(90) == -signal.SIGKILL, shop.log()
        shop.workers.clear()
        shop.start_worker()
    written(shop)
    assert_withheld(shop, SECRET)


def test_another_rule_at_a_restart_takes_documents_away_and_brings_them_back(shop: Project) -> None:
    shop.sql("UPDATE shop.orders SET status = 'kept here' WHERE id <= 30")
    name = f"redis:{shop.name}:orders"
    of_target = {name: {"shop.orders.status": ["kept here"]}, "redis:another": {"shop.orders.status": ["new"]}}
    for rules, query in (
        ({}, "SELECT 0 WHERE false"),
        (of_target, "SELECT id FROM shop.orders WHERE status = 'kept here'"),
        (BY_NAME, SECRET),
    ):
        killed(shop)
        withheld(shop, rules)
        shop.start_worker()
        until(lambda: not shop.status()["dirty"] and shop.status()["state"] == "running", 60, "nothing is dirty")
        written(shop)
        assert_withheld(shop, query)


def test_a_rule_that_could_not_be_kept_starts_no_worker(shop: Project) -> None:
    killed(shop)
    withheld(shop, {"redis": {"shop.customers.email": ["x"]}})
    try:
        assert shop.start_worker().wait(60) == 78
        assert "OrderCustomer does not read" in shop.log()
        assert "Withheld" in shop.cdc("check", "-o", "json", check=False).stdout
    finally:
        shop.workers.clear()
        withheld(shop, BY_NAME)


@pytest.mark.edge_case(38)
def test_each_of_several_workers_keeps_them_away(new_project: Callable[[str], Project]) -> None:
    """Customers are rows of all partitions, and orders of one: a rule on each."""
    shop = new_project("it_rows_parts")
    withheld(shop, BY_NAME)
    targets = f'to=[elasticsearch("orders"), redis("{shop.name}:orders")], workers=2'
    text = "from pipeline import redis\n" + ORDERS.replace('to=elasticsearch("orders")', targets)
    shop.create(orders=120, projections=(), own={"orders": text})
    shop.sql("UPDATE shop.customers SET name = 'Secret' WHERE id % 3 = 0")
    shop.start_run()
    written(shop)
    assert_withheld(shop, SECRET)
    shop.sql(
        "UPDATE shop.customers SET name = 'open' WHERE id = 3", "UPDATE shop.customers SET name = 'Hidden' WHERE id = 4"
    )
    written(shop)
    assert_withheld(shop, SECRET)
    shop.cdc("verify", f"{shop.name}-orders", "--all")

    shop.stop_workers()
    shop.sql("UPDATE shop.orders SET status = 'kept here' WHERE id <= 30")
    withheld(shop, {"redis": {"shop.orders.status": ["kept here"]}})
    shop.start_run()
    written(shop)
    assert_withheld(shop, "SELECT id FROM shop.orders WHERE status = 'kept here'")
