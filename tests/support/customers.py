"""Customer cards of the shop alone, for projects on the real stack without the CRM's database."""

from datetime import datetime
from typing import Annotated

from pipeline import Document, Text, column, elasticsearch, hidden, kafka, postgres, projection, redis


class CustomerCard(Document, source="shop.customers"):
    id: int
    name: Annotated[str, Text()]
    email: str
    joined_at: datetime = column("created_at")
    deleted_at: datetime | None = hidden()

    def keep(self) -> bool:
        return self.deleted_at is None


customers = projection(
    CustomerCard,
    to=[elasticsearch("customers"), postgres("crm.customers"), redis("crm:customers"), kafka("customer-cards")],
)
