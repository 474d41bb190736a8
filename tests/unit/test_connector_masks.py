"""What a connector masks: what Debezium is told, what is never shown, and what check says of it."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr, ValidationError

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.masks import masked, unsalted
from pipeline import Document, elasticsearch, many, one, projection
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.errors import SettingsError
from pipeline.operations.check import Captures, check
from pipeline.stack.connect import PLUGIN

DSN = "postgresql://reader:very-secret@db.example/shop"
SALT = SecretStr("pepper-and-salt")
SHOP = ConnectorDefinition(
    name="shop",
    tables=("shop.customers", "shop.orders"),
    mask={"shop.customers.email": "hash", "shop.customers.name": "hash", "shop.orders.note": "redact"},
)


def column(name: str, kind: str = "text", **more: bool) -> Column:
    return Column(name=name, type=kind, nullable=False, **more)


CATALOG = Catalog.of(
    [
        Table(
            name="shop.customers",
            columns=(column("id", "bigint"), column("email", toastable=True), column("name"), column("mood", "citext")),
            primary_key=("id",),
            replica_identity="full",
        ),
        Table(
            name="shop.orders",
            columns=(column("id", "bigint"), column("email"), column("note"), column("customer_id", "bigint")),
            primary_key=("id",),
        ),
    ]
)


def test_debezium_is_told_by_its_own_options_and_nobody_else_the_salt() -> None:
    config = SHOP.config(DSN, salt=SALT)
    assert config["connector.class"] == PLUGIN
    hashed = config["column.mask.hash.v2.SHA-256.with.salt.pepper-and-salt"]
    assert hashed == r"shop\.customers\.email,shop\.customers\.name"
    assert config["column.mask.with.3.chars"] == r"shop\.orders\.note"
    assert "pepper" not in json.dumps({unsalted(key): value for key, value in config.items()})
    assert "pepper" not in repr(masked(CATALOG, [SHOP], SALT)) + masked(CATALOG, [SHOP], SALT).text()
    assert not any("mask" in key for key in ConnectorDefinition(name="shop", tables=("a.b",)).config(DSN))


def test_without_a_salt_nothing_is_hashed_and_that_is_said() -> None:
    with pytest.raises(SettingsError, match=r"Connector shop hashes columns: set mask\.salt"):
        SHOP.config(DSN)


@pytest.mark.parametrize(
    "key", ["column.mask.with.4.chars", "column.truncate.to.4.chars", "column.mask.hash.MD5.with.salt.oops"]
)
def test_masks_that_verify_would_not_know_of_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=r"only what .mask. says is known") as raised:
        ConnectorDefinition(name="shop", tables=("a.b",), extra={key: "a.b.c"})
    assert "oops" not in str(raised.value).partition("[type=")[0]


def test_keys_of_ones_own_are_refused_beside_masks() -> None:
    given = {"name": "shop", "tables": ["a.b"], "extra": {"message.key.columns": "a.b:email"}}
    assert ConnectorDefinition.model_validate(given)
    with pytest.raises(ValidationError, match="keys are not masked"):
        ConnectorDefinition.model_validate({**given, "mask": {"a.b.email": "hash"}})


class Order(Document, source="shop.orders"):
    id: int


class Customer(Document, source="shop.customers"):
    id: int
    email: str
    orders: tuple[Order, ...] = many(by="email", to="email", order_by="note")


class ByMail(Document, source="shop.customers", key="email"):
    email: str


class Sold(Document, source="shop.orders"):
    id: int
    to: ByMail | None = one(via="email")


def test_check_names_masks_that_can_not_be_and_documents_that_need_the_value() -> None:
    wrong = {
        "shop.customers.id": "hash", "shop.customers.mood": "redact", "shop.customers.mail": "hash", "shop.strange.x": "hash",
        "shop.customers.email": "hash",
    }  # fmt: skip
    projections = [projection(Customer, to=elasticsearch("customers")), projection(Sold, to=elasticsearch("sold"))]
    captured = Captures("shop", "", frozenset(SHOP.tables), wrong)

    report = check(projections, masked(CATALOG, [SHOP], None), sinks={}, connectors=[captured])

    said = [(f.subject, f.message) for f in report.findings if f.error == "BadMask"]
    assert [subject for subject, _ in said].count("shop.mask") == 3
    text = "\n".join(message for _, message in said)
    for part in ("primary key", "mood is citext", "no column 'mail'", "joined, ordered or chosen", "ByMail's key"):
        assert part in text, text
    assert {subject for subject, _ in said} == {"shop.mask", "Customer.orders", "Sold.to", "ByMail"}


def test_a_hash_over_a_long_text_wants_its_old_values() -> None:
    table = CATALOG.tables["shop.customers"].model_copy(update={"replica_identity": "default"})
    for mask, wanted in (({"shop.customers.email": "hash"}, 1), ({"shop.customers.email": "redact"}, 0)):
        report = check([], Catalog.of([table]), sinks={}, connectors=[Captures("shop", "", frozenset(), mask)])
        assert sum("REPLICA IDENTITY FULL" in f.suggestion for f in report.findings) == wanted
