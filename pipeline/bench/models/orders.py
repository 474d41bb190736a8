"""Joined documents: an order with its customer, its lines and each line's product."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pipeline import Document, Text, elasticsearch, many, one, projection


class Product(Document, source="shop.products"):
    sku: str
    title: Annotated[str, Text()]


class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
    line_no: int
    quantity: int
    unit_price: Decimal
    product: Product | None = one(via="product_id")


class Customer(Document, source="shop.customers"):
    id: int
    name: Annotated[str, Text()]
    email: str


class OrderDocument(Document, source="shop.orders"):
    id: int
    status: str
    placed_at: datetime
    charged: Decimal
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", order_by="line_no")


orders = projection(OrderDocument, to=elasticsearch("orders"))
