"""The shop's tables behind a model of Debezium, three documents over them, and the oracle that knows what they must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any

import sagas
import sales
import webs

from pipeline import Aggregate, Document, column, derived, hidden, many, one
from pipeline.events.envelope import UNCHANGED
from pipeline.testing.source import Row, Rows, SourceModel

KEYS = {
    **webs.KEYS,
    "shop.customers": ("id",),
    "shop.products": ("id",),
    "shop.orders": ("id",),
    "shop.order_lines": ("order_id", "line_no"),
    "shop.outbox": ("id",),
}
LONG = {"shop.customers": "name", "shop.products": "title", "shop.orders": "note", "web.people": "name"}
"""A column of each table that an update may leave out."""


class Product(Document, source="shop.products"):
    sku: str
    title: str | None


class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
    line_no: int
    quantity: int
    unit_price: Decimal
    product: Product | None = one(via="product_id")

    @derived
    def amount(self) -> Decimal:
        return self.quantity * self.unit_price


class Customer(Document, source="shop.customers"):
    id: int
    name: str | None


class Order(Document, source="shop.orders"):
    id: int
    status: str
    note: str | None
    placed_at: datetime
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", order_by="line_no")

    @derived
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal())


class TreeLine(Document, source="shop.order_lines", key=("order_id", "line_no")):
    line_no: int
    unit_price: Decimal
    product: Product | None = one(via="product_id")


class TreeOrder(Document, source="shop.orders"):
    id: int
    status: str
    lines: tuple[TreeLine, ...] = many(by="order_id")


class Tree(Document, source="shop.customers"):
    id: int
    name: str | None
    orders: tuple[TreeOrder, ...] = many(by="customer_id", order_by="placed_at")


class Card(Document, source="shop.customers"):
    id: int
    label: str | None = column("name")
    deleted_at: datetime | None = hidden()

    def keep(self) -> bool:
        return self.deleted_at is None


Documents = dict[str, Any]


def _product(rows: Rows, row: Row) -> Any:
    found = rows["shop.products"].get((row["product_id"],))
    return found and {"sku": found["sku"], "title": found["title"]}


def _lines(rows: Rows, order: Row) -> list[Row]:
    of = [row for row in rows["shop.order_lines"].values() if row["order_id"] == order["id"]]
    return sorted(of, key=lambda row: row["line_no"])


def _time(text: str) -> str:
    return text.replace(".000000", "")


def orders(rows: Rows) -> Documents:
    found: Documents = {}
    for row in rows["shop.orders"].values():
        lines: list[Any] = []
        total = Decimal()
        for line in _lines(rows, row):
            amount = line["quantity"] * Decimal(line["unit_price"])
            total += amount
            plain = {name: line[name] for name in ("line_no", "quantity", "unit_price")}
            lines.append({**plain, "product": _product(rows, line), "amount": str(amount)})
        customer = rows["shop.customers"].get((row["customer_id"],))
        found[str(row["id"])] = {
            "id": row["id"],
            "status": row["status"],
            "note": row.get("note"),
            "placed_at": _time(row["placed_at"]),
            "customer": customer and {"id": customer["id"], "name": customer["name"]},
            "lines": lines,
            "total": str(total),
        }
    return found


def trees(rows: Rows) -> Documents:
    found: Documents = {}
    for row in rows["shop.customers"].values():
        own = [order for order in rows["shop.orders"].values() if order["customer_id"] == row["id"]]
        own.sort(key=lambda order: (_time(order["placed_at"]).rstrip("Z"), order["id"]))
        inside = []
        for order in own:
            lines = [
                {"line_no": line["line_no"], "unit_price": line["unit_price"], "product": _product(rows, line)}
                for line in _lines(rows, order)
            ]
            inside.append({"id": order["id"], "status": order["status"], "lines": lines})
        found[str(row["id"])] = {"id": row["id"], "name": row["name"], "orders": inside}
    return found


def cards(rows: Rows) -> Documents:
    return {
        str(row["id"]): {"id": row["id"], "label": row["name"]}
        for row in rows["shop.customers"].values()
        if row["deleted_at"] is None
    }


SHAPES: Mapping[str, tuple[type[Document] | type[Aggregate], Callable[[Rows], Documents]]] = {
    "sagas": (sagas.Saga, sagas.sagas),
    "forgetting sagas": (sagas.ForgettingSaga, sagas.sagas),
    "sales": (sales.Sales, sales.sales),
    "items": (sales.Items, sales.items),
    "orders": (Order, orders),
    "trees": (Tree, trees),
    "cards": (Card, cards),
    "webs": (webs.Web, webs.webs),
    "python webs": (webs.PythonWeb, webs.python_webs),
}


# ---- random changes ---------------------------------------------------------------------------------------

_TIMES = ("2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.100000Z", "2026-03-01T12:00:00.000000Z")


def _fresh(random: Random, table: str) -> Row:
    word = random.choice("abcdef") + str(random.randrange(100))
    if table in webs.KEYS:
        return webs.fresh(random, table)
    if table == "shop.outbox":
        return sagas.fresh(random)
    if table == "shop.customers":
        deleted = random.choice((None, None, _TIMES[0]))
        return {"id": random.randint(1, 3), "name": random.choice((word, word, None)), "deleted_at": deleted}
    if table == "shop.products":
        return {"id": random.randint(1, 3), "sku": word, "title": random.choice((word.upper(), "x\"'\\ü€🎈"))}
    if table == "shop.orders":
        customer = random.choice((1, 2, 3, None))
        row = {"id": random.randint(1, 4), "customer_id": customer, "status": word}
        return {**row, "note": random.choice((None, word)), "placed_at": random.choice(_TIMES)}
    return {
        "order_id": random.randint(1, 4),
        "line_no": random.randint(1, 3),
        "product_id": random.choice((1, 2, 3, None)),
        "quantity": random.randint(1, 9),
        "unit_price": random.choice(("1.50", "0.99", "10.00")),
    }


def change(random: Random, source: SourceModel, *, spare: frozenset[Any] = frozenset()) -> None:
    """One random change; what it can't do is left out. Keys in `spare` (table, key) are not touched."""
    table = random.choice(tuple(source.keys))
    if random.random() < 0.03 and not spare:
        source.truncate(table)
        return
    row = _fresh(random, table)
    key = source.key_of(table, row)
    if (table, key) in spare:
        return
    if key not in source.rows[table]:
        source.insert(table, row)
        return
    what = random.random()
    if what < 0.25:
        source.delete(table, key)
        return
    if what < 0.4:
        other = source.key_of(table, _fresh(random, table))
        if other in source.rows[table] or (table, other) in spare:
            return
        changes = dict(zip(source.keys[table], other, strict=True))
        if table in LONG:
            changes[LONG[table]] = UNCHANGED
        source.update(table, key, **changes)
        return
    changes = {name: item for name, item in row.items() if random.random() < 0.5 and name not in source.keys[table]}
    if table in LONG and source.rows[table][key][LONG[table]] is not None and random.random() < 0.4:
        changes[LONG[table]] = UNCHANGED
    source.update(table, key, **changes)
