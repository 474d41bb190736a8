"""Fields that are hashed or masked: what documents have of them, and what an author can't mask."""

from __future__ import annotations

import hashlib

import pytest
from pydantic import SecretStr

from pipeline import (
    Aggregate,
    Document,
    count,
    derived,
    elasticsearch,
    group,
    hashed,
    many,
    masked,
    projection,
)  # fmt: skip
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.fingerprint import fingerprint
from pipeline.authoring.masks import Mask
from pipeline.authoring.shape import shape_of
from pipeline.engine.layout import lay_out
from pipeline.errors import BadShape, SettingsError
from pipeline.operations.check import check
from pipeline.settings import MaskSettings, Settings, load
from pipeline.testing import Scenario


class Card(Document, source="shop.cards", key="number"):
    number: int
    holder: str | None = hashed("holder_name")
    iban: str = masked(keep=4)
    pin: str | None = masked()


class Customer(Document, source="shop.customers"):
    id: int
    email: str | None = hashed()
    cards: tuple[Card, ...] = many(by="customer_id")

    @derived
    def short(self) -> str:
        return (self.email or "nobody")[:6]


class Domain(Aggregate, of=Customer):
    email: str | None = group()
    customers: int = count()


customers = projection(Customer, to=elasticsearch("customers"))
domains = projection(Domain, to=elasticsearch("domains"))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def story() -> Scenario[Customer]:
    shop = Scenario(customers)
    shop.insert("shop.customers", id=1, email="ada@x.example")
    shop.insert("shop.customers", id=2, email=None)
    shop.insert("shop.cards", number=1, customer_id=1, holder_name="Ädä", iban="AT61190430023457", pin="1234")
    shop.insert("shop.cards", number=2, customer_id=1, holder_name="", iban="1234", pin=None)
    shop.insert("shop.cards", number=3, customer_id=2, holder_name=None, iban="", pin="")
    return shop


def test_documents_and_the_authors_code_have_the_mask_and_nothing_else() -> None:
    shop = story()
    ada, nobody = shop.document(1), shop.document(2)

    assert (ada.email, ada.short) == (sha256("ada@x.example"), sha256("ada@x.example")[:6])
    assert [(c.holder, c.iban, c.pin) for c in ada.cards] == [
        (sha256("Ädä"), "***3457", "***"),
        (sha256(""), "***", None),
    ]
    assert (nobody.email, nobody.short) == (None, "nobody")
    assert [(c.holder, c.iban, c.pin) for c in nobody.cards] == [(None, "***", "***")]
    assert "ada@" not in str(shop.writes()) and "AT61" not in str(shop.writes())


def test_every_delivery_ends_in_the_same_masks() -> None:
    shop = story()
    shop.update("shop.cards", 1, iban="DE02120300000000202051")
    shop.update("shop.customers", 2, email="bo@x.example")
    shop.assert_converges(50)


def test_groups_are_told_apart_by_hashes() -> None:
    shop = Scenario(domains)
    for number in range(4):
        shop.insert("shop.customers", id=number, email="a" if number else "b")
    assert {d.email: d.customers for d in shop.documents().values()} == {sha256("a"): 3, sha256("b"): 1}
    shop.assert_converges(20)


def test_the_salt_goes_before_the_value_and_is_not_in_the_mark_or_the_layout_as_text() -> None:
    assert Mask("hash").of("x", SecretStr("salt-and-")) == sha256("salt-and-x")
    layout = lay_out(shape_of(Customer), None, SecretStr("salt-and-"))
    assert "salt-and-" not in repr(layout) + repr(Settings(mask=MaskSettings(salt=SecretStr("salt-and-"))))


def test_another_mask_is_another_fingerprint() -> None:
    class Other(Document, source="shop.customers"):
        id: int
        email: str | None = masked(keep=2)

    class Same(Document, source="shop.customers"):
        id: int
        email: str | None = masked(keep=3)

    assert fingerprint(shape_of(Other)) != fingerprint(shape_of(Same))


@pytest.mark.parametrize("salt", ["short", "with space in it", "", "ümlaut-salt"])
def test_a_salt_is_long_and_plain_and_a_wrong_one_is_not_shown(salt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_MASK__SALT", salt)
    with pytest.raises(SettingsError, match="8 to 200 letters") as raised:
        load()
    assert not salt or salt not in str(raised.value)


def test_what_is_no_text_or_a_key_can_not_be_masked() -> None:
    class Number(Document, source="shop.customers"):
        id: int
        visits: int = hashed()

    class Key(Document, source="shop.customers", key="email"):
        address: str = hashed("email")

    with pytest.raises(BadShape, match=r"Number.visits is hashed or masked, and is no text; write visits: str"):
        shape_of(Number)
    with pytest.raises(BadShape, match=r"Key.address is of the document's key"):
        shape_of(Key)
    with pytest.raises(BadShape, match="keep=0 or more"):
        masked(keep=-1)


def test_check_wants_a_column_of_plain_text() -> None:
    class Person(Document, source="shop.people"):
        id: int
        born: str = hashed()
        mood: str = masked()
        name: str = hashed()

    columns = {"id": "bigint", "born": "date", "mood": "shop.mood", "name": "text"}
    table = Table(
        name="shop.people",
        columns=tuple(
            Column(name=name, type=of, nullable=False, base="enum" if name == "mood" else None)
            for name, of in columns.items()
        ),
        primary_key=("id",),
    )
    people = projection(Person, to=elasticsearch("people"))
    report = check([people], Catalog.of([table]), sinks={})
    wrong = {(f.error, f.subject) for f in report.findings if f.error == "WrongType"}
    assert wrong == {("WrongType", "Person.born"), ("WrongType", "Person.mood")}
