"""Recorded events to documents, on both roads: as SQL writes them, and through the author's Python."""

from __future__ import annotations

import json
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel

from connectors.sinks.elasticsearch import mapping
from connectors.sinks.elasticsearch_bulk import encode
from pipeline import Document, derived
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.documents import Hidden, Text
from pipeline.authoring.shape import shape_of
from pipeline.errors import UnsupportedValue
from pipeline.ports import Write
from tests.fixtures import golden
from tests.fixtures.golden import CATALOG, ROWS, UNLIKE, expected, parsed, records
from tests.support.documents import SOURCE, Make, Records, event

TYPES = {
    "int": int, "Decimal": Decimal, "float": float, "bool": bool, "str": str, "datetime": datetime, "date": date,
    "time": time, "timedelta": timedelta, "UUID": UUID, "bytes": bytes, "Any": Any, "tuple": tuple,
}  # fmt: skip
UUID_TEXT = golden.UUID


def recorded(family: str) -> dict[str, Records]:
    return {f"t.{family}": [(r.key, r.value) for r in records(family) if r.table == f"t.{family}"]}


def document_of(family: str, *, python: bool) -> type[Document]:
    """The document that `cdc init` would write: each column by its natural type."""
    annotations: dict[str, Any] = {"id": int}
    for column in CATALOG.table(f"t.{family}").columns[2:]:
        if f"{family}.{column.name}" not in UNLIKE:
            annotations[column.name] = eval(kinds_of(column).annotation(nullable=True), TYPES)
    body: dict[str, Any] = {"__annotations__": annotations, "__module__": __name__}
    if python:

        def twice(self: Any) -> int:
            return int(self.id) * 2

        body["twice"] = derived(twice)
    return type(Document)(f"Every{family.title()}", (Document,), body, source=f"t.{family}")


# ---- every type, both roads -------------------------------------------------------------------------------------


@pytest.mark.edge_case(20)
@pytest.mark.edge_case(22)
@pytest.mark.edge_case(26)
@pytest.mark.parametrize("family", sorted(ROWS))
def test_a_document_has_what_the_source_holds_on_both_roads(make: Make, family: str) -> None:
    plain = make(document_of(family, python=False), recorded(family), CATALOG)
    python = make(document_of(family, python=True), recorded(family), CATALOG)
    assert not plain.dead
    assert len(plain.keys) >= len(ROWS[family])
    for key, text in plain.all().items():
        if family == "texts" and key == (105,):
            assert text is None  # inserted with the placeholder's own text: it waits to be read again
            continue
        assert text is not None
        assert parsed(text) == {"id": key[0], **expected(family, key[0])}
        derived_text = python.text(*key)
        assert derived_text == text[:-1] + f',"twice":{key[0] * 2}}}'
        lines, refused = encode([Write("1", 1, text)], 1)
        assert not refused
        assert lines[0].count(b"\n") == 2


@pytest.mark.edge_case(3)
@pytest.mark.edge_case(4)
@pytest.mark.edge_case(6)
@pytest.mark.parametrize("python", [False, True])
def test_values_kept_out_of_line_stay_through_updates_and_a_change_of_the_key_in_one_batch(
    make: Make, python: bool
) -> None:
    events = [(r.key, r.value) for r in records("toast") if r.table == "t.toast_default"]
    assert json.loads(events[-1][1] or b"")["op"] == "d"
    first = json.loads(events[0][1] or b"")["after"]
    (key, text), *others = (
        make(document_of("toast_default", python=python), {"t.toast_default": events[:-1]}, CATALOG).all().items()
    )
    assert (key, others) == ((2,), [])
    assert text is not None
    found = json.loads(text)
    same = {name: first[name] for name in ("by", "vc", "nu", "xm", "ia")}
    assert {name: found[name] for name in same} == same
    assert [found["jb"], found["js"]] == [json.loads(first["jb"]), json.loads(first["js"])]
    assert (found["tx"], found["ta"], found["id"]) == ("short now", None, 2)


# ---- what an author's code gets ---------------------------------------------------------------------------------


class Mood(Enum):
    SAD = "sad"


class Size(BaseModel):
    width: Decimal


class Row(Document, source="x.rows"):
    id: int
    n: Decimal | None
    f: float | None
    at: datetime | None
    ts: datetime | None
    d: date | None
    t: time | None
    iv: timedelta | None
    u: UUID | None
    b: bytes | None
    j: dict[str, Any] | None
    s: str | None


VALUES: dict[str, Any] = {
    "n": "1.10", "f": 0.5, "at": "2024-01-01T00:05:00.500000Z", "ts": "2024-01-01T00:05:00.5Z", "d": "2024-02-29Z",
    "t": "04:05:06Z", "iv": "P0Y0M3DT4H5M6.5S", "u": UUID_TEXT, "b": "AP8=", "j": '{"a": 1.10, "b": 1}', "s": "x",
}  # fmt: skip
PYTHON: dict[str, Any] = {
    "n": Decimal("1.10"), "f": 0.5, "at": datetime.fromisoformat("2024-01-01T00:05:00.5+00:00"),
    "ts": datetime(2024, 1, 1, 0, 5, 0, 500000), "d": date(2024, 2, 29), "t": time(4, 5, 6),
    "iv": timedelta(days=3, hours=4, minutes=5, seconds=6.5), "u": UUID(UUID_TEXT), "b": b"\x00\xff",
    "j": {"a": Decimal("1.10"), "b": 1}, "s": "x",
}  # fmt: skip


def reading(name: str, into: list[Any]) -> type[Document]:
    """Rows whose Python code reads one column."""

    class Reading(Row, source="x.rows"):
        @derived
        def read(self) -> bool:
            into.append(getattr(self, name))
            return into[-1] is not None

    return Reading


@pytest.mark.parametrize("name", sorted(VALUES))
def test_the_authors_code_reads_the_type_that_it_declared(make: Make, name: str) -> None:
    got: list[Any] = []
    nulls = dict.fromkeys(VALUES)
    found = make(reading(name, got), {"x.rows": [event({"id": 1, **VALUES}), event({"id": 2, **nulls})]}, SOURCE)
    text, empty = found.text(1), found.text(2)
    assert text is not None and empty is not None
    assert text.endswith(',"read":true}')
    assert json.loads(empty) == {"id": 2, **nulls, "read": False}
    assert (got, type(got[0])) == ([PYTHON[name], None], type(PYTHON[name]))


@pytest.mark.edge_case(22)
@pytest.mark.edge_case(23)
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("at", "-0043-03-15T12:00:00.000000Z", "-0043-03-15T12:00:00Z"),
        ("at", "infinity", "infinity"),
        ("at", "+294276-12-31T23:59:59.999999Z", "+294276-12-31T23:59:59.999999Z"),
        ("ts", "+292278994-08-16T23:00:00Z", "infinity"),
        ("d", "-5877611-06-22Z", "-infinity"),
        ("d", "+10000-01-01Z", "+10000-01-01"),
        ("t", "24:00:00Z", "24:00:00"),
        ("iv", "P0Y14M0DT0H0M0S", "P0Y14M0DT0H0M0S"),
        ("iv", "P178000000Y0M0DT0H0M0S", "P178000000Y0M0DT0H0M0S"),
        ("iv", "P0Y0M99999999999DT0H0M0S", "P0Y0M99999999999DT0H0M0S"),
    ],
)
def test_what_python_cannot_hold_hurts_only_code_that_reads_it(make: Make, name: str, value: str, shown: str) -> None:
    events = {"x.rows": [event({"id": 1, **VALUES, name: value})]}
    found = make(reading("s", []), events, SOURCE).text(1)
    assert found is not None
    assert json.loads(found)[name] == shown

    reads = make(reading(name, []), events, SOURCE)
    with pytest.raises(
        UnsupportedValue, match=rf"Reading\.{name}: .*{re.escape(shown[:9])}.* declare the field as str"
    ):
        reads.text(1)


@pytest.mark.edge_case(19)
@pytest.mark.parametrize(
    ("sent", "shown"), [("NAN", "NaN"), ("POSITIVE_INFINITY", "Infinity"), ("NEGATIVE_INFINITY", "-Infinity")]
)
def test_numbers_that_are_none_have_one_spelling(make: Make, sent: str, shown: str) -> None:
    class Computed(Document, source="x.rows"):
        n: Decimal
        f: float
        r: tuple[Decimal, ...]

        @derived
        def both(self) -> Decimal:
            return self.n + Decimal(self.f)

        @derived
        def ratio(self) -> float:
            return self.f

        @derived
        def inside(self) -> dict[str, Any]:
            return {"f": [self.f], "n": self.r[0]}

    found = make(Computed, {"x.rows": [event({"id": 1, "n": sent, "f": shown, "r": [sent]})]}, SOURCE).text(1)
    assert found is not None
    assert json.loads(found) == {
        "n": shown, "f": shown, "r": [shown], "both": shown, "ratio": shown, "inside": {"f": [shown], "n": shown},
    }  # fmt: skip


@pytest.mark.edge_case(19)
def test_a_computed_decimal_has_no_exponent(make: Make) -> None:
    class Computed(Document, source="x.rows"):
        n: Decimal

        @derived
        def tiny(self) -> Decimal:
            return self.n * self.n

        @derived
        def tinier(self) -> Decimal:
            return self.tiny / 10

    found = make(Computed, {"x.rows": [event({"id": 1, "n": "0.0000000001"})]}, SOURCE).text(1)
    assert found == '{"n":"0.0000000001","tiny":"0.00000000000000000001","tinier":"0.000000000000000000001"}'


@pytest.mark.edge_case(26)
def test_a_new_label_of_an_enum_hurts_only_code_that_reads_it(make: Make) -> None:
    class Labelled(Document, source="x.rows"):
        id: int
        e: Mood
        s: Literal["x"] | None

        @derived
        def sad(self) -> bool:
            return self.id == 1 and self.e is Mood.SAD and self.s == "x"

    events = [event({"id": 1, "e": "sad", "s": "x"}), event({"id": 2, "e": "glad", "s": "new"})]
    found = make(Labelled, {"x.rows": events}, SOURCE)
    assert found.all() == {
        (1,): '{"id":1,"e":"sad","s":"x","sad":true}',
        (2,): '{"id":2,"e":"glad","s":"new","sad":false}',
    }


@pytest.mark.edge_case(25)
def test_json_is_read_as_the_type_declared_and_written_as_it_came(make: Make) -> None:
    class Typed(Document, source="x.rows"):
        id: int
        j: Size
        n: Decimal
        r: tuple[float, ...]

        @derived
        def area(self) -> Decimal:
            return self.j.width * self.n * len(self.r)

    row = {"id": 1, "j": '{"width": 12345678901234567890.10,\n "more": 1}', "n": "2", "r": ["0.5"]}
    found = make(Typed, {"x.rows": [event(row)]}, SOURCE).text(1)
    assert found == (
        '{"id":1,"j":{"width":12345678901234567890.10,"more":1},"n":"2","r":["0.5"],"area":"24691357802469135780.20"}'
    )


@pytest.mark.edge_case(30)
def test_a_nul_and_half_of_a_character_from_the_authors_code(make: Make) -> None:
    class Odd(Document, source="x.rows"):
        id: int
        s: str

        @derived
        def half(self) -> str:
            return self.s if self.id == 1 else "\ud800"

    events = [event({"id": 1, "s": "a\0b😀"}), event({"id": 2, "s": "x"})]
    found = make(Odd, {"x.rows": events}, SOURCE)
    assert found.text(1) == '{"id":1,"s":"a\\u0000b😀","half":"a\\u0000b😀"}'
    with pytest.raises(UnicodeEncodeError):
        found.text(2)


# ---- declarations -----------------------------------------------------------------------------------------------


def test_marks_count_wherever_they_stand() -> None:
    class Marked(Document, source="x.rows"):
        plain: Annotated[str, Text("a")]
        outer: Annotated[str | None, Text("b")]
        inner: Annotated[str, Text("c")] | None
        default: Annotated[str, Text("d")] | None = None
        items: tuple[Annotated[str, Text("e")], ...]
        secret: Annotated[str, Hidden()] | None

        @derived
        def all(self) -> Annotated[str, Text("f")] | None:
            return self.inner

    shape = shape_of(Marked)
    assert {f.name: f.text and f.text.analyzer for f in shape.fields} == {
        "plain": "a", "outer": "b", "inner": "c", "default": "d", "items": "e", "secret": None, "all": "f",
    }  # fmt: skip
    assert [f.name for f in shape.fields if f.hidden] == ["secret"]
    assert mapping(shape, {})["properties"]["inner"] == {"type": "text", "analyzer": "c"}


def test_without_a_catalog_values_are_what_the_document_declares(make: Make) -> None:
    events = {"x.rows": [event({"id": 1, **VALUES})]}
    (known, unknown) = (make(Row, events, catalog).text(1) for catalog in (SOURCE, None))
    assert known is not None and unknown is not None
    # whether a timestamp has a zone only the catalog knows
    assert json.loads(unknown) == {**json.loads(known), "ts": "2024-01-01T00:05:00.5Z"}
