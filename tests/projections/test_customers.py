"""The customer cards: what an author tests, in the words of the shop."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.errors import ScenarioError
from pipeline.testing import UNCHANGED, Scenario
from projections.customers import CustomerCard, Member, customers

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def ada() -> Scenario[CustomerCard]:
    shop = Scenario(customers)
    shop.insert("shop.customers", id=1, name="Ada", email="ada@shop.example", created_at=NOON)
    shop.insert("crm.members", customer_id=1, level="gold", points=7)
    return shop


def test_a_card_says_since_when_the_customer_is_one() -> None:
    card = ada().document(1)

    assert (card.name, card.email, card.joined_at) == ("Ada", "ada@shop.example", NOON)


def test_a_card_shows_what_the_crm_knows_and_a_customer_need_not_be_a_member() -> None:
    shop = ada()
    assert shop.document(1).member == Member(level="gold", points=7)

    shop.update("crm.members", 1, points=8)
    assert shop.document(1).member == Member(level="gold", points=8)

    shop.delete("crm.members", 1)
    assert shop.document(1).member is None


def test_the_sink_never_sees_a_hidden_column() -> None:
    *_, write = ada().writes()["elasticsearch:customers"]

    assert write.document is not None
    assert sorted(write.document) == ["email", "id", "joined_at", "member", "name"]


def test_a_deleted_customer_has_no_card_and_one_who_returns_has() -> None:
    shop = ada()

    shop.update("shop.customers", 1, deleted_at=NOON)
    assert shop.get(1) is None
    with pytest.raises(ScenarioError, match=r"no document 1: keep\(\) says no"):
        shop.document(1)

    shop.update("shop.customers", 1, deleted_at=None)
    assert shop.document(1).name == "Ada"


def test_a_customer_who_is_forgotten_leaves_no_card() -> None:
    shop = ada()

    shop.delete("shop.customers", 1)

    assert shop.documents() == {}


def test_any_delivery_order_gives_the_same_cards() -> None:
    shop = ada()
    shop.insert("shop.customers", id=2, name="Grace", email="grace@shop.example", created_at=NOON, deleted_at=NOON)
    shop.update("shop.customers", 1, email="ada@new.example", name=UNCHANGED)
    shop.update("shop.customers", 2, deleted_at=None)
    shop.rename_key("shop.customers", 2, 3)
    shop.insert("crm.members", customer_id=3, level="bronze", points=1)
    shop.delete("crm.members", 1)
    shop.assert_converges()
