"""The source's truth for the measured read models, by plain SQL on a path of its own."""

from __future__ import annotations

from typing import Final

from pipeline.demo import truth

LINES: Final = """
SELECT '[' || l.order_id || ',' || l.line_no || ']', json_build_object('order_id', l.order_id, 'line_no', l.line_no,
    'product_id', l.product_id, 'quantity', l.quantity, 'unit_price', l.unit_price::text)
FROM shop.order_lines l
"""
TOTALS: Final = truth.ORDERS.replace("'name', c.name)", "'name', c.name, 'email', c.email)")
ORDERS: Final = (
    TOTALS.replace("'amount', (l.quantity * l.unit_price)::text,", "").rpartition(",\n    'total'")[0]
    + ")\nFROM shop.orders o\n"
)
QUERIES: Final = {"lines": LINES, "orders": ORDERS, "totals": TOTALS}
