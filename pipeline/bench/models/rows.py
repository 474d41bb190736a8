"""The flat documents of the order lines once more, in Postgres."""

from decimal import Decimal

from pipeline import Document, postgres, projection


class RowDocument(Document, source="shop.order_lines", key=("order_id", "line_no")):
    order_id: int
    line_no: int
    product_id: int
    quantity: int
    unit_price: Decimal


rows = projection(RowDocument, to=postgres("bench.lines"), name="rows")
