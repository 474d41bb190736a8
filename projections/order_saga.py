"""Order sagas: how far each order has come, folded from what the shop's outbox told of it."""

from decimal import Decimal
from typing import Self

from pydantic import BaseModel

from pipeline import Document, EventDocument, elasticsearch, group, on, projection


class OrderPlaced(BaseModel):
    total: Decimal


class OrderPaid(BaseModel):
    amount: Decimal


class OrderRefused(BaseModel):
    reason: str


class OrderCompensated(BaseModel):
    amount: Decimal


class ShopEvent(Document, source="shop.outbox"):
    id: int
    aggregate_type: str
    aggregate_id: int
    type: str
    payload: dict[str, object]

    def keep(self) -> bool:
        return self.aggregate_type == "order"


class OrderSaga(EventDocument, of=ShopEvent):
    order_id: int = group("aggregate_id")
    status: str = "unknown"
    total: Decimal = Decimal(0)
    paid: Decimal = Decimal(0)
    refused_because: str | None = None
    steps: tuple[str, ...] = ()

    @on(OrderPlaced)
    def placed(self, event: OrderPlaced) -> Self:
        return self.but(status="placed", total=event.total, steps=(*self.steps, "placed"))

    @on(OrderPaid)
    def settled(self, event: OrderPaid) -> Self:
        return self.but(status="paid", paid=event.amount, steps=(*self.steps, "paid"))

    @on(OrderRefused)
    def refused(self, event: OrderRefused) -> Self:
        return self.but(status="refused", refused_because=event.reason, steps=(*self.steps, "refused"))

    @on(OrderCompensated)
    def compensated(self, event: OrderCompensated) -> Self:
        return self.but(status="compensated", paid=Decimal(0), steps=(*self.steps, "compensated"))


order_saga = projection(OrderSaga, to=elasticsearch("order_saga"))
