"""Order search: one document per order with its customer, its lines, and the product of each line."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pipeline import Document, Text, derived, elasticsearch, many, one, projection


class OrderedProduct(Document, source="shop.products"):
    sku: str
    title: Annotated[str, Text()]


class OrderLine(Document, source="shop.order_lines", key=("order_id", "line_no")):
    line_no: int
    quantity: int
    unit_price: Decimal
    product: OrderedProduct | None = one(via="product_id")

    @derived
    def amount(self) -> Decimal:
        return self.quantity * self.unit_price


class OrderCustomer(Document, source="shop.customers"):
    id: int
    name: Annotated[str, Text()]


class OrderDocument(Document, source="shop.orders"):
    id: int
    status: str
    placed_at: datetime
    charged: Decimal
    customer: OrderCustomer | None = one(via="customer_id")
    lines: tuple[OrderLine, ...] = many(by="order_id", order_by="line_no")

    @derived
    def total(self) -> Decimal:
        return sum((line.amount for line in self.lines), Decimal())


orders = projection(OrderDocument, to=elasticsearch("orders"))
