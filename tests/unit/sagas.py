"""An order's saga folded from an outbox, and what it must be: the rows in their order, in plain Python."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any, Self

from msgspec import Struct
from pydantic import BaseModel

from pipeline import Document, EventDocument, derived, group, on
from pipeline.testing.source import Row, Rows

TYPES = ("OrderPlaced", "order.paid", "OrderRefused", "OrderCompensated", "StockCounted")


class OrderPlaced(BaseModel):
    total: Decimal
    lines: int = 1


class Paid(Struct):
    amount: Decimal


class OrderRefused(Struct):
    reason: str


class ShopEvent(Document, source="shop.outbox"):
    id: int
    aggregate_type: str
    aggregate_id: int
    type: str
    payload: dict[str, Any]

    def keep(self) -> bool:
        return self.aggregate_type == "order"


class Saga(EventDocument, of=ShopEvent):
    order_id: int = group("aggregate_id")
    state: str = "unknown"
    total: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    reasons: tuple[str, ...] = ()

    @derived
    def due(self) -> Decimal:
        return self.total - self.paid

    @on(OrderPlaced)
    def placed(self, event: OrderPlaced) -> Self:
        return self.but(state="placed", total=event.total)

    @on(Paid, name="order.paid")
    def settled(self, event: Paid) -> Self:
        return self.but(state="paid", paid=self.paid + event.amount)

    @on(OrderRefused)
    def refused(self, event: OrderRefused) -> Self:
        return self.but(state="refused", reasons=(*self.reasons, event.reason))

    @on(dict[str, Any], name="OrderCompensated")
    def compensated(self, event: dict[str, Any]) -> Self:
        return self.but(state="compensated", paid=Decimal(0))

    def keep(self) -> bool:
        return len(self.reasons) < 4


class ForgettingSaga(Saga, deleted="forgotten"):
    pass


def fresh(random: Random) -> Row:
    # each payload fits each type, because an update may change one without the other
    payload = {
        "total": random.choice(("1.50", "20.00")), "amount": random.randint(1, 9), "reason": random.choice("abc"),
    }  # fmt: skip
    return {
        "id": random.randint(1, 12),
        "aggregate_type": random.choice(("order", "order", "order", "stock")),
        "aggregate_id": random.randint(1, 3),
        "type": random.choice(TYPES),
        "payload": json.dumps(payload),
    }


def sagas(rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in sorted(rows["shop.outbox"].values(), key=lambda row: row["id"]):
        if row["aggregate_type"] != "order" or row["type"] == "StockCounted":
            continue
        payload = json.loads(row["payload"])
        own = found.setdefault(
            str(row["aggregate_id"]),
            {"order_id": row["aggregate_id"], "state": "unknown", "total": "0", "paid": "0", "reasons": []},
        )
        if row["type"] == "OrderPlaced":
            own |= {"state": "placed", "total": payload["total"]}
        elif row["type"] == "order.paid":
            own |= {"state": "paid", "paid": str(int(own["paid"]) + payload["amount"])}
        elif row["type"] == "OrderRefused":
            own |= {"state": "refused", "reasons": [*own["reasons"], payload["reason"]]}
        else:
            own |= {"state": "compensated", "paid": "0"}
    return {
        id: {**own, "due": str(Decimal(own["total"]) - Decimal(own["paid"]))}
        for id, own in found.items()
        if len(own["reasons"]) < 4
    }
