"""MariaDB's connector and the worker are killed amid a transaction: none is lost, doubled, or shown by half."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import httpx
import pytest

from pipeline.settings import Endpoints, Settings
from pipeline.stack import stack as local_stack
from tests.support.mariadb import Database, only_source
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

ORDERS = 20_000
READ_MODEL = """
from decimal import Decimal
from pipeline import Document, elasticsearch, many, projection

class Line(Document, source="DB.order_lines"):
    id: int
    amount: Decimal

class Order(Document, source="DB.orders"):
    id: int
    total: Decimal
    lines: tuple[Line, ...] = many(by="order_id", order_by="id")

orders = projection(Order, to=elasticsearch("ALIAS-orders"))
"""
NUMBERS = f"(WITH RECURSIVE n AS (SELECT 1 AS id UNION ALL SELECT id + 1 FROM n WHERE id < {ORDERS}) SELECT id FROM n)"
TABLES = (
    f"SET max_recursive_iterations = {ORDERS}",
    "CREATE TABLE DB.orders (id INT PRIMARY KEY, total DECIMAL(12,2) NOT NULL)",
    "CREATE TABLE DB.order_lines (id INT AUTO_INCREMENT PRIMARY KEY, order_id INT NOT NULL, amount DECIMAL(12,2) NOT NULL)",
    f"INSERT INTO DB.orders SELECT id, 2 FROM {NUMBERS} x",
    f"INSERT INTO DB.order_lines (order_id, amount) SELECT id, 1 FROM {NUMBERS} x UNION ALL SELECT id, 1 FROM {NUMBERS} y",
)
# the lines first, twice each: what is counted anew has the same rows in it again
CHANGE = (
    "UPDATE DB.order_lines SET amount = amount + 7",
    "UPDATE DB.order_lines SET amount = amount - 6",
    "UPDATE DB.orders SET total = total + 2",
)


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project], mariadb: str) -> Iterator[tuple[Project, Database]]:
    project = new_project("acc_mdb")
    with only_source(project, mariadb, TABLES, ["orders", "order_lines"], READ_MODEL) as own:
        yield project, own


@pytest.mark.timeout(600)
def test_a_connector_that_is_killed_amid_a_transaction(
    shop: tuple[Project, Database], stack: Endpoints, stack_settings: Settings
) -> None:
    project, own = shop
    # longer than Connect needs to come back: else what waits for the rest is released, and counted
    project.start_run(CDC_WORKER__INCOMPLETE_AFTER="240")
    wait(project, own.sql("UPDATE DB.orders SET total = total WHERE id = 1"))
    torn = False
    for _ in range(6):
        sequence = own.sql(*CHANGE)
        torn = killed_amid(stack.connect, own.name, sequence, stack_settings)
        if torn:
            # the worker, too, with a part of it read; its supervisor starts another
            os.kill(project.said()["pid"], signal.SIGKILL)
        local_stack.start_service(stack_settings, "connect")
        halves(project, sequence)
        assert_equal(project, own)
        if torn:
            break
    assert torn, "the connector was never killed between two of its offsets"


def wait(project: Project, sequence: int) -> None:
    project.cdc("wait", f"{project.name}-orders", "--lsn", str(sequence), "--timeout", "150")


def killed_amid(url: str, name: str, sequence: int, settings: Settings) -> bool:
    """Kill Connect once it has confirmed a part of this transaction; False where it was faster."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = httpx.get(f"{url}/connectors/{name}/offsets").json()["offsets"]
        offset = found[0]["offset"] if found else {}
        if offset.get("gtids", "").endswith(f"-{sequence}"):
            break
        if offset.get("transaction_id", "").endswith(f"-{sequence}") and offset.get("event", 0):
            local_stack.stop_service(settings, "connect", hard=True)
            return True
    local_stack.stop_service(settings, "connect", hard=True)
    return False


def halves(project: Project, sequence: int) -> None:
    """Until the transaction is in the documents, none of them is half of it."""
    alias = f"{project.endpoints.elasticsearch}/{project.name}-orders"
    ids = [1, ORDERS // 3, ORDERS // 2, ORDERS - 1]

    def whole() -> bool:
        found = httpx.post(f"{alias}/_mget", json={"ids": [str(id) for id in ids]}, timeout=10).json()["docs"]
        for one in (doc["_source"] for doc in found):
            assert Decimal(one["total"]) == sum(Decimal(line["amount"]) for line in one["lines"]), one
        return project.watermark_of(own_name(project)) >= sequence

    until(whole, 240, f"GTID {sequence}; it is at {project.watermark_of(own_name(project))}")


def own_name(project: Project) -> str:
    return f"{project.name}_m"


def assert_equal(project: Project, own: Database) -> None:
    """Every document against rows that SQL sums up itself."""
    wanted = {
        str(id): (str(total), str(amount))
        for id, total, amount in own.rows(
            "SELECT o.id, o.total, SUM(l.amount) FROM DB.orders o JOIN DB.order_lines l ON l.order_id = o.id GROUP BY o.id"
        )
    }
    found: dict[str, Any] = {}
    with httpx.Client(base_url=project.endpoints.elasticsearch, timeout=30) as client:
        client.post(f"/{project.name}-orders/_refresh")
        after: Any = None
        while True:
            query = {"size": 5000, "sort": ["id"]} | ({"search_after": after} if after else {})
            hits = client.post(f"/{project.name}-orders/_search", json=query).json()["hits"]["hits"]
            if not hits:
                break
            after = hits[-1]["sort"]
            for hit in hits:
                one = hit["_source"]
                found[hit["_id"]] = (one["total"], str(sum(Decimal(line["amount"]) for line in one["lines"])))
    assert len(wanted) == ORDERS
    assert found == wanted
