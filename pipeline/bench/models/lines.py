"""Flat documents: one per order line."""

from decimal import Decimal

from pipeline import Document, elasticsearch, projection


class LineDocument(Document, source="shop.order_lines", key=("order_id", "line_no")):
    order_id: int
    line_no: int
    product_id: int
    quantity: int
    unit_price: Decimal


lines = projection(LineDocument, to=elasticsearch("lines"))
