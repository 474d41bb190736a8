"""The order documents: what an author tests, in the words of the shop."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from pipeline.testing import UNCHANGED, Scenario
from projections.orders import OrderDocument, orders

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def paid_order() -> Scenario[OrderDocument]:
    shop = Scenario(orders)
    shop.insert("shop.customers", id=1, name="Ada")
    shop.insert("shop.products", id=7, sku="TEA-1", title="Green tea")
    shop.insert("shop.orders", id=10, customer_id=1, status="new", placed_at=NOON, charged=Decimal("9.00"))
    shop.insert("shop.order_lines", order_id=10, line_no=1, product_id=7, quantity=2, unit_price=Decimal("4.50"))
    shop.update("shop.orders", 10, status="paid")
    return shop


def test_an_order_shows_its_customer_its_lines_and_their_sum() -> None:
    order = paid_order().document(10)

    assert order.status == "paid"
    assert order.placed_at == NOON
    assert order.customer is not None and order.customer.name == "Ada"
    assert [(line.line_no, line.amount) for line in order.lines] == [(1, Decimal("9.00"))]
    assert order.total == order.charged == Decimal("9.00")


def test_renaming_a_product_reaches_every_order_that_has_it() -> None:
    shop = paid_order()
    shop.insert("shop.orders", id=11, customer_id=1, status="new", placed_at=NOON, charged=Decimal(0))
    shop.insert("shop.order_lines", order_id=11, line_no=1, product_id=7, quantity=1, unit_price=Decimal("4.50"))

    shop.update("shop.products", 7, title="Sencha")

    for order in shop.documents().values():
        product = order.lines[0].product
        assert product is not None and product.title == "Sencha"


def test_the_stock_of_a_product_is_no_reason_to_write_an_order() -> None:
    shop = paid_order()
    before = shop.writes()

    shop.update("shop.products", 7, stock=3)

    assert shop.writes() == before


def test_a_line_that_moves_leaves_one_order_and_enters_the_other() -> None:
    shop = paid_order()
    shop.insert("shop.orders", id=11, customer_id=1, status="new", placed_at=NOON, charged=Decimal(0))

    shop.rename_key("shop.order_lines", (10, 1), (11, 4))

    assert shop.document(10).lines == ()
    assert [line.line_no for line in shop.document(11).lines] == [4]
    assert (shop.document(10).total, shop.document(11).total) == (Decimal(0), Decimal("9.00"))


def test_an_order_is_there_before_its_customer_is() -> None:
    shop = Scenario(orders)
    shop.insert("shop.orders", id=10, customer_id=1, status="new", placed_at=NOON, charged=Decimal(0))
    assert shop.document(10).customer is None

    shop.insert("shop.customers", id=1, name="Ada")

    customer = shop.document(10).customer
    assert customer is not None and customer.name == "Ada"


def test_nobody_sees_an_order_without_the_lines_it_was_placed_with() -> None:
    shop = Scenario(orders)
    with shop.transaction():
        shop.insert("shop.orders", id=10, customer_id=1, status="new", placed_at=NOON, charged=Decimal("3.00"))
        for n in (1, 2, 3):
            shop.insert("shop.order_lines", order_id=10, line_no=n, product_id=7, quantity=1, unit_price=Decimal(1))

    assert [len(write.document["lines"]) for write in shop.writes()["elasticsearch:orders"] if write.document] == [3]


def test_any_delivery_order_gives_the_same_documents() -> None:
    shop = paid_order()
    shop.update("shop.products", 7, sku="TEA-2", title=UNCHANGED)  # a TOASTed column
    shop.delete("shop.order_lines", (10, 1))
    shop.assert_converges()  # in every order, repeated and with crashes, 200 ways
