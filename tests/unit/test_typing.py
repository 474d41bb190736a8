"""The author's API as a type checker sees it: right use is clean under mypy strict, wrong use is not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RIGHT = """
from datetime import datetime
from decimal import Decimal

from pipeline.testing import UNCHANGED, Scenario
from projections.orders import OrderDocument, orders


def story() -> Scenario[OrderDocument]:
    shop = Scenario(orders)
    with shop.transaction():
        shop.insert("shop.customers", id=1, name="Ada")
        shop.update("shop.customers", 1, name=UNCHANGED)
    shop.assert_converges(10, seed=3)
    return shop


def total(shop: Scenario[OrderDocument]) -> Decimal:
    order: OrderDocument = shop.document(10)
    found = shop.get(10)
    placed: datetime = order.placed_at
    return order.total if found is None else found.lines[0].amount
"""
WRONG = """
from pipeline.testing import Scenario
from projections.orders import orders

shop = Scenario(orders)
shop.document(10).nope
shop.document(10).customer.name
shop.get(10).total
shop.document(10).total.strip()
shop.insert(7, id=1)
shop.assert_converges(seed="a")
Scenario("orders")
"""


def errors(text: str, folder: Path) -> list[tuple[int, str]]:
    """Line and code of each error that mypy finds."""
    file = folder / "authors.py"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--strict", "--cache-dir", ROOT / ".mypy_cache", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return [(int(n), code) for n, code in re.findall(r"authors\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.M)]


def test_right_use_is_clean_and_wrong_use_is_not(tmp_path: Path) -> None:
    assert errors(RIGHT, tmp_path) == []
    assert errors(WRONG, tmp_path) == [
        (6, "attr-defined"),
        (7, "union-attr"),
        (8, "union-attr"),
        (9, "attr-defined"),
        (10, "arg-type"),
        (11, "arg-type"),
        (12, "arg-type"),
    ]


WRONG_AGGREGATE = """
from pipeline import Aggregate, Document, count, count_distinct, group, total


class Sale(Document, source="shop.orders"):
    status: str


class Sales(Aggregate, of=Sale):
    status: str = group()
    orders: str = count()
    customers: list[int] = count_distinct("status")
    revenue: int = total()


found = Sales(status="new", orders=1, customers=[], revenue=1)
found.order
"""


def test_wrong_aggregates_are_type_errors(tmp_path: Path) -> None:
    assert errors(WRONG_AGGREGATE, tmp_path) == [
        (11, "assignment"),
        (12, "assignment"),
        (13, "call-arg"),
        (16, "arg-type"),
        (17, "attr-defined"),
    ]
