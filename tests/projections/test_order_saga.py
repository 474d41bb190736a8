"""Order sagas: what readers see after each thing that the outbox tells."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from pipeline.testing import Scenario
from projections.order_saga import OrderSaga, order_saga


def tell(shop: Scenario[OrderSaga], id: int, type: str, order: int = 10, **payload: Any) -> None:
    shop.insert("shop.outbox", id=id, aggregate_type="order", aggregate_id=order, type=type, payload=payload)


def paid_order() -> Scenario[OrderSaga]:
    shop = Scenario(order_saga)
    tell(shop, 1, "OrderPlaced", total=9.5)
    tell(shop, 2, "OrderPaid", amount=9.5)
    return shop


def test_a_saga_shows_how_far_its_order_has_come() -> None:
    assert paid_order().document(10) == OrderSaga(
        order_id=10, status="paid", total=Decimal("9.5"), paid=Decimal("9.5"), steps=("placed", "paid")
    )


def test_a_refused_order_that_was_paid_is_compensated() -> None:
    shop = paid_order()
    with shop.transaction():
        tell(shop, 3, "OrderRefused", reason="out of stock")
        tell(shop, 4, "OrderCompensated", amount=9.5)

    saga = shop.document(10)

    assert (saga.status, saga.paid, saga.refused_because) == ("compensated", Decimal(0), "out of stock")
    seen = [write.document["status"] for write in shop.writes()["elasticsearch:order_saga"] if write.document]
    assert seen == ["placed", "paid", "compensated"], "one transaction of the outbox is one step of the read model"


def test_an_outbox_that_is_emptied_after_publishing_takes_nothing_back() -> None:
    shop = paid_order()
    before = shop.documents()

    shop.delete("shop.outbox", 1)
    shop.truncate("shop.outbox")

    assert shop.documents() == before
    shop.assert_converges(40)


def test_an_event_that_can_not_be_read_holds_up_its_own_order_alone() -> None:
    shop = paid_order()
    tell(shop, 3, "OrderRefused", why="out of stock")
    tell(shop, 4, "OrderPlaced", order=11, total=1)

    assert shop.pending() == {
        "10": "failed: shop.outbox 3: UnsupportedValue: the payload is no OrderRefused: reason: Field required"
    }
    assert shop.document(11).status == "placed"

    shop.update("shop.outbox", 3, payload={"reason": "out of stock"})

    assert shop.document(10).status == "refused"


def test_what_the_outbox_tells_of_other_things_is_no_step() -> None:
    shop = paid_order()
    before = shop.writes()

    shop.insert("shop.outbox", id=3, aggregate_type="customer", aggregate_id=10, type="OrderRefused", payload={})
    tell(shop, 4, "OrderLookedAt")

    assert shop.writes() == before


def test_any_delivery_order_gives_the_same_sagas() -> None:
    shop = paid_order()
    tell(shop, 7, "OrderCompensated", amount=9.5)
    tell(shop, 5, "OrderRefused", reason="late to the table, early in the order")
    tell(shop, 8, "OrderPlaced", order=11, total=1)
    assert shop.document(10).steps == ("placed", "paid", "refused", "compensated")
    shop.assert_converges()
