"""MariaDB as a source on the real stack: snapshot, stream, transactions, kills, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.mariadb import Database, database, define
from tests.support.project import Project

pytestmark = pytest.mark.stack

TABLES = (
    "CREATE TABLE DB.customers (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, vip BOOLEAN NOT NULL)",
    "CREATE TABLE DB.orders (id INT PRIMARY KEY, customer_id BIGINT UNSIGNED NOT NULL, total DECIMAL(12,2) NOT NULL,"
    " at TIMESTAMP(3) NOT NULL, KEY by_customer (customer_id))",
    "CREATE TABLE DB.order_lines (order_id INT, line_no INT, amount DECIMAL(12,2) NOT NULL, note TEXT, PRIMARY KEY (order_id, line_no))",
    "INSERT INTO DB.customers SELECT seq, CONCAT('customer ', seq), seq % 2 FROM DB.numbers LIMIT 20",
)
ORDERS = """
from datetime import datetime
from decimal import Decimal
from pipeline import Document, derived, elasticsearch, many, one, projection

class Customer(Document, source="DB.customers"):
    name: str
    vip: bool

class Line(Document, source="DB.order_lines", key=("order_id", "line_no")):
    line_no: int
    amount: Decimal
    note: str | None

class Order(Document, source="DB.orders"):
    id: int
    total: Decimal
    at: datetime
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", order_by="line_no")

orders = projection(Order, to=elasticsearch("ALIAS-orders"))
"""


@dataclass
class Shop:
    project: Project
    own: Database

    def wait(self, sequence: int, *, seconds: int = 90) -> None:
        self.project.cdc("wait", f"{self.project.name}-orders", "--lsn", str(sequence), "--timeout", str(seconds))

    def verify(self) -> dict[str, int]:
        found = json.loads(
            self.project.cdc("verify", f"{self.project.name}-orders", "--all", "-o", "json", check=False).stdout
        )
        return {name: found["sinks"][0][name] for name in ("checked", "missing", "extra", "different")}


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project], mariadb: str) -> Iterator[Shop]:
    project = new_project("it_mdb")
    name = f"{project.name}_m"
    numbers = "CREATE TABLE DB.numbers AS SELECT seq FROM seq_1_to_20"
    with database(mariadb, name, numbers, *TABLES) as own:
        own.sql(
            "INSERT INTO DB.orders SELECT seq, seq, seq * 2, '2026-01-01 10:00:00.5' FROM DB.numbers",
            "INSERT INTO DB.order_lines SELECT seq, 1, seq, NULL FROM DB.numbers",
            "INSERT INTO DB.order_lines SELECT seq, 2, seq, 'ü' FROM DB.numbers",
        )

        def second(project: Project) -> None:
            define(project, own, ["customers", "orders", "order_lines"])
            project.cdc("connector", "apply", name, "--yes")
            project.cdc("tables", "pull")
            assert project.cdc("check").returncode == 0

        project.before_connector = second
        project.create_with(
            "CREATE SCHEMA shop; CREATE TABLE shop.stores (id int PRIMARY KEY, city text NOT NULL);",
            ["shop.stores"], {"orders": ORDERS.replace("DB.", f"{name}.")}, pulled=False,
        )  # fmt: skip
        project.start_run()
        yield Shop(project, own)
        project.stop_workers()
        project.cdc("connector", "delete", name, "--drop-slot", "--yes")


def test_the_snapshot_and_the_stream_make_documents_and_they_are_verified(shop: Shop) -> None:
    shop.wait(shop.own.sql("UPDATE DB.customers SET name = 'Ada', vip = 2 WHERE id = 7"))
    assert (shop.project.document(7) or {}) | {"_epoch": 1} == {
        "_epoch": 1, "id": 7, "total": "14.00", "at": "2026-01-01T10:00:00.5Z", "customer": {"name": "Ada", "vip": True},
        "lines": [{"line_no": 1, "amount": "7.00", "note": None}, {"line_no": 2, "amount": "7.00", "note": "ü"}],
    }  # fmt: skip
    assert shop.verify() == {"checked": 20, "missing": 0, "extra": 0, "different": 0}
