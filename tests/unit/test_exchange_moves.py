"""Rows whose owner can change: children with keys of their own, groups, and events, in the exchange against the oracle."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import Aggregate, Document, EventDocument, count, group, many, maximum, on, one, total
from pipeline.authoring.shape import shape_of
from pipeline.engine.layout import lay_out
from pipeline.engine.measures import group_id
from pipeline.testing.source import SourceModel
from tests.unit.test_engine_properties import Customers, small_fanouts
from tests.unit.test_exchange_properties import Shop, converge

__all__ = ["small_fanouts"]

KEYS = {"shop.customers": ("id",), "shop.orders": ("id",), "shop.lines": ("id",)}


class Line(Document, source="shop.lines"):
    id: int
    quantity: int


class Buyer(Document, source="shop.customers"):
    name: str


class Order(Document, source="shop.orders"):
    id: int
    status: str
    charged: Decimal
    customer_id: int | None
    customer: Buyer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", order_by="id")

    @property
    def pieces(self) -> int:
        return sum(line.quantity for line in self.lines)

    @property
    def large(self) -> bool:
        return self.pieces > 9

    def keep(self) -> bool:
        return self.status != "draft"


class OfCustomer(Aggregate, of=Order):
    customer_id: int | None = group()
    orders: int = count()
    charged: Decimal = total("charged")
    pieces: int = total("pieces")
    name: str | None = maximum("customer.name")


class ByStatus(Aggregate, of=Order):
    large: bool = group()
    status: str = group()
    orders: int = count()
    pieces: int = total("pieces")


class Moves(Customers):
    """Orders that change hands, lines that change their order, with keys of their own."""

    def product(self) -> None:
        self.order()

    def order(self) -> None:
        self._put("shop.orders", {
            "id": self.random.randint(1, 5),
            "status": self.random.choice(("draft", "placed", 'pa"id', "{ø😀\\", "[", "")),
            "charged": self.random.choice(("1.00", "0.5", "-3")),
            "customer_id": self.random.choice((None, 0, 1, 2, 3)),
        })  # fmt: skip

    def line(self) -> None:
        self._put("shop.lines", {
            "id": self.random.randint(1, 6),
            "quantity": self.random.randint(0, 9),
            "order_id": self.random.choice((None, 0, 1, 2, 3, 4, 5)),
        })  # fmt: skip


def orders(model: SourceModel, n: int) -> dict[str, Any]:
    rows = model.states[n]
    found = {}
    for order in rows["shop.orders"].values():
        if order["status"] == "draft":
            continue
        customer = rows["shop.customers"].get((order["customer_id"],))
        lines = sorted((line for line in rows["shop.lines"].values() if line["order_id"] == order["id"]),
                       key=lambda line: line["id"])  # fmt: skip
        found[str(order["id"])] = {
            **order,
            "customer": None if customer is None else {"name": customer["name"]},
            "lines": [{"id": line["id"], "quantity": line["quantity"]} for line in lines],
        }
    return found


def of_customer(model: SourceModel, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for order in orders(model, n).values():
        whose = order["customer_id"]
        known = found.setdefault(group_id(json.dumps([whose])), [])
        known.append(order)
    return {
        id: {
            "customer_id": of[0]["customer_id"],
            "orders": len(of),
            "charged": str(sum(Decimal(order["charged"]) for order in of)),
            "pieces": sum(line["quantity"] for order in of for line in order["lines"]),
            "name": None if of[0]["customer"] is None else of[0]["customer"]["name"],
        }
        for id, of in found.items()
    }


def by_status(model: SourceModel, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for order in orders(model, n).values():
        pieces = sum(line["quantity"] for line in order["lines"])
        key = [pieces > 9, order["status"]]
        text = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
        document = found.setdefault(group_id(text), {"large": key[0], "status": key[1], "orders": 0, "pieces": 0})
        document["orders"] += 1
        document["pieces"] += pieces
    return found


class Event(Document, source="shop.events"):
    id: int
    of: int
    type: str
    payload: str


class Story(EventDocument, of=Event):
    of: int = group()
    seen: tuple[int, ...] = ()

    @on(int, name="seen")
    def see(self, event: int) -> Self:
        return self.but(seen=(*self.seen, event))


class Events(Customers):
    """An outbox that somebody tidies up, and where somebody puts right whose an event is; no id is used again."""

    def transaction(self) -> None:
        with self.model.transaction():
            for _ in range(self.random.randint(1, 4)):
                self.random.choice((self.event, self.event, self.event, self.delete))()

    def event(self) -> None:
        rows = self.model.rows["shop.events"]
        self.serial += 1
        key = self.random.choice([*(key for (key,) in rows), self.serial, self.serial])
        event = {"of": self.random.randint(0, 3), "type": "seen", "payload": str(self.random.randint(1, 99))}
        self._put("shop.events", {"id": key, **event})

    order = event


def stories(model: SourceModel, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (_,), row in sorted(model.ever("shop.events", n).items()):
        document = found.setdefault(str(row["of"]), {"of": row["of"], "seen": []})
        document["seen"].append(int(row["payload"]))
    return found


FULL = frozenset({"shop.orders", "shop.lines", "shop.events"})
SHOPS = {
    "children with keys of their own": Shop(lay_out(shape_of(Order)), KEYS, Moves, orders),
    "the same, and old images": Shop(lay_out(shape_of(Order)), KEYS, Moves, orders, FULL),
    "groups": Shop(lay_out(shape_of(OfCustomer)), KEYS, Moves, of_customer),
    "groups, and old images": Shop(lay_out(shape_of(OfCustomer)), KEYS, Moves, of_customer, FULL),
    "groups by what is computed, too": Shop(lay_out(shape_of(ByStatus)), KEYS, Moves, by_status),
    "events": Shop(lay_out(shape_of(Story)), {"shop.events": ("id",)}, Events, stories),
}


@pytest.mark.edge_case(6, 8, 13, 38, 40, 41)
@pytest.mark.parametrize("shop", SHOPS.values(), ids=SHOPS.keys())
@given(
    random=st.randoms(use_true_random=False),
    workers=st.integers(2, 3),
    partitions=st.integers(1, 3),
    rounds=st.integers(10, 70),
    staged_bytes=st.sampled_from([300, 64_000_000]),
    begin=st.sampled_from(["log", "snapshot", "copy"]),
)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_row_that_moves_is_its_new_owners_and_no_longer_its_old_ones(
    shop: Shop, random: Random, workers: int, partitions: int, rounds: int, staged_bytes: int, begin: str
) -> None:
    if shop.layout.root.kept:
        begin = "log"  # only the log knows of events that were deleted
    converge(shop, random, workers, partitions, rounds, staged_bytes, begin)
