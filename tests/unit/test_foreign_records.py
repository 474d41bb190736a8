"""Records of foreign topics are read to the same values as the envelopes of our own connectors."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.sources.topics import ForeignTable
from pipeline.authoring.column_types import wire_of
from pipeline.errors import DecodeError, MalformedEnvelope, UnsupportedValue
from pipeline.events.avro import AvroRows, AvroSchema
from pipeline.events.envelope import UNCHANGED, TableDecoder
from pipeline.events.foreign import Envelope, Foreign, ForeignDecoder, JsonRows, Plain
from pipeline.events.spellings import as_java
from tests.support.registry import encoded

TABLE = ForeignTable(
    topic="theirs",
    key=("id",),
    columns={
        "id": "bigint", "total": "numeric(12,2)", "free": "numeric", "at": "timestamp without time zone",
        "until": "timestamp with time zone", "day": "date", "hour": "time without time zone", "note": "text",
        "paid": "boolean", "share": "double precision", "raw": "bytea", "code": "uuid", "more": "jsonb", "tags": "text[]",
    },
)  # fmt: skip
WIRES = {column.name: wire_of(column) for column in TABLE.table("billing.invoices").columns}
EPOCH = datetime(1970, 1, 1)
PLAIN = Plain()
CONNECT, DEBEZIUM = "org.apache.kafka.connect.data.", "io.debezium."
FIELDS: list[dict[str, Any]] = [
    {"type": "int64", "optional": False, "field": "id"},
    {"type": "bytes", "name": f"{CONNECT}Decimal", "version": 1, "parameters": {"scale": "2"}, "field": "total"},
    {"type": "struct", "name": f"{DEBEZIUM}data.VariableScaleDecimal", "field": "free"},
    {"type": "int64", "name": f"{DEBEZIUM}time.MicroTimestamp", "field": "at"},
    {"type": "string", "name": f"{DEBEZIUM}time.ZonedTimestamp", "field": "until"},
    {"type": "int32", "name": f"{DEBEZIUM}time.Date", "field": "day"},
    {"type": "int64", "name": f"{DEBEZIUM}time.MicroTime", "field": "hour"},
    {"type": "string", "field": "note"},
    {"type": "boolean", "field": "paid"},
    {"type": "double", "field": "share"},
    {"type": "bytes", "field": "raw"},
    {"type": "string", "name": f"{DEBEZIUM}data.Uuid", "field": "code"},
    {"type": "string", "name": f"{DEBEZIUM}data.Json", "field": "more"},
    {"type": "array", "items": {"type": "string", "optional": True}, "field": "tags"},
]
AVRO_TYPES: dict[str, Any] = {
    "id": "long",
    "total": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
    "free": {
        "type": "record", "name": "VariableScaleDecimal", "namespace": "io.debezium.data",
        "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
    },
    "at": {"type": "long", "connect.name": f"{DEBEZIUM}time.MicroTimestamp"},
    "until": {"type": "string", "connect.name": f"{DEBEZIUM}time.ZonedTimestamp"},
    "day": {"type": "int", "logicalType": "date"},
    "hour": {"type": "long", "logicalType": "time-micros"},
    "note": "string",
    "paid": "boolean",
    "share": "double",
    "raw": "bytes",
    "code": {"type": "string", "logicalType": "uuid"},
    "more": {"type": "string", "connect.name": f"{DEBEZIUM}data.Json"},
    "tags": {"type": "array", "items": ["null", "string"]},
}  # fmt: skip
ROW_SCHEMA: dict[str, Any] = {
    "type": "record", "name": "Value", "namespace": "theirs",
    "fields": [{"name": name, "type": ["null", kind] if name != "id" else kind, "default": None} for name, kind in AVRO_TYPES.items()],
}  # fmt: skip
del ROW_SCHEMA["fields"][0]["default"]
ENVELOPE_SCHEMA: dict[str, Any] = {
    "type": "record", "name": "Envelope", "namespace": "theirs",
    "fields": [
        {"name": "before", "type": ["null", ROW_SCHEMA], "default": None},
        {"name": "after", "type": ["null", "Value"], "default": None},
        {"name": "source", "type": {"type": "record", "name": "Source", "fields": [{"name": "ts_ms", "type": "long"}]}},
        {"name": "op", "type": "string"},
    ],
}  # fmt: skip
FLAT_SCHEMA = {
    **ROW_SCHEMA,
    "fields": [*ROW_SCHEMA["fields"], {"name": "__deleted", "type": ["null", "string"], "default": None}],
}
KEY_SCHEMA = {"type": "record", "name": "Key", "namespace": "theirs", "fields": [{"name": "id", "type": "long"}]}

decimals = st.decimals(min_value=-(10**9), max_value=10**9, places=2, allow_nan=False)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
ROWS = st.fixed_dictionaries({
    "id": st.integers(-(2**63), 2**63 - 1),
    "total": st.none() | decimals,
    "free": st.none() | st.decimals(min_value=-(10**9), max_value=10**9, places=7, allow_nan=False),
    "at": st.none() | st.datetimes(min_value=datetime(1, 1, 1)),
    "until": st.none() | st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)),
    "day": st.none() | st.dates(),
    "hour": st.none() | st.times(),
    "note": st.none() | texts,
    "paid": st.none() | st.booleans(),
    "share": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "raw": st.none() | st.binary(max_size=20),
    "code": st.none() | st.uuids(),
    "more": st.none() | st.dictionaries(texts, st.integers(0, 9) | texts | st.none(), max_size=3),
    "tags": st.none() | st.lists(st.none() | texts, max_size=3),
})  # fmt: skip


def trimmed(text: str) -> str:
    """As many decimals as it needs, as `isostring` writes them."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def zoned(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ").rjust(27, "0")


def own(row: Mapping[str, Any]) -> dict[str, Any]:
    """How our own connectors are told to write these values."""
    spelled: dict[str, Any] = dict(row)
    for name, spell in {
        "total": str, "free": lambda v: f"{v:f}", "at": lambda v: trimmed(v.isoformat()) + "Z", "until": zoned,
        "day": lambda v: v.isoformat() + "Z", "hour": lambda v: trimmed(v.isoformat()) + "Z",
        "raw": b64, "code": str, "more": json.dumps,
    }.items():  # fmt: skip
        spelled[name] = None if row[name] is None else spell(row[name])
    return spelled


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def octets(value: Decimal) -> bytes:
    number = int(value.scaleb(-int(value.as_tuple().exponent)))
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def micros(value: datetime) -> int:
    between = value - EPOCH
    return (between.days * 86_400 + between.seconds) * 10**6 + between.microseconds


def adaptive(row: Mapping[str, Any], *, binary: bool) -> dict[str, Any]:
    """How a connector with Debezium's defaults writes them; `binary`: bytes as such, as in Avro."""

    def of(data: bytes) -> Any:
        return data if binary else b64(data)

    spelled: dict[str, Any] = dict(row)
    for name, spell in {
        "total": lambda v: of(octets(v)), "free": lambda v: {"scale": 7, "value": of(octets(v))}, "at": micros,
        "until": zoned, "day": lambda v: (v - date(1970, 1, 1)).days,
        "hour": lambda v: ((v.hour * 60 + v.minute) * 60 + v.second) * 10**6 + v.microsecond,
        "raw": of, "code": str, "more": json.dumps,
    }.items():  # fmt: skip
        spelled[name] = None if row[name] is None else spell(row[name])
    return spelled


def in_json(payload: Any, fields: Sequence[Any] | None) -> bytes:
    if fields is None:
        return json.dumps(payload).encode()
    return json.dumps({"schema": {"type": "struct", "fields": fields}, "payload": payload}).encode()


def json_decoder(envelope: Envelope, plain: Plain = PLAIN, required: frozenset[str] = frozenset()) -> ForeignDecoder:
    foreign = Foreign(lambda wires, key: JsonRows(wires, key, envelope, plain), required)
    return foreign.decoder("billing.invoices", 3, WIRES, ("id",))


def avro_decoder(envelope: Envelope, *schemas: Mapping[str, Any]) -> ForeignDecoder:
    known = {n: AvroSchema.of(json.dumps(schema)) for n, schema in enumerate(schemas, 1)}
    foreign = Foreign(lambda wires, key: AvroRows(wires, key, envelope, known), frozenset())
    return foreign.decoder("billing.invoices", 3, WIRES, ("id",))


def enveloped(after: Any, op: str = "c") -> dict[str, Any]:
    return {"before": None, "after": after, "source": {"ts_ms": 7, "lsn": 5}, "op": op, "transaction": None}


def comparable(after: Any) -> dict[str, Any]:
    """Floats and lists as what their JSON means: how that is written is for the tests below."""
    found = dict(zip(WIRES, after, strict=True))
    return found | {name: found[name] and json.loads(found[name]) for name in ("share", "tags")}


OWN = TableDecoder("billing.invoices", 3, WIRES, ("id",))
AFTER = {"type": "struct", "field": "after", "fields": FIELDS}
WAYS: dict[str, tuple[ForeignDecoder, Callable[[dict[str, Any]], bytes]]] = {
    "our own, read as foreign": (json_decoder("debezium"), lambda row: in_json(enveloped(own(row)), None)),
    "envelope, schemas": (
        json_decoder("debezium"),
        lambda row: in_json(enveloped(adaptive(row, binary=False)), [AFTER]),
    ),
    "flattened, schemas": (
        json_decoder("flattened"),
        lambda row: in_json({**adaptive(row, binary=False), "__deleted": "false"}, FIELDS),
    ),
    "flattened, no schemas": (
        json_decoder("flattened", Plain("micros", base64=True, scales={**TABLE.scales, "free": 7})),
        lambda row: in_json(
            {**adaptive(row, binary=False), "free": None if row["free"] is None else b64(octets(row["free"]))}, None
        ),
    ),
    "envelope, Avro": (
        avro_decoder("debezium", ENVELOPE_SCHEMA),
        lambda row: encoded(1, ENVELOPE_SCHEMA, enveloped(adaptive(row, binary=True))),
    ),
    "flattened, Avro": (
        avro_decoder("flattened", FLAT_SCHEMA),
        lambda row: encoded(1, FLAT_SCHEMA, {**adaptive(row, binary=True), "__deleted": "false"}),
    ),
}


@given(row=ROWS)
def test_a_row_has_the_same_values_whichever_way_it_is_written(row: dict[str, Any]) -> None:
    expected = comparable(OWN.decode(None, in_json(enveloped(own(row)), None)).after)
    for way, (decoder, written) in WAYS.items():
        event = decoder.decode(None, written(row))
        assert comparable(event.after) == expected, way
        assert (event.op, event.table, event.partial) == ("u", 3, False), way
        assert event.transaction is None and event.source.lsn is None, way


@pytest.mark.edge_case(22)
@pytest.mark.parametrize(
    ("python", "java"),
    [("0.1", "0.1"), ("3.4028235e+38", "3.4028235E38"), ("1e+308", "1.0E308"), ("4.9e-324", "4.9E-324"), ("-0.0", "-0.0"),
     ("1", "1.0"), ("9999999", "9999999.0"), ("1e+07", "1.0E7"), ("0.001", "0.001"), ("0.00099", "9.9E-4"), ("12.5", "12.5"),
     ("1.5e+300", "1.5E300"), ("123456789", "1.23456789E8")],
)  # fmt: skip
def test_a_float_is_spelled_as_in_json(python: str, java: str) -> None:
    assert as_java(python) == java


def test_a_float_of_32_bits_has_no_digits_that_it_was_not_given() -> None:
    schema = {**ROW_SCHEMA, "fields": [{"name": "id", "type": "long"}, {"name": "share", "type": "float"}]}
    decoder = avro_decoder("flattened", schema)
    for value, wanted in (
        (0.1, "0.1"),
        (3.4028235e38, "3.4028235E38"),
        (1.4e-45, "1.4E-45"),
        (16777216.0, "1.6777216E7"),
    ):
        event = decoder.decode(None, encoded(1, schema, {"id": 1, "share": value}))
        assert event.after[list(WIRES).index("share")] == wanted


KEYS = {
    "JSON": b'{"id":5}',
    "JSON with a schema": in_json({"id": 5}, [{"type": "int64", "field": "id"}]),
    "the column alone": b"5",
}


@pytest.mark.edge_case(7)
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
@pytest.mark.parametrize(
    "value",
    [None, b'{"id":5,"__deleted":"true"}', b'{"id":5,"__deleted":true}', b'{"id":5,"__op":"d","__source_lsn":7}',
     in_json({"id": 5, "__deleted": "true"}, [{"type": "int64", "field": "id"}]), in_json(None, FIELDS), b"null"],
    ids=["tombstone", "deleted, a text", "deleted", "op", "with schemas", "null with a schema", "null"],
)  # fmt: skip
def test_each_mark_of_a_delete_deletes_its_key(key: bytes, value: bytes | None) -> None:
    event = json_decoder("flattened").decode(key, value)
    assert (event.op, event.key, event.after) == ("d", (5,), None)


def test_a_delete_without_a_key_is_of_its_own_row_where_it_has_one() -> None:
    assert json_decoder("flattened").decode(None, b'{"id":5,"__deleted":"true"}').key == (5,)
    for value in (None, b'{"__deleted":"true"}'):
        with pytest.raises(MalformedEnvelope, match="key"):
            json_decoder("flattened").decode(None, value)


@pytest.mark.edge_case(7)
def test_avro_has_the_same_deletes() -> None:
    decoder = avro_decoder("flattened", FLAT_SCHEMA, KEY_SCHEMA, {"type": "long"})
    nothing: dict[str, Any] = dict.fromkeys(WIRES)
    marked = encoded(1, FLAT_SCHEMA, {**nothing, "id": 5, "__deleted": "true"})
    for key in (encoded(2, KEY_SCHEMA, {"id": 5}), encoded(3, {"type": "long"}, 5), b'{"id":5}'[:0] or None):
        event = decoder.decode(key, marked)
        assert (event.op, event.key) == ("d", (5,))
    assert decoder.decode(encoded(2, KEY_SCHEMA, {"id": 5}), None).key == (5,)
    nullable: Any = ["null", FLAT_SCHEMA]
    of_null = avro_decoder("flattened", nullable, KEY_SCHEMA)
    assert of_null.decode(encoded(2, KEY_SCHEMA, {"id": 5}), b"\0\0\0\0\1\0").key == (5,)
    deleted = encoded(1, ENVELOPE_SCHEMA, enveloped(None, "d"))
    assert (
        avro_decoder("debezium", ENVELOPE_SCHEMA, KEY_SCHEMA).decode(encoded(2, KEY_SCHEMA, {"id": 5}), deleted).op
        == "d"
    )


@pytest.mark.edge_case(34)
def test_a_schema_that_changes_amid_a_topic_is_read_record_by_record() -> None:
    less = {**ROW_SCHEMA, "fields": [f for f in ROW_SCHEMA["fields"] if f["name"] in ("id", "note")]}
    other = {**ROW_SCHEMA, "fields": [{"name": "id", "type": "int"}, {"name": "total", "type": {
        "type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 4}}, {"name": "new", "type": "string"}]}  # fmt: skip
    decoder = avro_decoder("flattened", less, other)
    names = list(WIRES)
    first = decoder.decode(None, encoded(1, less, {"id": 1, "note": "n"})).after
    second = decoder.decode(None, encoded(2, other, {"id": 1, "total": b"\x30\x39", "new": "x"})).after
    assert (first[names.index("note")], first[names.index("total")]) == ("n", None)
    assert (second[names.index("note")], second[names.index("total")]) == (None, "1.2345")


def test_a_value_that_was_not_sent_is_no_value() -> None:
    for value in (
        b'{"id":1,"note":"__debezium_unavailable_value"}',
        b'{"id":1,"raw":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}',
    ):
        event = json_decoder("flattened").decode(None, value)
        assert event.partial and UNCHANGED in event.after


@pytest.mark.edge_case(34)
@pytest.mark.parametrize(
    ("decoder", "value", "said"),
    [
        (json_decoder("flattened"), b"\0\0\0\0\1abc", "no flattened row in JSON"),
        (json_decoder("debezium"), b'{"id":1}', "no debezium row in JSON"),
        (json_decoder("flattened", required=frozenset({"note"})), b'{"id":1}', "has no note"),
        (json_decoder("flattened"), b'{"note":"x"}', "lacks id"),
        (json_decoder("flattened"), b'{"id":1,"total":"AVE="}', r"billing\.invoices\.total can't be read"),
        (json_decoder("flattened"), b'{"id":1,"at":1700000000000}', "plain_times"),
        (json_decoder("flattened"), b'{"id":1,"paid":"yes"}', "neither true nor false"),
        (json_decoder("flattened", Plain(base64=True)), b'{"id":1,"free":"AVE="}', "scale"),
        (json_decoder("flattened"), in_json({"id": 1, "total": 0.1}, [{"field": "total", "type": "double"}]), "float"),
        (avro_decoder("flattened", ROW_SCHEMA), b'{"id":1}', "not with 00"),
        (avro_decoder("flattened", ROW_SCHEMA), b"\0\0\0\0\1\xff", "not as schema 1 says"),
        (avro_decoder("flattened", {"type": "nonsense"}), b"\0\0\0\0\1abc", "schema 1: its schema is no Avro"),
        (avro_decoder("debezium", ROW_SCHEMA), encoded(1, ROW_SCHEMA, {"id": 1}), "no Debezium envelope"),
    ],
)
def test_what_cannot_be_read_says_why(decoder: ForeignDecoder, value: bytes, said: str) -> None:
    with pytest.raises((MalformedEnvelope, UnsupportedValue), match=said):
        decoder.decode(b'{"id":1}', value)


@given(data=st.binary(max_size=60), tail=st.binary(max_size=40))
def test_any_bytes_are_a_row_or_a_dead_letter(data: bytes, tail: bytes) -> None:
    for decoder, _ in WAYS.values():
        for value in (b"x" + data, b"\0\0\0\0\1" + tail, b'{"id":' + data + b"}"):
            with suppress(DecodeError):
                decoder.decode(b'{"id":1}', value)


def test_uuids_and_other_texts_stay_texts() -> None:
    code = uuid.uuid4()
    event = json_decoder("flattened").decode(
        None, json.dumps({"id": 1, "code": str(code), "hour": "10:00:00.100Z"}).encode()
    )
    assert event.after[list(WIRES).index("code")] == str(code)
    assert event.after[list(WIRES).index("hour")] == time(10, 0, 0, 100_000).isoformat().rstrip("0")


@pytest.mark.parametrize(
    "schema",
    [
        {**ROW_SCHEMA, "fields": [{"name": "op", "type": "string"}, {"name": "after", "type": "string"}]},
        {**ROW_SCHEMA, "fields": [{"name": "op", "type": "string"}, {"name": "source", "type": "string"}]},
        {**ROW_SCHEMA, "fields": [{"name": "op", "type": "string"}, {"name": "after", "type": ["null", {
            "type": "record", "name": "A", "fields": [{"name": "id", "type": {"type": "string", "scale": "x"}}]}]}]},
    ],
)  # fmt: skip
def test_an_envelope_of_another_shape_is_a_dead_letter(schema: dict[str, Any]) -> None:
    record = {"op": "c", "after": {"id": "1"} if "null" in str(schema) else "x", "source": "x"}
    with pytest.raises(DecodeError):
        avro_decoder("debezium", schema).decode(None, encoded(1, schema, record))


def test_a_number_of_a_million_digits_is_not_made() -> None:
    for scale in (10**9, -(10**9)):
        with pytest.raises(UnsupportedValue, match="digits behind the point"):
            json_decoder("flattened").decode(
                None, in_json({"id": 1, "free": {"scale": scale, "value": "AQ=="}}, FIELDS)
            )
