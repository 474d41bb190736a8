"""Definitions of foreign topics: what they may say, and how a projection over them is put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from connectors.sources.topics import foreign_catalog, load_topics
from pipeline import Document, elasticsearch, one, projection
from pipeline.errors import DefinitionError, OperationError, SettingsError
from pipeline.events.foreign import ForeignDecoder
from pipeline.operations.apply import CapturedBy, _notes
from pipeline.runtime.wiring import connectors_of, wire
from pipeline.settings import RegistrySettings, Settings

TOPICS = """
name = "billing"
format = "json"
envelope = "flattened"
[tables."billing.invoices"]
topic = "erp.invoices"
key = ["id"]
[tables."billing.invoices".columns]
id = "bigint"
order_id = "integer not null"
total = "numeric(12,2)"
"""


class Order(Document, source="shop.orders"):
    id: int
    status: str


class Alone(Document, source="billing.invoices"):
    id: int
    order_id: int


class Joined(Document, source="billing.invoices"):
    id: int
    order: Order | None = one(via="order_id")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "topics").mkdir()
    (tmp_path / "debezium").mkdir()
    (tmp_path / "topics/billing.toml").write_text(TOPICS)
    (tmp_path / "debezium/shop.toml").write_text('name = "shop"\ntables = ["shop.orders"]\n')
    found = Settings(
        state_dir=tmp_path, connectors=tmp_path / "debezium", topics=tmp_path / "topics", catalog=tmp_path / "c.json"
    )
    foreign_catalog(found).save(found.catalog)
    return found


def test_declared_columns_are_a_table_of_the_catalogue(settings: Settings) -> None:
    table = foreign_catalog(settings).table("billing.invoices")
    assert table.primary_key == ("id",)
    assert [(c.name, c.type, c.nullable) for c in table.columns] == [
        ("id", "bigint", False), ("order_id", "integer", False), ("total", "numeric(12,2)", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"numeric(12,2)"', '"money"', "total: 'money' is not read; types are smallint"),
        ('"numeric(12,2)"', '"timestamp"', "timestamp with time zone"),
        ("total =", "__deleted =", "a mark of flattened rows"),
        ('key = ["id"]', 'key = ["no"]', "key: no is not among the columns"),
        ('format = "json"', 'format = "avro"', "Avro needs one"),
        ('format = "json"', 'format = "json"\nregistry = "x"', "JSON has none"),
        ("total =", "[wrong]\ntotal =", "wrong"),
        ('topic = "erp.invoices"', 'topic = "a b"', "topic"),
    ],
)
def test_a_wrong_definition_says_what_is_wrong(settings: Settings, old: str, new: str, said: str) -> None:
    assert old in TOPICS
    (settings.topics / "billing.toml").write_text(TOPICS.replace(old, new))
    with pytest.raises(SettingsError, match=r"billing\.toml is wrong") as raised:
        load_topics(settings.topics)
    assert said in str(raised.value)


def test_a_table_is_of_one_topic(settings: Settings) -> None:
    (settings.topics / "more.toml").write_text(TOPICS.replace('"billing"\n', '"more"\n', 1))
    with pytest.raises(SettingsError, match=r"billing\.invoices, which billing has"):
        load_topics(settings.topics)


def test_foreign_topics_alone_are_read_by_row_and_need_no_connector(settings: Settings) -> None:
    wired = wire(settings, projection(Alone, to=elasticsearch("alone")))
    assert wired.inputs.topics == {"erp.invoices": "billing.invoices"}
    assert (wired.inputs.transactions, wired.by_table) == ({}, {})
    decoder = wired.inputs.decoder("erp.invoices", wired.layout.root)
    assert isinstance(decoder, ForeignDecoder)
    assert decoder.decode(None, b'{"id":1,"order_id":2}').after == (1, 2)
    with pytest.raises(OperationError, match=r"erp\.invoices is a topic of others"):
        wired.asked_of("billing.invoices")


def test_what_is_joined_with_tables_of_a_connector_says_that_it_is_across_sources(settings: Settings) -> None:
    with pytest.raises(DefinitionError, match=r"billing and shop: that takes across_sources=True"):
        wire(settings, projection(Joined, to=elasticsearch("joined")))
    both = projection(Joined, to=elasticsearch("joined"), across_sources=True)
    inputs = wire(settings, both).inputs
    assert inputs.connector_of("shop.shop.orders") == "shop" and inputs.connector_of("erp.invoices") == "billing"
    assert inputs.transactions == {"shop.transaction": "shop"}
    with pytest.raises(DefinitionError, match=r"topics that others produce, billing\.invoices \(billing\)"):
        connectors_of(settings, both)
    (settings.topics / "billing.toml").write_text(TOPICS.replace('"billing"\n', '"shop"\n', 1))
    with pytest.raises(DefinitionError, match="a connector and foreign topics have one name"):
        wire(settings, both)
    captured = [
        CapturedBy("shop", frozenset({"shop.orders"}), True),
        CapturedBy("billing", frozenset({"billing.invoices"}), True),
    ]
    assert _notes([both], captured) == []


def test_a_registry_without_an_address_is_named(settings: Settings) -> None:
    text = TOPICS.replace('format = "json"', 'format = "avro"\nregistry = "erp"')
    (settings.topics / "billing.toml").write_text(text)
    alone: Any = projection(Alone, to=elasticsearch("alone"))
    with pytest.raises(SettingsError, match=r"set registries\.erp\.url"):
        wire(settings, alone)
    settings.registries["erp"] = RegistrySettings.model_validate(
        {"url": "http://127.0.0.1:1", "username": "u", "password": "secret"}
    )
    assert set(wire(settings, alone).registries) == {"erp.invoices"}
    assert "secret" not in repr(settings) and "secret" not in str(settings.shown())
