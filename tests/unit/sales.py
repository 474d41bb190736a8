"""Two aggregates over the shop, and what they must be: GROUP BY over the source's rows."""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import apsw

from pipeline import (
    Aggregate,
    Document,
    average,
    collect,
    count,
    count_distinct,
    derived,
    group,
    hidden,
    latest,
    many,
    maximum,
    minimum,
    one,
    total,
)
from pipeline.testing.source import Rows


class Product(Document, source="shop.products"):
    sku: str


class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
    quantity: int
    unit_price: Decimal

    @derived
    def amount(self) -> Decimal:
        return self.quantity * self.unit_price


class Customer(Document, source="shop.customers"):
    id: int
    name: str | None


class Sale(Document, source="shop.orders"):
    id: int
    customer_id: int | None
    status: str
    placed_at: datetime = hidden()
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id")

    @property
    def day(self) -> date:
        return self.placed_at.date()

    @derived
    def amount(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal())

    def keep(self) -> bool:
        return self.status >= "b"


class Sales(Aggregate, of=Sale):
    day: date = group()
    who: str | None = group("customer.name")
    sales: int = count()
    customers: int = count_distinct("customer_id")
    revenue: Decimal = total("amount")
    mean: Decimal = average("amount", places=3)
    least: Decimal = minimum("amount")
    most: Decimal = maximum("amount")
    last_status: str = latest("status", by="placed_at")
    last_at: datetime = latest("placed_at")
    newest: tuple[int, ...] = collect("id", by="-placed_at", limit=2)


class ItemOrder(Document, source="shop.orders"):
    status: str
    customer: Customer | None = one(via="customer_id")


class Item(Document, source="shop.order_lines", key=("order_id", "line_no")):
    quantity: int
    unit_price: Decimal
    order: ItemOrder | None = one(via="order_id")
    product: Product | None = one(via="product_id")


class Items(Aggregate, of=Item):
    sku: str | None = group("product.sku")
    pieces: int = total("quantity")
    dearest: Decimal = maximum("unit_price")
    customers: int = count_distinct("order.customer.id")
    first_status: str | None = minimum("order.status")
    quantities: tuple[int, ...] = collect("quantity", limit=3)


def _tables(rows: Rows) -> apsw.Connection:
    """The source's rows in SQLite, money in cents; what an aggregate must be is asked of it by GROUP BY."""
    db = apsw.Connection(":memory:")
    db.create_scalar_function("text", lambda cents: f"{cents // 100}.{cents % 100:02}" if cents else "0", 1)
    db.execute("CREATE TABLE customers(id, name)")
    db.execute("CREATE TABLE products(id, sku)")
    db.execute("CREATE TABLE orders(id, customer_id, status, placed_at)")
    db.execute("CREATE TABLE order_lines(order_id, line_no, product_id, quantity, cents)")
    for table, of in rows.items():
        short = table.partition(".")[2]
        names = [name for _, name, *_ in db.execute(f"PRAGMA table_info({short})")]
        own = [
            {**row, "cents": int(row["unit_price"].replace(".", ""))} if "unit_price" in row else row
            for row in of.values()
        ]
        db.executemany(
            f"INSERT INTO {short} VALUES({', '.join('?' * len(names))})", [[row[n] for n in names] for row in own]
        )
    return db


SALES = """
WITH sale AS (
    SELECT o.id, o.customer_id, o.status, o.placed_at, substr(o.placed_at, 1, 10) AS day, c.name AS who,
        coalesce((SELECT sum(quantity * cents) FROM order_lines l WHERE l.order_id = o.id), 0) AS amount
    FROM orders o LEFT JOIN customers c ON c.id = o.customer_id WHERE o.status >= 'b'),
ranked AS (SELECT *, row_number() OVER (PARTITION BY day, who ORDER BY placed_at DESC, id DESC) AS n FROM sale)
SELECT day, who, count(*), count(DISTINCT customer_id), text(sum(amount)), sum(amount), text(min(amount)),
    text(max(amount)), max(status) FILTER (WHERE n = 1), max(placed_at), json_group_array(id ORDER BY n) FILTER (WHERE n <= 2)
FROM ranked GROUP BY day, who
"""
ITEMS = """
WITH item AS (
    SELECT p.sku, l.quantity, l.cents, o.status, c.id AS customer,
        row_number() OVER (PARTITION BY p.sku ORDER BY l.quantity, l.order_id, l.line_no) AS n
    FROM order_lines l LEFT JOIN orders o ON o.id = l.order_id LEFT JOIN customers c ON c.id = o.customer_id
    LEFT JOIN products p ON p.id = l.product_id)
SELECT sku, sum(quantity), text(max(cents)), count(DISTINCT customer), min(status),
    json_group_array(quantity ORDER BY n) FILTER (WHERE n <= 3) FROM item GROUP BY sku
"""


def sales(rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for day, who, n, customers, revenue, cents, least, most, status, last, newest in _tables(rows).execute(SALES):
        mills = (2 * 10 * cents + n) // (2 * n)
        found[json.dumps([day, who], separators=(",", ":"), ensure_ascii=False)] = {
            "day": day, "who": who, "sales": n, "customers": customers, "revenue": revenue,
            "mean": f"{mills // 1000}.{mills % 1000:03}", "least": least, "most": most,
            "last_status": status, "last_at": last.replace(".000000", ""), "newest": json.loads(newest),
        }  # fmt: skip
    return found


def items(rows: Rows) -> dict[str, Any]:
    return {
        "[null]" if sku is None else sku: {
            "sku": sku, "pieces": pieces, "dearest": dearest, "customers": customers, "first_status": status,
            "quantities": json.loads(quantities),
        }
        for sku, pieces, dearest, customers, status, quantities in _tables(rows).execute(ITEMS)
    }  # fmt: skip
