"""What is said of a connector's slot: nothing where it is read, else what is wrong and the command that heals it."""

from __future__ import annotations

import pytest

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.postgres import Slot
from pipeline.reports.connectors import slot_attention

SHOP = ConnectorDefinition(name="shop", tables=("shop.orders",), slot="cdc_shop")


def slot(*, active: bool, wal_status: str, kept: int | None = 5000) -> Slot:
    return Slot("cdc_shop", active, "0/1", 0, kept, wal_status)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (slot(active=True, wal_status="reserved"), None),
        (slot(active=True, wal_status="extended", kept=1 << 31), None),
        (None, "is not there: cdc connector apply shop; it says where changes are missing, and then it takes --anew"),
        (
            slot(active=False, wal_status="reserved"),
            "holds 5,000 bytes of log, not read now, reserved: cdc connector restart shop, or resume where it was paused",
        ),
        (
            slot(active=False, wal_status="lost", kept=None),
            "is lost: the source has removed log that was not read yet: cdc connector apply shop --anew: a new snapshot"
            " is read",
        ),
    ],
)
def test_a_slot_is_named_with_its_connector_and_what_heals_it(found: Slot | None, told: str | None) -> None:
    assert slot_attention(SHOP, found) == (told and f"slot cdc_shop of connector shop: {told}")
