"""The author's testing kit: it says what the engine does, refuses what no source does, and finds what is broken."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest

from pipeline import Document, column, derived, elasticsearch, hidden, many, one, projection
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.projection import Projection, Target
from pipeline.engine.apply import Applier
from pipeline.engine.dirty import Settling
from pipeline.engine.marking import Marking
from pipeline.engine.transactions import Gate
from pipeline.errors import CdcError, ScenarioError, UnknownColumn, UnknownTable
from pipeline.testing import UNCHANGED, Scenario
from pipeline.testing.histories import generated
from pipeline.testing.wire import column_of
from projections.orders import OrderDocument, orders

NOON = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def shop_with_an_order() -> Scenario[OrderDocument]:
    shop = Scenario(orders)
    shop.insert("shop.customers", id=1, name="Ada")
    shop.insert("shop.products", id=7, sku="TEA-1", title="Green tea")
    shop.insert("shop.orders", id=10, customer_id=1, status="new", placed_at=NOON, charged=Decimal("9.00"))
    shop.insert("shop.order_lines", order_id=10, line_no=1, product_id=7, quantity=2, unit_price=Decimal("4.50"))
    return shop


# ---- what a source does ----------------------------------------------------------------------------------


def test_a_transaction_is_seen_as_a_whole_at_its_end() -> None:
    shop = shop_with_an_order()
    with shop.transaction():
        shop.update("shop.orders", 10, status="paid")
        with pytest.raises(ScenarioError, match="look after the `with`"):
            shop.document(10)
        shop.update("shop.orders", 10, status="sent")

    assert shop.document(10).status == "sent"
    said = [write.document["status"] for write in shop.writes()["elasticsearch:orders"] if write.document]
    assert "paid" not in said


def test_a_transaction_that_fails_never_happened() -> None:
    shop = shop_with_an_order()
    with pytest.raises(ZeroDivisionError), shop.transaction():
        shop.update("shop.orders", 10, status="paid")
        shop.delete("shop.customers", 1)
        raise ZeroDivisionError

    assert shop.document(10).status == "new"
    shop.update("shop.customers", 1, name="Countess")
    customer = shop.document(10).customer
    assert customer is not None and customer.name == "Countess"
    shop.assert_converges(10)


def test_a_truncated_table_has_no_rows() -> None:
    shop = shop_with_an_order()

    shop.truncate("shop.order_lines")
    assert shop.document(10).lines == ()
    shop.truncate("shop.orders")
    assert shop.documents() == {}


@pytest.mark.edge_case(3)
def test_an_unchanged_column_keeps_its_value() -> None:
    shop = shop_with_an_order()

    shop.update("shop.products", 7, sku="TEA-2", title=UNCHANGED)

    product = shop.document(10).lines[0].product
    assert product is not None and (product.sku, product.title) == ("TEA-2", "Green tea")


@pytest.mark.edge_case(6)
def test_a_row_may_change_its_key_and_leave_a_long_column_out() -> None:
    shop = shop_with_an_order()

    shop.update("shop.products", 7, id=8, title=UNCHANGED)
    shop.update("shop.order_lines", (10, 1), product_id=8)

    product = shop.document(10).lines[0].product
    assert product is not None and product.title == "Green tea"


@pytest.mark.edge_case(38)
@pytest.mark.parametrize("steps", range(7))
def test_a_worker_that_dies_anywhere_goes_on_from_its_mirror(steps: int) -> None:
    shop = shop_with_an_order()
    shop.crash_after(steps)

    shop.update("shop.orders", 10, status="paid")
    shop.update("shop.customers", 1, name="Countess")

    order = shop.document(10)
    assert order.status == "paid"
    assert order.customer is not None and order.customer.name == "Countess"


def test_a_crash_after_the_write_writes_the_same_document_again() -> None:
    shop = shop_with_an_order()
    before = len(shop.writes()["elasticsearch:orders"])
    shop.crash_after(1)  # the checkpoint is made, then the document is written, then the worker dies

    shop.update("shop.orders", 10, status="paid")

    first, second = shop.writes()["elasticsearch:orders"][before:]
    assert first == second


# ---- what readers see ------------------------------------------------------------------------------------


def test_a_key_of_several_columns_is_a_tuple_or_several_arguments() -> None:
    class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
        order_id: int
        line_no: int

    lines = projection(Line, to=elasticsearch("lines"))
    shop = Scenario(lines)
    shop.insert("shop.order_lines", order_id=10, line_no=1)

    assert shop.document(10, 1) == shop.document((10, 1)) == Line(order_id=10, line_no=1)
    assert list(shop.documents()) == [(10, 1)]


def test_explain_tells_the_rows_behind_a_document_and_what_the_sinks_hold() -> None:
    story = shop_with_an_order().explain(10)

    assert [row.path for row in story.rows] == [
        "OrderDocument",
        "OrderDocument.customer",
        "OrderDocument.lines",
        "OrderDocument.lines.product",
    ]
    assert story.rows[1].columns == {"id": 1, "name": "Ada"}
    assert (story.sinks["elasticsearch:orders"] or {})["total"] == "9.00"
    assert "OrderDocument.lines.product: shop.products" in str(story)


class Country(Document, source="shop.countries", key="code"):
    code: str


class Guest(Document, source="shop.guests"):
    id: int
    secret: int = hidden()
    country: Country = one(via="country")

    @derived
    def share(self) -> float:
        return 1 / self.secret


guests = projection(Guest, to=[elasticsearch("guests"), Target("memory", "crm")])


@pytest.mark.edge_case(40)
def test_a_document_that_waits_for_its_parent_is_pending_until_it_comes() -> None:
    shop = Scenario(guests)
    shop.insert("shop.guests", id=1, secret=4, country="no")

    assert list(shop.pending()) == [1]
    assert shop.get(1) is None
    with pytest.raises(ScenarioError, match=r"no document 1 yet: it waits for a row"):
        shop.document(1)
    assert (shop.explain(1).waits or "").startswith("pending")

    shop.insert("shop.countries", code="no")
    assert shop.pending() == {}
    assert shop.document(1).country == Country(code="no")
    shop.assert_converges(30)


def test_a_document_whose_function_raises_says_so() -> None:
    shop = Scenario(guests)
    shop.insert("shop.countries", code="no")
    shop.insert("shop.guests", id=1, secret=0, country="no")
    shop.insert("shop.guests", id=2, secret=2, country="no")

    with pytest.raises(ScenarioError, match="ZeroDivisionError"):
        shop.document(1)
    assert "ZeroDivisionError" in shop.pending()[1]
    assert shop.document(2).share == 0.5
    shop.assert_converges(20)


def test_hidden_fields_are_on_the_document_and_in_no_sink() -> None:
    shop = Scenario(guests)
    shop.insert("shop.countries", code="no")
    shop.insert("shop.guests", id=1, secret=4, country="no")

    assert shop.document(1).secret == 4
    for name in ("elasticsearch:guests", "memory:crm"):
        assert [write.document for write in shop.writes()[name]] == [
            {"id": 1, "country": {"code": "no"}, "share": 0.25}
        ]


# ---- what no source does ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "kind", "said"),
    [
        (lambda shop: shop.insert("shop.ordrs", id=1), UnknownTable, "did you mean 'shop.orders'"),
        (lambda shop: shop.update("shop.orders", 10, stauts="x"), UnknownColumn, "did you mean 'status'"),
        (lambda shop: shop.insert("shop.orders", id=1, status="new"), ScenarioError, "may not be null: give placed_at"),
        (lambda shop: shop.insert("shop.products", sku="a", title="b"), ScenarioError, "id is of the key: give id=…"),
        (lambda shop: shop.insert("shop.customers", id=1, name="Bob"), ScenarioError, "has a row 1 already"),
        (lambda shop: shop.insert("shop.customers", id="1", name="Bob"), ScenarioError, "give an int, not '1'"),
        (lambda shop: shop.insert("shop.customers", id=2, name=None), ScenarioError, "name may not be null"),
        (lambda shop: shop.insert("shop.customers", id=2, name=UNCHANGED), ScenarioError, "only an update"),
        (lambda shop: shop.update("shop.orders", 11, status="x"), ScenarioError, "no row 11; there are 10"),
        (lambda shop: shop.update("shop.orders", 10, charged=1.5), ScenarioError, "give a Decimal, not 1.5"),
        (lambda shop: shop.update("shop.orders", 10, charged=Decimal("1e12")), ScenarioError, r"fits numeric\(12,2\)"),
        (lambda shop: shop.update("shop.orders", 10, placed_at=datetime(2026, 1, 1)), ScenarioError, "a time zone"),
        (lambda shop: shop.update("shop.orders", 10, placed_at=UNCHANGED), ScenarioError, "always sends it"),
        (lambda shop: shop.update("shop.products", 7, title="a\0"), ScenarioError, "NUL"),
        (lambda shop: shop.update("shop.order_lines", (10, 1), line_no=1 << 40), ScenarioError, "an int of 32 bits"),
        (lambda shop: shop.delete("shop.order_lines", 10), ScenarioError, r"\(order_id, line_no\): give 2 values"),
        (lambda shop: shop.delete("shop.customers", 3), ScenarioError, "no row 3; there are 1"),
        (lambda shop: shop.rename_key("shop.order_lines", (10, 1), 11), ScenarioError, "give 2 values"),
        (lambda shop: shop.truncate("shop.order"), UnknownTable, "did you mean 'shop.orders'"),
        (lambda shop: shop.document(11), ScenarioError, "no document 11; there are 10"),
        (lambda shop: shop.document("10"), ScenarioError, "give an int"),
    ],
)
def test_what_can_not_be_is_refused_with_what_to_write_instead(
    wrong: Callable[[Scenario[OrderDocument]], object], kind: type[CdcError], said: str
) -> None:
    shop = shop_with_an_order()
    before = shop.documents(), len(shop.story)

    with pytest.raises(kind, match=said):
        wrong(shop)

    assert (shop.documents(), len(shop.story)) == before
    shop.assert_converges(3)


def test_a_transaction_inside_another_is_refused() -> None:
    shop = shop_with_an_order()

    with shop.transaction(), pytest.raises(ScenarioError, match="open already"), shop.transaction():
        pass


# ---- values, with and without a catalog ------------------------------------------------------------------


class Mood(Enum):
    HAPPY = "very happy"
    SAD = "sad"


class Odd(Document, source="shop.odd"):
    id: UUID
    price: Decimal
    ratio: float | None
    open: bool
    at: datetime
    until: datetime | None
    photo: bytes
    mood: Mood
    size: Literal["s", "m"]
    note: dict[str, Any]
    tags: tuple[str, ...]
    label: str | None = column("name")


VALUES: dict[str, Any] = {
    "price": Decimal("0.10"),
    "ratio": 0.1,
    "open": True,
    "at": datetime(2026, 3, 1, 12, 0, 0, 123000, tzinfo=UTC),
    "until": datetime(2026, 3, 1, 14, 30, tzinfo=timezone(timedelta(hours=2))),
    "photo": b"\x00\xff\x10",
    "mood": Mood.HAPPY,
    "size": "m",
    "note": {"a": [1, None, "ü🎈"]},
    "tags": ["b", "a", ""],
    "name": "x\"'\\",
}
ODD_TABLE = Table(
    name="shop.odd",
    columns=(
        Column(name="id", type="uuid", nullable=False),
        Column(name="price", type="numeric(10,2)", nullable=False, toastable=True),
        Column(name="ratio", type="double precision"),
        Column(name="open", type="boolean", nullable=False),
        Column(name="at", type="timestamp(3) with time zone", nullable=False),
        Column(name="until", type="timestamp with time zone"),
        Column(name="photo", type="bytea", nullable=False, toastable=True),
        Column(name="mood", type="shop.mood", base="enum", nullable=False),
        Column(name="size", type="character varying(1)", nullable=False, toastable=True),
        Column(name="note", type="jsonb", nullable=False, toastable=True),
        Column(name="tags", type="text[]", nullable=False, toastable=True),
        Column(name="name", type="text", toastable=True),
    ),
    primary_key=("id",),
)


@pytest.mark.parametrize("catalog", [None, Catalog.of([ODD_TABLE])], ids=["by the shape", "by the catalog"])
def test_plain_values_come_back_as_they_were_put_in(catalog: Catalog | None) -> None:
    key = UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
    shop = Scenario(projection(Odd, to=elasticsearch("odd")), catalog=catalog)
    shop.insert("shop.odd", id=key, **VALUES)
    shop.update("shop.odd", key, photo=UNCHANGED, note=UNCHANGED, tags=UNCHANGED, name=UNCHANGED, price=UNCHANGED)

    odd = shop.document(key)

    assert (odd.price, odd.ratio, odd.open, odd.at) == (Decimal("0.10"), 0.1, True, VALUES["at"])
    assert (odd.until, odd.photo, odd.mood, odd.size) == (VALUES["until"], VALUES["photo"], Mood.HAPPY, "m")
    assert (odd.note, odd.tags, odd.label) == (VALUES["note"], ("b", "a", ""), "x\"'\\")
    shop.assert_converges(20)


# ---- what was recorded from the real Debezium ------------------------------------------------------------

RECORDED = Path(__file__).parents[1] / "fixtures" / "envelopes"


@pytest.mark.parametrize(
    ("type", "value", "sent"),
    [
        ("numeric(10,2)", Decimal("1.1"), "1.10"),
        ("numeric(10,2)", 3, "3.00"),
        ("numeric", Decimal("1E+2"), "100"),
        ("numeric", Decimal("NaN"), "NAN"),
        ("numeric", Decimal("-Infinity"), "NEGATIVE_INFINITY"),
        ("money", Decimal("1234.56"), "1234.56"),
        ("double precision", float("inf"), "Infinity"),
        ("character(5)", "ab", "ab   "),
        ("bytea", b"\x00\xff\x10", "AP8Q"),
        ("date", date(2024, 2, 29), "2024-02-29Z"),
        ("timestamp without time zone", datetime(2024, 1, 1, 0, 5), "2024-01-01T00:05:00Z"),
        ("timestamp without time zone", datetime(2024, 1, 1, 0, 5, 0, 100_000), "2024-01-01T00:05:00.1Z"),
        ("timestamp with time zone", datetime(2024, 1, 1, 0, 5, tzinfo=UTC), "2024-01-01T00:05:00.000000Z"),
        ("timestamp(3) with time zone", datetime(2024, 1, 1, 0, 5, tzinfo=UTC), "2024-01-01T00:05:00.000Z"),
        ("timestamp with time zone", "infinity", "infinity"),
        ("time without time zone", time(4, 5, 6, 789012), "04:05:06.789012Z"),
        ("time with time zone", time(14, 35, 6, tzinfo=timezone(timedelta(hours=2))), "12:35:06Z"),
        ("interval", timedelta(), "P0Y0M0DT0H0M0S"),
        ("interval", timedelta(3, 4 * 3600 + 5 * 60 + 6, 789012), "P0Y0M3DT4H5M6.789012S"),
        ("uuid", UUID("A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"), "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("jsonb", {"price": Decimal("1.10")}, '{"price":1.10}'),
        ("integer[]", [1, None], [1, None]),
        ("numeric(10,2)[]", [Decimal(1)], ["1.00"]),
        ("jsonb[]", [{"a": 1}], ['{"a":1}']),
        ("bytea[]", [b"\x00"], ["AA=="]),
    ],
)
def test_values_are_sent_as_debezium_sends_them(type: str, value: Any, sent: Any) -> None:
    own = column_of("t.t", Column(name="c", type=type), silent=False)

    assert own.encode(value) == sent


def test_unchanged_is_said_as_debezium_says_it() -> None:
    lines = (RECORDED / "toast.jsonl").read_text().splitlines()
    row = json.loads(json.loads(lines[1])["value"])["after"]
    types = {"tx": "text", "by": "bytea", "jb": "jsonb", "js": "json", "ta": "text[]", "ia": "integer[]",
             "vc": "character varying(9)", "nu": "numeric", "xm": "xml"}  # fmt: skip

    said = {
        name: column_of("t.t", Column(name=name, type=type, toastable=True), silent=False).unchanged("x")
        for name, type in types.items()
    }

    assert said == {name: row[name] for name in types}


class TxA(Document, source="t.tx_a"):
    id: int
    v: int


def test_a_recording_of_the_real_debezium_is_told_as_it_was() -> None:
    shop = Scenario.from_recording(projection(TxA, to=elasticsearch("tx")), RECORDED / "transactions.jsonl")

    said = [write.document and write.document["v"] for write in shop.writes()["elasticsearch:tx"] if write.id == "1"]
    assert said == [1, 3, None]  # 2 and 5 were never committed
    assert shop.documents() == {}
    shop.assert_converges(40)
    shop.insert("t.tx_a", id=99, v=1)
    assert list(shop.documents()) == [99]
    shop.assert_converges(40)


class Toasted(Document, source="t.toast_default"):
    id: int
    n: int
    tx: str
    by: bytes
    ta: tuple[str, ...]
    ia: tuple[int, ...]


@pytest.mark.edge_case(3)
def test_a_recording_without_transactions_is_applied_change_by_change() -> None:
    shop = Scenario.from_recording(projection(Toasted, to=elasticsearch("toasted")), RECORDED / "toast.jsonl")

    documents = [write.document for write in shop.writes()["elasticsearch:toasted"] if write.document]
    long = documents[0]["tx"]
    assert [(d["id"], d["n"], d["tx"]) for d in documents] == [
        (1, 0, long),
        (1, 1, long),
        (1, 1, "short now"),
        (1, 2, "short now"),
    ]  # row by row, what a key change leaves out is gone with the old row
    assert [(d["ta"], d["ia"]) for d in documents[:2]] == [([long, "b"], list(range(1, 11)))] * 2
    shop.assert_converges(40)


class Cut(Document, source="t.cut_a"):
    id: int


class Snap(Document, source="t.snap_a"):
    id: int


@pytest.mark.edge_case(9, 10)
@pytest.mark.parametrize(("document", "file"), [(Cut, "truncate"), (Snap, "snapshot")])
def test_recorded_truncates_and_snapshots_converge(document: type[Document], file: str) -> None:
    shop = Scenario.from_recording(projection(document, to=elasticsearch("some")), RECORDED / f"{file}.jsonl")

    shop.assert_converges(60)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", r":1 is no record"), ("nonsense", r":1 is no record"), ("", "no record of t.tx_a; its topics are none")],
)
def test_a_file_that_is_no_recording_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "it.jsonl").write_text(text)

    with pytest.raises(ScenarioError, match=said):
        Scenario.from_recording(projection(TxA, to=elasticsearch("tx")), tmp_path / "it.jsonl")


def test_a_column_that_would_become_null_unchanged_is_refused_with_the_remedy() -> None:
    table = Table(
        name="shop.odd",
        columns=(
            Column(name="id", type="bigint", nullable=False),
            Column(name="way", type="double precision[]", toastable=True),
        ),
        primary_key=("id",),
    )

    class Way(Document, source="shop.odd"):
        id: int
        way: tuple[float, ...] | None

    shop = Scenario(projection(Way, to=elasticsearch("ways")), catalog=Catalog.of([table]))
    shop.insert("shop.odd", id=1, way=[0.5])

    with pytest.raises(ScenarioError, match="REPLICA IDENTITY FULL"):
        shop.update("shop.odd", 1, way=UNCHANGED)


# ---- what is broken is found -----------------------------------------------------------------------------

_calls = itertools.count()


class Counted(Document, source="shop.orders"):
    id: int
    status: str

    @derived
    def rank(self) -> int:
        return next(_calls)


def test_a_function_that_is_not_pure_is_found() -> None:
    shop = Scenario(projection(Counted, to=elasticsearch("counted")))
    shop.insert("shop.orders", id=1, status="new")

    with pytest.raises(AssertionError, match=r"1\.rank is \d+ in the sink, and \d+ when it is computed again"):
        shop.assert_converges()


_seen: list[str] = []


class Remembering(Document, source="shop.orders"):
    id: int
    status: str

    @derived
    def first_status(self) -> str:
        """Right when it is computed again, and wrong when the changes come otherwise."""
        if self.status not in _seen:
            _seen.append(self.status)
        return _seen[0]


def test_a_function_that_remembers_is_found_by_the_order_of_deliveries() -> None:
    _seen.clear()
    shop = Scenario(projection(Remembering, to=elasticsearch("remembering")))
    for status in ("new", "paid", "sent"):
        shop.insert("shop.orders", id=len(_seen), status=status)
    _seen.reverse()

    with pytest.raises(AssertionError, match="first_status"):
        shop.assert_converges()


def _half_transactions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate lets everything through as it comes."""
    monkeypatch.setattr(Gate, "by_row", property(lambda gate: True, lambda gate, value: None), raising=False)
    monkeypatch.setattr(Gate, "straddling", property(lambda gate: False))


def _forgotten_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document that a row leaves is not written again."""
    real = Marking.mark
    monkeypatch.setattr(
        Marking,
        "mark",
        lambda self, changed, where, seq, *, old: None if old else real(self, changed, where, seq, old=old),
    )


def _early_clearing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What became dirty while a write was on its way is cleared with it."""
    real = Settling.settle

    def settle(self: Settling, taken: Any, outcomes: Any) -> None:
        taken.seq = self.mirror.seq
        real(self, taken, outcomes)

    monkeypatch.setattr(Settling, "settle", settle)


def _lost_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    """UNCHANGED is not looked up in the mirror."""

    def known(self: Applier, table: Any, key: Any, before: Any) -> Any:
        return (before, before[-3:-1]) if before else ((), (0, 0))

    monkeypatch.setattr(Applier, "_known", known)


class Basket(Document, source="shop.orders"):
    id: int
    status: str


class Customer(Document, source="shop.customers"):
    id: int
    name: str
    baskets: tuple[Basket, ...] = many(by="customer_id")


def moved_baskets() -> Scenario[Customer]:
    shop = Scenario(projection(Customer, to=elasticsearch("baskets")))
    shop.insert("shop.customers", id=1, name="Ada")
    shop.insert("shop.customers", id=2, name="Grace")
    shop.insert("shop.orders", id=10, customer_id=1, status="new")
    shop.update("shop.orders", 10, customer_id=2)
    return shop


def busy_order() -> Scenario[OrderDocument]:
    shop = shop_with_an_order()
    with shop.transaction():
        shop.update("shop.orders", 10, status="paid")
        shop.update("shop.products", 7, title="Sencha")
    shop.update("shop.products", 7, sku="TEA-2", title=UNCHANGED)
    return shop


@pytest.mark.parametrize(
    ("broken", "story", "said"),
    [
        (_half_transactions, busy_order, "a document was written that no state of the source has"),
        (_forgotten_parents, moved_baskets, r"1\.baskets\[0\] is .* in the sink, and absent by the source's rows"),
        (_early_clearing, moved_baskets, "in this delivery, and .* in order"),
        (_lost_placeholders, busy_order, "waits for .*, and the source has sent all of it"),
    ],
)
def test_an_engine_that_is_broken_is_found(
    broken: Callable[[pytest.MonkeyPatch], None],
    story: Callable[[], Scenario[Any]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story().assert_converges(60)
    broken(monkeypatch)

    with pytest.raises(AssertionError, match=said):
        story().assert_converges()


def test_the_message_says_where_documents_differ_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = moved_baskets()
    _early_clearing(monkeypatch)

    with pytest.raises(AssertionError) as failed:
        shop.assert_converges()

    lines = str(failed.value).splitlines()
    assert " in this delivery, and " in lines[0] and " in order" in lines[0]
    seed = int(lines[1].partition("seed ")[2].partition(":")[0])
    assert f"assert_converges(1, seed={seed})" in lines[2]
    assert "shop.update('shop.orders', 10, customer_id=2)" in lines[-1]
    with pytest.raises(AssertionError) as again:
        shop.assert_converges(1, seed=seed)
    assert str(again.value) == str(failed.value)


# ---- generated histories ---------------------------------------------------------------------------------


def test_a_generated_history_is_the_same_for_the_same_seed() -> None:
    assert generated(orders, 3).story == generated(orders, 3).story != generated(orders, 4).story


def test_the_story_of_a_generated_history_can_be_told_again() -> None:
    first, second = generated(orders, 5), Scenario(orders)

    names = {"shop": second, "Decimal": Decimal, "UNCHANGED": UNCHANGED, "datetime": __import__("datetime")}
    exec("\n".join(first.story), names)

    assert second.documents() == first.documents()


class Part(Document, source="shop.odd"):
    id: UUID
    size: Literal["s", "m"]
    mood: Mood
    tags: tuple[str, ...]
    price: Decimal


class Box(Document, source="shop.boxes"):
    id: UUID
    note: dict[str, Any] | None
    open: bool
    parts: tuple[Part, ...] = many(by="box_id", order_by="price")


BOXES: Projection[Box] = projection(Box, to=elasticsearch("boxes"))


def test_histories_keep_to_the_types_that_the_shape_declares() -> None:
    for seed in range(6):
        shop = generated(BOXES, seed)
        assert all(box.id for box in shop.documents().values())
