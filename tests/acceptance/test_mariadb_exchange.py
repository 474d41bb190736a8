"""Two workers share the documents of a MariaDB: one is killed, rows move, the connector is killed; none is lost, doubled or torn."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.settings import Settings
from pipeline.stack import stack as local_stack
from tests.support.mariadb import Database, only_source
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

ORDERS = 400
READ_MODEL = """
from decimal import Decimal
from pipeline import Aggregate, Document, count, derived, elasticsearch, group, many, projection, total

class Line(Document, source="DB.order_lines"):
    id: int
    amount: Decimal

class Order(Document, source="DB.orders"):
    id: int
    customer_id: int
    total: Decimal
    lines: tuple[Line, ...] = many(by="order_id", order_by="id")

    @derived
    def charged(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal())

class OfCustomer(Aggregate, of=Order):
    customer_id: int = group()
    orders: int = count()
    total: Decimal = total("total")

orders = projection(Order, to=elasticsearch("ALIAS-orders"), workers=2)
customers = projection(OfCustomer, to=elasticsearch("ALIAS-customers"), workers=2)
"""
NUMBERS = f"(WITH RECURSIVE n AS (SELECT 1 AS id UNION ALL SELECT id + 1 FROM n WHERE id < {ORDERS}) SELECT id FROM n)"
TABLES = (
    "CREATE TABLE DB.orders (id INT PRIMARY KEY, customer_id INT NOT NULL, total DECIMAL(12,2) NOT NULL)",
    "CREATE TABLE DB.order_lines (id INT AUTO_INCREMENT PRIMARY KEY, order_id INT NOT NULL, amount DECIMAL(12,2) NOT NULL)",
    f"INSERT INTO DB.orders SELECT id, id % 50, 2 FROM {NUMBERS} x",
    f"INSERT INTO DB.order_lines (order_id, amount) SELECT id, 1 FROM {NUMBERS} x UNION ALL SELECT id, 1 FROM {NUMBERS} y",
)


class Moves(threading.Thread):
    """Lines that go from order to order, and orders from customer to customer; each order's total is its lines'."""

    def __init__(self, own: Database) -> None:
        super().__init__(daemon=True)
        self.own, self.over, self.done, self.random = own, threading.Event(), 0, random.Random(1)

    def run(self) -> None:
        with self.own.connection() as db, db.cursor() as cursor:
            cursor.execute(f"USE {self.own.name}")
            while not self.over.wait(0.01):
                line, to = self.random.randint(1, 2 * ORDERS), self.random.randint(1, ORDERS)
                cursor.execute("SELECT order_id FROM order_lines WHERE id = %s", (line,))
                (of,) = cursor.fetchone()
                cursor.execute("UPDATE order_lines SET order_id = %s, amount = amount + 1 WHERE id = %s", (to, line))
                cursor.execute(
                    "UPDATE orders SET customer_id = (customer_id + 7) %% 50, total = (SELECT coalesce(sum(amount), 0)"
                    " FROM order_lines WHERE order_id = orders.id) WHERE id IN (%s, %s)",
                    (of, to),
                )
                db.commit()
                self.done += 1


@pytest.fixture
def shop(new_project: Callable[[str], Project], mariadb: str) -> Iterator[tuple[Project, Database]]:
    project = new_project("acc_mdbx")
    project.settings |= {"CDC_WORKER__SESSION_TIMEOUT": "10", "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "5"}
    with only_source(project, mariadb, TABLES, ["orders", "order_lines"], READ_MODEL) as own:
        yield project, own


def _right(project: Project, own: Database) -> None:
    """Every document is the source's, with both workers' watermarks at a transaction of just now."""
    sequence = own.sql("UPDATE DB.orders SET total = total + 0, customer_id = customer_id % 49 WHERE id = 50")
    ((distinct,),) = own.rows("SELECT count(DISTINCT customer_id) FROM DB.orders")
    for name in ("orders", "customers"):
        project.cdc("wait", f"{project.name}-{name}", "--lsn", str(sequence), "--timeout", "120")
        done = project.cdc("verify", f"{project.name}-{name}", "--all", "-o", "json", check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{project.log()}"
        assert json.loads(done.stdout)["sinks"][0]["checked"] == (ORDERS if name == "orders" else distinct)


@pytest.mark.timeout(600)
def test_two_workers_of_a_mariadb(shop: tuple[Project, Database], stack_settings: Settings) -> None:
    project, own = shop
    project.start_run()
    _right(project, own)
    moves, torn, read = Moves(own), list[dict[str, object]](), Counter[str]()
    moves.start()

    def look() -> None:
        with httpx.Client(base_url=project.endpoints.elasticsearch, timeout=30) as client:
            while not moves.over.wait(0.05):
                ids = [str(n) for n in random.sample(range(1, ORDERS + 1), 100)]
                docs = client.post(f"/{project.name}-orders/_mget", json={"ids": ids}).json()["docs"]
                read["documents"] += len(docs)
                torn.extend(
                    d["_source"] for d in docs if float(d["_source"]["total"]) != float(d["_source"]["charged"])
                )

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    try:
        for part in (1, 0):
            project.kill_the_owner(part)
        local_stack.stop_service(stack_settings, "connect", hard=True)
        local_stack.start_service(stack_settings, "connect")
        done = moves.done
        until(lambda: moves.done > done + 200, 60, "the load goes on")
    finally:
        moves.over.set()
        moves.join(10)
        reader.join(10)
    assert read["documents"] > 1000
    assert not torn, f"half a transaction: {torn[0]}"
    _right(project, own)
