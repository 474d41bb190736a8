"""Customer cards: what two databases know of a customer, where each reader wants it: to search, to join by SQL, to get by key,
to follow."""

from datetime import datetime
from typing import Annotated

from pipeline import Document, Text, column, elasticsearch, hidden, kafka, one, postgres, projection, redis


class Member(Document, source="crm.members", key="customer_id"):
    """The CRM's, in a MariaDB."""

    level: str
    points: int


class CustomerCard(Document, source="shop.customers"):
    id: int
    name: Annotated[str, Text()]
    email: str
    joined_at: datetime = column("created_at")
    deleted_at: datetime | None = hidden()
    member: Member | None = one(via="id")

    def keep(self) -> bool:
        return self.deleted_at is None


customers = projection(
    CustomerCard,
    to=[elasticsearch("customers"), postgres("crm.customers"), redis("crm:customers"), kafka("customer-cards")],
    across_sources=True,
)
