"""Daily sales: what a day's numbers are after each thing that may happen to an order."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from pipeline.errors import ScenarioError
from pipeline.testing import Scenario
from projections.sales import DailySales, sales

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAY = date(2026, 11, 24)


def two_orders() -> Scenario[DailySales]:
    shop = Scenario(sales)
    for id, charged in ((10, "9.00"), (11, "4.50")):
        with shop.transaction():
            shop.insert("shop.orders", id=id, customer_id=1, status="new", placed_at=NOON, charged=Decimal(charged))
            shop.insert(
                "shop.order_lines", order_id=id, line_no=1, product_id=7, quantity=2, unit_price=Decimal(charged) / 2
            )
    return shop


def test_a_day_sums_up_its_orders() -> None:
    shop = two_orders()
    day = shop.document(DAY, "new")
    assert day == DailySales(
        day=DAY, status="new", orders=2, customers=1, pieces=4, revenue=Decimal("13.50"),
        average_order=Decimal("6.75"), largest_order=Decimal("9.00"), last_placed_at=NOON,
    )  # fmt: skip
    assert shop.documents() == {(DAY, "new"): day}


def test_a_paid_order_moves_to_the_paid_and_the_next_largest_is_uncovered() -> None:
    shop = two_orders()
    shop.update("shop.orders", 10, status="paid")
    assert shop.document(DAY, "new").largest_order == Decimal("4.50")
    assert shop.document(DAY, "paid").revenue == Decimal("9.00")
    shop.assert_converges(40)


def test_an_order_without_a_charge_is_no_sale_and_an_empty_day_no_document() -> None:
    shop = two_orders()
    shop.update("shop.orders", 10, charged=Decimal(0))
    shop.delete("shop.orders", 11)
    with pytest.raises(ScenarioError, match=r"has no group .*2026-11-24.*there is none"):
        shop.document(DAY, "new")
    shop.update("shop.orders", 10, charged=Decimal(1))
    assert shop.document(DAY, "new").orders == 1
    shop.assert_converges(40)


def test_lines_that_come_and_go_change_the_pieces_alone() -> None:
    shop = two_orders()
    before = shop.document(DAY, "new")
    shop.insert("shop.order_lines", order_id=11, line_no=2, product_id=7, quantity=5, unit_price=Decimal(1))
    after = shop.document(DAY, "new")
    assert after == before.model_copy(update={"pieces": 9})
    assert {row.table for row in shop.explain(DAY, "new").rows} == {"shop.orders", "shop.order_lines"}
    shop.truncate("shop.order_lines")
    assert shop.document(DAY, "new").pieces == 0
    shop.assert_converges(40)
