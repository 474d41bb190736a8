"""A read model over two databases of two kinds: each row is right in the end, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from pipeline.settings import Settings
from pipeline.stack import stack as local_stack
from tests.support.mariadb import Database, database, define
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

ORDERS = """
from decimal import Decimal
from pipeline import Document, elasticsearch, many, one, projection

class Note(Document, source="DB.notes"):
    id: int
    text: str

class Customer(Document, source="DB.customers"):
    name: str
    vip: bool
    notes: tuple[Note, ...] = many(by="customer_id", order_by="id")

class Order(Document, source="shop.orders"):
    id: int
    status: str
    total: Decimal
    customer: Customer | None = one(via="customer_id")

orders = projection(Order, to=elasticsearch("ALIAS-orders"), across_sources=True)
"""
SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL, total numeric(12,2) NOT NULL);
INSERT INTO shop.orders SELECT n, n % 20 + 1, 'new', n FROM generate_series(1, 60) n;
"""
CRM = (
    "CREATE TABLE DB.customers (id BIGINT UNSIGNED PRIMARY KEY, name VARCHAR(100) NOT NULL, vip BOOLEAN NOT NULL)",
    "CREATE TABLE DB.notes (id INT PRIMARY KEY, customer_id BIGINT UNSIGNED NOT NULL, text TEXT NOT NULL)",
    *(f"INSERT INTO DB.customers VALUES ({n}, 'customer {n}', {n % 2})" for n in range(1, 20)),
    *(f"INSERT INTO DB.notes VALUES ({n}, {n % 19 + 1}, 'note {n}')" for n in range(1, 40)),
)


@pytest.fixture(scope="module")
def both(new_project: Callable[[str], Project], mariadb: str) -> Iterator[tuple[Project, Database]]:
    project = new_project("it_two")
    name = f"{project.name}_m"
    with database(mariadb, name, *CRM) as own:

        def second(project: Project) -> None:
            define(project, own, ["customers", "notes"])
            project.cdc("connector", "apply", name, "--yes")
            project.cdc("tables", "pull")

        project.before_connector = second
        project.create_with(SHOP, ["shop.orders"], {"orders": ORDERS.replace("DB.", f"{name}.")}, pulled=False)
        project.start_run()
        yield project, own
        project.stop_workers()
        project.cdc("connector", "delete", name, "--drop-slot", "--yes")


def wanted(project: Project, own: Database) -> dict[str, Any]:
    """The documents, joined by hand from what each database says by SQL."""
    notes: dict[int, list[Any]] = {}
    for id, customer, text in own.rows("SELECT id, customer_id, text FROM DB.notes ORDER BY id"):
        notes.setdefault(customer, []).append({"id": id, "text": text})
    customers = {
        id: {"name": name, "vip": bool(vip), "notes": notes.get(id, [])}
        for id, name, vip in own.rows("SELECT id, name, vip FROM DB.customers")
    }
    with psycopg.connect(project.dsn) as db:
        orders = db.execute("SELECT id, customer_id, status, total FROM shop.orders").fetchall()
    return {
        str(id): {"id": id, "status": status, "total": str(total), "customer": customers.get(customer)}
        for id, customer, status, total in orders
    }


def documents(project: Project) -> dict[str, Any]:
    index = f"{project.endpoints.elasticsearch}/{project.name}-orders"
    httpx.post(f"{index}/_refresh", timeout=10)
    hits = httpx.post(f"{index}/_search", json={"size": 1000}, timeout=10).json()["hits"]["hits"]
    return {hit["_id"]: {k: v for k, v in hit["_source"].items() if not k.startswith("_")} for hit in hits}


def assert_equal_soon(project: Project, own: Database, what: str) -> None:
    try:
        until(lambda: documents(project) == wanted(project, own), 90, what)
    except AssertionError:
        found, truth = documents(project), wanted(project, own)
        assert found == truth, project.log()


def change(project: Project, own: Database, dice: random.Random, times: int) -> None:
    """Some changes in both, of rows that are joined."""
    for _ in range(times):
        n = dice.randrange(1, 21)
        own.sql(
            f"INSERT INTO DB.customers VALUES ({n}, 'name {dice.random()}', {n % 3}) ON DUPLICATE KEY UPDATE name = VALUES(name), vip = 1 - vip",
            f"DELETE FROM DB.notes WHERE id = {dice.randrange(1, 40)}",
            f"INSERT IGNORE INTO DB.notes VALUES ({dice.randrange(1, 60)}, {n}, 'note {dice.random()}')",
        )
        project.sql(
            f"UPDATE shop.orders SET status = 's{dice.random()}', customer_id = {n} WHERE id = {dice.randrange(1, 61)}",
            f"DELETE FROM shop.orders WHERE id = {dice.randrange(1, 61)}",
            f"INSERT INTO shop.orders VALUES ({dice.randrange(100, 200)}, {n}, 'more', 1) ON CONFLICT DO NOTHING",
        )
        if dice.random() < 0.2:
            own.sql(f"DELETE FROM DB.customers WHERE id = {dice.randrange(1, 21)}")


def test_documents_are_joined_over_two_databases_and_follow_both(both: tuple[Project, Database]) -> None:
    project, own = both
    assert_equal_soon(project, own, "the snapshots of both")
    change(project, own, random.Random(1), 15)
    assert_equal_soon(project, own, "the changes of both")


def test_nothing_is_lost_or_doubled_where_the_worker_and_the_connectors_are_killed(
    both: tuple[Project, Database], stack_settings: Settings
) -> None:
    project, own = both
    dice = random.Random(2)
    change(project, own, dice, 10)
    os.kill(project.said()["pid"], signal.SIGKILL)
    change(project, own, dice, 10)
    local_stack.stop_service(stack_settings, "connect", hard=True)
    change(project, own, dice, 5)
    local_stack.start_service(stack_settings, "connect")
    change(project, own, dice, 5)
    assert_equal_soon(project, own, "what was changed while they were down")


def test_a_connector_that_begins_anew_takes_away_rows_of_its_own_tables_only(both: tuple[Project, Database]) -> None:
    project, own = both
    project.cdc("connector", "delete", own.name, "--drop-slot", "--yes")
    own.sql("DELETE FROM DB.customers WHERE id = 3", "INSERT IGNORE INTO DB.customers VALUES (50, 'new', 0)")
    project.cdc("connector", "apply", own.name, "--yes")
    project.sql("UPDATE shop.orders SET customer_id = 50 WHERE id % 5 = 0")
    assert_equal_soon(project, own, "a new snapshot of one of the two")


def test_it_is_said_what_two_sources_do_not_have(both: tuple[Project, Database]) -> None:
    project, _ = both
    name = f"{project.name}-orders"
    found = json.loads(project.cdc("check", "-o", "json").stdout)["findings"]
    assert ("AcrossSources", "hint") in {(finding["error"], finding["level"]) for finding in found}
    refused = (("wait", name, "--now"), ("verify", name, "--all"), ("rebuild", name))
    for command in (*refused, ("erase", "shop.orders", "9999", "--yes")):
        done = project.cdc(*command, check=False)
        assert done.returncode == 1 and "no common order" in done.stderr.replace("\n", " "), (command, done.stderr)
    previewed = json.loads(project.cdc("preview", name, "-n", "1").stdout)
    assert previewed == documents(project)[str(previewed["id"])]
    file = project.folder / "projections/orders.py"
    text = file.read_text()
    file.write_text(text.replace(", across_sources=True", ""))
    try:
        found = json.loads(project.cdc("check", "-o", "json", check=False).stdout)["findings"]
        assert [finding["error"] for finding in found if finding["level"] == "error"] == ["SeveralConnectors"]
    finally:
        file.write_text(text)
