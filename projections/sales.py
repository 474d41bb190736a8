"""Daily sales: one document per day and status, kept current as orders are placed, changed and deleted."""

from datetime import date, datetime
from decimal import Decimal

from pipeline import (
    Aggregate,
    Document,
    average,
    count,
    count_distinct,
    elasticsearch,
    group,
    latest,
    many,
    maximum,
    projection,
    total,
)


class SoldLine(Document, source="shop.order_lines", key=("order_id", "line_no")):
    quantity: int


class Sale(Document, source="shop.orders"):
    customer_id: int
    status: str
    placed_at: datetime
    charged: Decimal
    lines: tuple[SoldLine, ...] = many(by="order_id")

    @property
    def day(self) -> date:
        return self.placed_at.date()

    @property
    def pieces(self) -> int:
        return sum(line.quantity for line in self.lines)

    def keep(self) -> bool:
        return self.charged > 0


class DailySales(Aggregate, of=Sale):
    day: date = group()
    status: str = group()
    orders: int = count()
    customers: int = count_distinct("customer_id")
    pieces: int = total("pieces")
    revenue: Decimal = total("charged")
    average_order: Decimal = average("charged", places=2)
    largest_order: Decimal = maximum("charged")
    last_placed_at: datetime = latest("placed_at")


sales = projection(DailySales, to=elasticsearch("sales"))
