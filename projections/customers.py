"""Customer cards: one document per customer, for the support desk."""

from datetime import datetime
from typing import Annotated

from pipeline import Document, Text, column, elasticsearch, hidden, projection


class CustomerCard(Document, source="shop.customers"):
    id: int
    name: Annotated[str, Text()]
    email: str
    joined_at: datetime = column("created_at")
    deleted_at: datetime | None = hidden()

    def keep(self) -> bool:
        return self.deleted_at is None


customers = projection(CustomerCard, to=elasticsearch("customers"))
