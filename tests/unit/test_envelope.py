"""Every record that a real Debezium sent decodes to what the source holds (tests/fixtures/envelopes)."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.authoring.catalog import Column
from pipeline.authoring.column_types import PLACEHOLDER, Wire, wire_of
from pipeline.errors import DecodeError, MalformedEnvelope, UnsupportedValue
from pipeline.events.envelope import UNCHANGED, Event, TableDecoder, decode_boundary
from pipeline.events.values import json_line
from tests.fixtures import golden
from tests.fixtures.golden import CATALOG, FOLDER, ROWS, UNLIKE, Record, expected, parsed, records

FILES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))
TEXT = PLACEHOLDER.decode()


def decoder(name: str, *columns: str) -> TableDecoder:
    table = CATALOG.table(name)
    wires = {c.name: wire_of(c) for c in table.columns if not columns or c.name in (*columns, *table.primary_key)}
    return TableDecoder(name, 0, wires, table.primary_key)


def one(kind: Wire, value: Any) -> Any:
    """A value of a column beside an int key, through the whole decoder."""
    event = {"op": "c", "source": {"ts_ms": 0}, "after": {"id": 1, "v": value}}
    of = TableDecoder("t", 0, {"id": Wire("int"), "v": kind}, ("id",))
    found = of.decode(b'{"id":1}', json.dumps(event, separators=(",", ":")).encode())
    assert found.after[0] == 1
    return found.after[1]


def row(of: TableDecoder, event: Event) -> dict[str, Any]:
    return dict(zip(of.wires, event.after, strict=True))


def as_json(wire: Wire, stored: Any) -> Any:
    """What the mirror stores, as a document has it."""
    if stored is not None and (wire.array or wire.kind in ("float", "json", "jsonb")):
        return parsed(stored)
    return stored


def changes(file: str) -> list[Record]:
    return [r for r in records(file) if r.table.startswith("t.")]


@pytest.mark.parametrize("file", FILES)
def test_every_recorded_record_is_read(file: str) -> None:
    of: dict[str, TableDecoder] = {}
    known = 0
    for record in records(file):
        if record.table == "transaction":
            assert decode_boundary(record.value or b"").status in ("BEGIN", "END")
            continue
        if record.table not in CATALOG.tables or file in ("altered", "schemas_defaults"):
            continue
        decode = of.setdefault(record.table, decoder(record.table)).decode
        event = decode(record.key, record.value)
        known += 1
        if record.value is None:
            assert event.op == "d"
        elif event.op in "cru":
            assert event.after[: len(event.key or ())] is not None
    assert known or file in ("altered", "schemas_defaults", "heartbeat", "signals")


def family_cases() -> list[Any]:
    marks = {
        "ints": 20, "numerics": 19, "numeric_negative_scale": 19, "floats": 22, "dates": 22, "timestamps": 21,
        "timestamptzs": 21, "times": 23, "intervals": 23, "arrays": 24, "arrays_special": 24, "jsons": 25, "byteas": 27,
        "uuids": 28, "citexts": 28, "texts": 30,
    }  # fmt: skip
    return [pytest.param(name, marks=pytest.mark.edge_case(marks.get(name, 26))) for name in sorted(ROWS)]


@pytest.mark.parametrize("family", family_cases())
def test_a_row_is_what_the_source_holds(family: str) -> None:
    of = decoder(f"t.{family}")
    seen = set()
    for record in changes(family):
        event = of.decode(record.key, record.value)
        if event.after is None:
            continue
        found = row(of, event)
        wanted = expected(family, found["id"])
        if family == "texts" and wanted["tx"] == TEXT and event.op != "r":
            assert found["tx"] is UNCHANGED
            found["tx"] = TEXT
        assert {n: as_json(of.wires[n], found[n]) for n in wanted} == wanted, found["id"]
        seen.add(found["id"] % 100)
    assert seen == set(range(1, len(ROWS[family]) + 2))


def test_no_family_of_types_is_left_out() -> None:
    files = {name for name in FILES if f"t.{name}" in CATALOG.tables} - {"altered"}
    assert files == set(ROWS) | {name for name in UNLIKE if "." not in name}


@pytest.mark.edge_case(26)
def test_a_shape_is_the_object_that_the_event_has() -> None:
    of = decoder("t.shapes", "p", "l")
    first = row(of, of.decode(None, records("shapes")[0].value))
    assert parsed(first["p"])["x"] == Decimal("1.5")
    assert parsed(first["l"]) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.edge_case(31)
def test_a_generated_column_is_in_snapshot_rows_only() -> None:
    of = decoder("t.generated", "doubled")
    found = {e.after[0]: e.after[1] for e in (of.decode(r.key, r.value) for r in records("generated")) if e.after}
    assert found == {1: 42, 2: None, 101: UNCHANGED, 102: UNCHANGED}


# ---- keys, deletes, truncates, tombstones -----------------------------------------------------------------------


@pytest.mark.edge_case(28)
@pytest.mark.edge_case(29)
def test_a_delete_has_the_key_by_which_the_row_is_stored() -> None:
    of: dict[str, TableDecoder] = {}
    stored: dict[str, set[Any]] = {}
    deleted: dict[str, tuple[Any, ...]] = {}
    for record in changes("keys"):
        own = of.setdefault(record.table, decoder(record.table))
        event = own.decode(record.key, record.value)
        if event.op == "d":
            assert event.key is not None
            deleted[record.table] = event.key
        else:
            found = row(own, event)
            stored.setdefault(record.table, set()).add(tuple(found[name] for name in own.key))
    for table, key in deleted.items():
        assert key in stored[table]
    assert deleted["t.k_date"] == ("2024-02-29",)
    assert deleted["t.k_timestamptz"] == ("2023-12-31T22:05:00Z",)
    assert deleted["t.k_composite"] == (1, "a:b", golden.UUID)
    assert deleted["t.k_char"] == ("a   ",)
    assert deleted["t.k_bool"] == (True,)
    assert len(deleted) == 11


@pytest.mark.edge_case(1)
@pytest.mark.parametrize("table", ["t.id_default", "t.id_full"])
def test_the_image_before_is_never_needed(table: str) -> None:
    of = decoder(table)
    rows: dict[Any, Any] = {}
    for record in changes("identity"):
        if record.table == table:
            event = of.decode(record.key, record.value)
            if event.op == "d":
                assert event.key is not None
                del rows[event.key]
            else:
                rows[event.after[:1]] = event.after
    assert sorted(rows.values()) == [(1, "uno", 10), (3, "again", 4)]


@pytest.mark.edge_case(7)
def test_a_tombstone_is_the_delete_of_its_key() -> None:
    of = decoder("t.tomb")
    found = [(e.op, e.key or e.after) for e in (of.decode(r.key, r.value) for r in records("tombstones"))]
    assert found == [
        ("c", (1, "x")), ("d", (1,)), ("d", (1,)), ("c", (2, "x")), ("d", (2,)), ("d", (2,)),
    ]  # fmt: skip


@pytest.mark.edge_case(9)
def test_a_truncate_has_no_key_and_an_order_in_its_transaction() -> None:
    of = decoder("t.cut_a")
    cuts = [e for r in changes("truncate") if r.table == "t.cut_a" and (e := of.decode(r.key, r.value)).op == "t"]
    assert [(e.key, e.after, e.transaction and e.transaction.total_order) for e in cuts] == [
        (None, None, 1),
        (None, None, 2),
    ]


@pytest.mark.edge_case(15)
def test_rows_of_one_statement_have_keys_and_orders_of_their_own() -> None:
    of = decoder("t.cut_a")
    events = [of.decode(r.key, r.value) for r in changes("truncate") if r.table == "t.cut_a"][:2]
    assert [e.after[0] for e in events] == [1, 2]
    assert [e.transaction.total_order for e in events if e.transaction] == [1, 2]


@pytest.mark.edge_case(32)
def test_columns_that_come_and_go_are_absent_and_a_column_of_another_type_is_refused() -> None:
    wires = {"id": Wire("int"), "a": Wire("text"), "b": Wire("int"), "c": Wire("int")}
    of = TableDecoder("t.altered", 0, wires, ("id",))
    events = records("altered")
    found = [of.decode(r.key, r.value).after for r in events[:-1]]
    assert found == [
        (1, "before", 1, UNCHANGED), (2, "added", 2, 2), (1, "before", 3, 5), (3, "dropped", UNCHANGED, 3),
        (4, UNCHANGED, UNCHANGED, 4),
    ]  # fmt: skip
    with pytest.raises(UnsupportedValue, match=r"t\.altered\.c is read as int"):
        of.decode(events[-1].key, events[-1].value)


# ---- messages with schemas --------------------------------------------------------------------------------------


def test_a_message_with_its_schema_is_read_like_one_without() -> None:
    of = decoder("t.typed")
    events = [of.decode(r.key, r.value) for r in changes("schemas")]
    assert [e.op for e in events] == ["r", "c", "c", "u", "d"]
    assert events[-1].key == (2,)
    assert row(of, events[1]) == {
        "id": 2, "name": "first", "price": "3.37", "free": "0.1", "at": "2024-01-01T00:05:00.123456Z",
        "ts": "2024-01-01T00:05:00.123", "ts6": "2024-01-01T00:05:00.123456", "d": "2024-02-29", "tm": "04:05:06.789",
        "iv": "P1Y2M3DT4H5M6S", "b": True, "f8": "0.1", "data": "AP8=", "jb": '{"a": 1}', "tags": '["a","b"]',
        "mood": "ok", "u": golden.UUID, "bits": "FQ==",
    }  # fmt: skip
    assert set(row(of, events[2]).values()) == {3, "nulls", None}


@pytest.mark.edge_case(19)
@pytest.mark.edge_case(21)
@pytest.mark.parametrize("column", ["price", "free", "ts", "ts6", "d", "tm", "iv"])
def test_what_other_settings_of_the_connector_send_is_refused_by_column(column: str) -> None:
    of = decoder("t.typed", column)
    record = changes("schemas_defaults")[0]
    with pytest.raises(UnsupportedValue, match=rf"t\.typed\.{column} is read as"):
        of.decode(record.key, record.value)


# ---- UNCHANGED --------------------------------------------------------------------------------------------------

SILENT = ("a_int2", "a_numeric", "a_money", "a_float4", "a_float8", "a_bool", "a_date", "a_timestamp", "a_timestamptz",
          "a_time", "a_enum", "a_inet", "a_domain", "a_composite", "s_path", "s_varbit", "s_polygon")  # fmt: skip


@pytest.mark.edge_case(3)
def test_what_an_update_leaves_alone_is_unchanged_for_every_type_that_can_say_so() -> None:
    of = decoder("t.toast_types")
    update = next(r for r in changes("toast") if r.table == "t.toast_types" and b'"op":"u"' in (r.value or b""))
    event = of.decode(update.key, update.value)
    assert event.partial
    found = row(of, event)
    assert {n for n, v in found.items() if v is UNCHANGED} == set(found) - {"id", "n", *SILENT}
    assert {n for n in SILENT if found[n] is None} == set(SILENT)
    assert CATALOG.table("t.toast_types").silent_columns() == tuple(n for n in found if n in (*SILENT, "a_interval"))


@pytest.mark.edge_case(3)
def test_an_update_that_touches_one_long_column_leaves_the_others_unchanged() -> None:
    of = decoder("t.toast_default")
    events = [of.decode(r.key, r.value) for r in changes("toast") if r.table == "t.toast_default"]
    changed = [{n for n, v in row(of, e).items() if v is not UNCHANGED} for e in events if e.op == "u"]
    assert changed == [{"id", "n"}, {"id", "n", "tx"}, {"id", "n", "tx", "ta"}]
    assert [e.partial for e in events if e.op == "c"] == [False, True]
    whole = decoder("t.toast_full")
    assert not any(whole.decode(r.key, r.value).partial for r in changes("toast") if r.table == "t.toast_full")


@pytest.mark.edge_case(3)
@pytest.mark.parametrize(
    ("type", "value", "stored"),
    [
        ("uuid", "b68a35a7-17ad-35b3-af2a-ae46edb4545a", "b68a35a7-17ad-35b3-af2a-ae46edb4545a"),
        ("name", TEXT, TEXT),
        ("shop.mood", TEXT, TEXT),
        ("integer", 95, 95),
        ("bytea", "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==", "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="),
    ],
)
def test_the_placeholders_text_in_a_column_that_is_never_kept_out_of_line_is_data(
    type: str, value: Any, stored: Any
) -> None:
    column = Column(name="v", type=type, base="enum" if "." in type else None)
    assert one(wire_of(column), value) == stored


@pytest.mark.edge_case(3)
@pytest.mark.parametrize("type", ["text", "bytea", "integer[]", "uuid[]", "bytea[]", "text[]", "hstore", "jsonb"])
def test_a_text_of_one_type_is_not_the_placeholder_of_another(type: str) -> None:
    wire = wire_of(Column(name="v", type=type, toastable=True))
    others = {
        w
        for t in ("text", "bytea", "integer[]", "uuid[]")
        for w in wire_of(Column(name="v", type=t, toastable=True)).unchanged
    }
    assert one(wire, json.loads(wire.unchanged[0])) is UNCHANGED
    for token in others - set(wire.unchanged):
        try:
            assert one(wire, json.loads(token)) is not UNCHANGED
        except DecodeError:
            pass


def test_a_key_that_is_the_placeholders_text_is_a_key() -> None:
    of = TableDecoder("t", 0, {"id": wire_of(Column(name="id", type="text", toastable=True))}, ("id",))
    event = {"op": "u", "source": {"ts_ms": 0}, "after": {"id": TEXT}}
    found = of.decode(json.dumps({"id": TEXT}).encode(), json.dumps(event).encode())
    assert (found.after, found.partial) == ((TEXT,), False)


# ---- values by themselves ---------------------------------------------------------------------------------------


@pytest.mark.edge_case(19)
@pytest.mark.parametrize("value", ["AVE=", "AQ==", " ", "zwölf", 1.5, 3, {"scale": 1, "value": "AQ=="}])
def test_what_is_no_decimal_text_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedValue, match=r"t\.v is read as decimal"):
        one(Wire("decimal"), value)


@pytest.mark.edge_case(20)
@pytest.mark.parametrize("kind", [Wire("int"), Wire(None)])
def test_a_whole_number_beyond_64_bits_is_refused(kind: Wire) -> None:
    assert [one(kind, value) for value in (2**63 - 1, -(2**63), 2**53 + 1)] == [2**63 - 1, -(2**63), 2**53 + 1]
    for value in (2**63, 2**64 - 1, -(2**63) - 1):
        with pytest.raises(UnsupportedValue, match=r"t\.v is read as"):
            one(kind, value)


@pytest.mark.edge_case(25)
@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ('{"a":\n 1,\r\n "a" : 2 }', '{"a":2}'),
        ("1e400", "1e400"),
        ("-0", "0"),
        ("1.10", "1.10"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ('"\\u0000\\u2028"', '"\\u0000\u2028"'),
        ('{"":[{}]}', '{"":[{}]}'),
        ("[" * 50 + "]" * 50, "[" * 50 + "]" * 50),
        ("[" * 5000 + "\n" + "]" * 5000, "[" * 5000 + " " + "]" * 5000),
        ('["\\ud800",\n1]', '["\\ud800", 1]'),
        ("null", "null"),
    ],
)
def test_json_is_one_line_with_unlike_keys_and_its_numbers_as_written(written: str, stored: str) -> None:
    assert one(Wire("json"), written) == stored


@pytest.mark.edge_case(25)
@pytest.mark.parametrize("value", ["{", "", "hello", "{'a': 1}", "NaN"])
def test_what_is_no_json_is_refused(value: str) -> None:
    with pytest.raises(UnsupportedValue, match=r"t\.v is read as json"):
        one(Wire("json"), value)


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@pytest.mark.edge_case(25)
@given(JSONS, st.booleans())
def test_any_json_keeps_its_value(value: Any, spaced: bool) -> None:
    text = dumped(value, spaced)
    line = json_line(text)
    assert "\n" not in line
    assert parsed(line) == parsed(text)


def dumped(value: Any, spaced: bool) -> str:
    """json.dumps for values with Decimals."""
    marks: list[str] = []

    def mark(item: Any) -> Any:
        if isinstance(item, Decimal):
            marks.append(str(item))
            return {"__number__": len(marks) - 1}
        if isinstance(item, list):
            return [mark(one) for one in item]
        return {key: mark(one) for key, one in item.items()} if isinstance(item, dict) else item

    text = json.dumps(mark(value))
    for n, number in enumerate(marks):
        text = text.replace(json.dumps({"__number__": n}), number)
    return "\n" + text + "\n" if spaced else text


@pytest.mark.edge_case(30)
@pytest.mark.parametrize(
    ("token", "stored"), [(b'"a\\u0000b"', "a\0b"), ('"😀"'.encode(), "😀"), (b'"\\ud83d\\ude00"', "😀")]
)
def test_any_character_of_a_text_is_kept(token: bytes, stored: str) -> None:
    of = TableDecoder("t", 0, {"id": Wire("int"), "v": Wire("text")}, ("id",))
    event = of.decode(b'{"id":1}', b'{"op":"c","source":{"ts_ms":0},"after":{"id":1,"v":' + token + b"}}")
    assert event.after == (1, stored)


@pytest.mark.edge_case(30)
@pytest.mark.parametrize("token", [b'"\\ud800"', b'"\xff"', b'"\xed\xa0\x80"'])
def test_half_of_a_character_is_a_dead_letter_with_its_reason(token: bytes) -> None:
    of = TableDecoder("t", 0, {"id": Wire("int"), "v": Wire("text")}, ("id",))
    with pytest.raises(DecodeError):
        of.decode(b'{"id":1}', b'{"op":"c","source":{"ts_ms":0},"after":{"id":1,"v":' + token + b"}}")


@pytest.mark.edge_case(34)
@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b'{"op":"c"}', b'{"op":"x","source":{}}', b"\x00\x00\x00\x00\x01a"]
)
def test_what_is_no_envelope_is_a_dead_letter(value: bytes) -> None:
    with pytest.raises(MalformedEnvelope):
        decoder("t.ints").decode(b'{"id":1}', value)
