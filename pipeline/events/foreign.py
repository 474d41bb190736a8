"""Records of foreign topics: Debezium's envelopes with schemas, and flattened rows, as the same events as our own.

No position of theirs is taken for an order: within a partition Kafka's order is the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct

from pipeline.authoring.column_types import PLACEHOLDER, Wire
from pipeline.errors import MalformedEnvelope, UnsupportedValue
from pipeline.events.envelope import UNCHANGED, Event, Source
from pipeline.events.spellings import Reader, Told, reader

Envelope = Literal["debezium", "flattened"]
MARKS: Final = ("__deleted", "__op", "__ts_ms", "__source_ts_ms")
"""What ExtractNewRecordState may add to a row, of which something is made here."""
_BASE64: Final = b"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ"
_UNCHANGED: Final = (PLACEHOLDER.decode(), PLACEHOLDER, _BASE64.decode() + "==")
_WRONG: Final = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, UnsupportedValue)
"""What a value, or a schema, raises that is not as it says."""
_PLANS: Final = 1000
"""Schemas kept; a producer has a few."""


class Opened(NamedTuple):
    """One record: what was done, the used columns' values (UNSET: it has none), how to read each, and when it was."""

    op: str
    values: Sequence[Any] | None
    readers: Sequence[Reader]
    ts_ms: int = 0


class Rows(Protocol):
    """How the records of one table are written; both raise MalformedEnvelope."""

    def open(self, data: bytes) -> Opened: ...

    def key(self, data: bytes) -> Opened:
        """Its values are those of the key's columns."""
        ...


class Foreign(NamedTuple):
    """How a foreign topic is read. `rows` is made of the used columns and the key; `required`: columns that each row has."""

    rows: Callable[[Mapping[str, Wire], Sequence[str]], Rows]
    required: frozenset[str]

    def decoder(self, table: str, number: int, wires: Mapping[str, Wire], key: Sequence[str]) -> ForeignDecoder:
        return ForeignDecoder(table, number, list(wires), key, self.rows(wires, key), self.required)


class ForeignDecoder:
    """Decodes the records of one foreign topic; as TableDecoder does those of our own connectors."""

    def __init__(
        self, table: str, number: int, columns: Sequence[str], key: Sequence[str], rows: Rows, required: frozenset[str]
    ) -> None:
        self.table, self.number, self.key = table, number, tuple(key)
        self._columns, self._rows, self._required = tuple(columns), rows, required
        self._key_index = [self._columns.index(name) for name in key]

    def decode(self, key: bytes | None, value: bytes | None) -> Event:
        """One record's event, its `after` a tuple in the order of the columns; raises DecodeError."""
        if value is None:
            return self._delete(self.read_key(key), 0)
        try:
            op, values, readers, ts_ms = self._rows.open(value)
        except MalformedEnvelope as error:
            raise MalformedEnvelope(f"{self.table}: {error}") from None
        except _WRONG as error:
            raise MalformedEnvelope(f"{self.table}: its schema is not as Debezium's are: {error!r}") from None
        if op == "d":
            own = None if values is None else [values[i] for i in self._key_index]
            found = self.read_key(key) if key is not None or own is None else self._read_key(own, readers)
            return self._delete(found, ts_ms)
        if op in ("t", "m"):
            return Event(op=op, source=Source(ts_ms=ts_ms), table=self.number)
        if values is None:
            raise MalformedEnvelope(f"{self.table}: a record of operation {op!r} without a row.")
        unchanged = PLACEHOLDER in value or _BASE64 in value
        if unchanged:
            values = [UNCHANGED if _is_unchanged(one) else one for one in values]
        if UNSET in values:
            self._check_absent(values)
            values = [None if one is UNSET else one for one in values]
        try:
            after = tuple(
                one if one is None or one is UNCHANGED else read(one) for one, read in zip(values, readers, strict=True)
            )
        except _WRONG:
            raise self._unreadable(self._columns, values, readers) from None
        for i in self._key_index:
            if after[i] is None or after[i] is UNCHANGED:
                raise MalformedEnvelope(f"{self.table}: the row lacks {self._columns[i]}, which is of its key.")
        return Event(
            op="u", source=Source(ts_ms=ts_ms), after=after, table=self.number, partial=unchanged and UNCHANGED in after
        )

    def read_key(self, key: bytes | None) -> tuple[Any, ...]:
        """The key of a record by itself; raises MalformedEnvelope."""
        if key is None:
            raise MalformedEnvelope(f"{self.table}: a delete without a key: the producer has to send one.")
        try:
            _, values, readers, _ = self._rows.key(key)
        except (MalformedEnvelope, *_WRONG) as error:
            raise MalformedEnvelope(f"{self.table}: the record's key can't be read: {error}") from None
        return self._read_key(values or (), readers, of_key=True)

    def _read_key(self, values: Sequence[Any], readers: Sequence[Reader], *, of_key: bool = False) -> tuple[Any, ...]:
        chosen = readers if of_key else [readers[i] for i in self._key_index]
        if len(values) != len(self.key) or any(one is None or one is UNSET for one in values):
            raise MalformedEnvelope(f"{self.table}: the record's key lacks a column of {', '.join(self.key)}.")
        try:
            return tuple(read(one) for one, read in zip(values, chosen, strict=True))
        except _WRONG:
            found = self._unreadable(self.key, values, chosen)
            raise MalformedEnvelope(f"{self.table}: the record's key can't be read: {found}") from None

    def _delete(self, key: tuple[Any, ...], ts_ms: int) -> Event:
        # a place at 0 says that it need not be applied by itself, as a tombstone among placed events has to be
        return Event(op="d", source=Source(lsn=0, ts_ms=ts_ms), key=key, table=self.number)

    def _check_absent(self, values: Sequence[Any]) -> None:
        for name, value in zip(self._columns, values, strict=True):
            if value is UNSET and name in self._required:
                raise MalformedEnvelope(
                    f"{self.table}: the record has no {name}, which the topics' definition says that each has (not null):"
                    " mend its name there, or leave out `not null`."
                )

    def _unreadable(self, names: Sequence[str], values: Sequence[Any], readers: Sequence[Reader]) -> UnsupportedValue:
        for name, one, read in zip(names, values, readers, strict=True):
            try:
                if one is not None and one is not UNCHANGED:
                    read(one)
            except _WRONG as error:
                return UnsupportedValue(f"{self.table}.{name} can't be read as it is declared: {error}")
        raise AssertionError(names)


def _is_unchanged(value: Any) -> bool:
    return value in _UNCHANGED if isinstance(value, str | bytes) else value == [_UNCHANGED[0]]


def operation(op: str | None, deleted: Any) -> str:
    """What a flattened row says of itself, where it says anything."""
    return "d" if op == "d" or deleted is True or deleted == "true" else "u"


# ---- JSON -------------------------------------------------------------------------------------------------


class Plain(NamedTuple):
    """How JSON without schemas is meant: the unit of numbers that are times, and whether decimals are bytes."""

    times: str = ""
    base64: bool = False
    scales: Mapping[str, int] = {}
    """The digits behind the point of each decimal column that is declared with them."""

    def told(self, name: str, wire: Wire) -> Told:
        if wire.kind == "decimal":
            return Told("base64", scale=self.scales.get(name)) if self.base64 else Told()
        return Told(self.times)


class JsonRows:
    """JSON as Connect's converter writes it, with schemas or without, record by record."""

    def __init__(self, wires: Mapping[str, Wire], key: Sequence[str], envelope: Envelope, plain: Plain) -> None:
        self._wires, self._key, self._envelope = dict(wires), tuple(key), envelope
        row = _row_type(self._wires, marked=envelope == "flattened")
        body = row if envelope == "flattened" else msgspec.defstruct(
            "Envelope", [("op", str), ("after", row | None, None), ("source", _When | None, None)], gc=False
        )  # fmt: skip
        self._plain_readers = [reader(wire, plain.told(name, wire)) for name, wire in wires.items()]
        self._plain_key = [reader(wires[name], plain.told(name, wires[name])) for name in key]
        key_type = _row_type({name: wires[name] for name in key}, marked=False)
        # Connect's converter writes a tombstone that has a schema as a null beside it
        self._body, self._wrapped = _decoder(body | None), _decoder(_wrapped(body | None))
        self._key_body, self._key_wrapped = _decoder(key_type), _decoder(_wrapped(key_type))
        self._plans: dict[bytes, list[Reader]] = {}

    def open(self, data: bytes) -> Opened:
        try:
            if _has_schema(data):
                found = self._wrapped(data)
                body, schema = found.payload, bytes(found.schema)
                readers = self._plans.get(schema) or self._plan(schema, list(self._wires), self._envelope)
            else:
                body, readers = self._body(data), self._plain_readers
        except msgspec.MsgspecError as error:
            raise MalformedEnvelope(f"no {self._envelope} row in JSON: {error}") from None
        if body is None:
            return Opened("d", None, readers)
        if self._envelope == "debezium":
            after = None if body.after is None else msgspec.structs.astuple(body.after)
            return Opened(body.op, after, readers, (body.source.ts_ms or 0) if body.source is not None else 0)
        *values, deleted, op, ts_ms, source_ms = msgspec.structs.astuple(body)
        return Opened(operation(op, deleted), values, readers, source_ms or ts_ms or 0)

    def key(self, data: bytes) -> Opened:
        try:
            if _has_schema(data):
                found = self._key_wrapped(data)
                schema = b"key" + bytes(found.schema)
                readers = self._plans.get(schema) or self._plan(schema, list(self._key), "flattened")
                return Opened("", msgspec.structs.astuple(found.payload), readers)
            if data[:1] != b"{" and len(self._key) == 1:  # the producer took the one column out
                return Opened("", (_any(data),), self._plain_key)
            return Opened("", msgspec.structs.astuple(self._key_body(data)), self._plain_key)
        except msgspec.MsgspecError as error:
            raise MalformedEnvelope(str(error)) from None

    def _plan(self, schema: bytes, names: Sequence[str], envelope: Envelope) -> list[Reader]:
        """What a schema says of these columns; each is looked at once."""
        found: Any = msgspec.json.decode(schema.removeprefix(b"key"))
        fields = _fields(found)
        if envelope == "debezium":
            fields = _fields(fields.get("after"))
        readers = [reader(self._wires[name], _told(fields.get(name))) for name in names]
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[schema] = readers
        return readers


class _When(Struct, gc=False):
    ts_ms: int | None = None


_any: Final = msgspec.json.Decoder(float_hook=lambda text: Raw(text.encode())).decode


def _decoder(kind: Any) -> Callable[[bytes], Any]:
    # a number stays as it is written, for a float would round it
    return msgspec.json.Decoder(kind, float_hook=lambda text: Raw(text.encode())).decode


def _row_type(names: Mapping[str, Wire], *, marked: bool) -> type[Struct]:
    fields: list[Any] = [(f"f{i}", Any, msgspec.field(name=name, default=UNSET)) for i, name in enumerate(names)]
    if marked:
        kinds = (str | bool | None, str | None, int | None, int | None)
        fields += [
            (f"mark{i}", kind, msgspec.field(name=name, default=None))
            for i, (name, kind) in enumerate(zip(MARKS, kinds, strict=True))
        ]
    return msgspec.defstruct("Row", fields, gc=False)


def _wrapped(body: Any) -> type[Struct]:
    return msgspec.defstruct("Wrapped", [("schema", Raw), ("payload", body)], gc=False)


def _has_schema(data: bytes) -> bool:
    return data[:24].replace(b" ", b"").startswith(b'{"schema":{')


def _fields(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        return {}
    return {str(field.get("field")): field for field in schema.get("fields") or ()}


def _told(field: Any) -> Told:
    if not isinstance(field, Mapping):
        return Told()
    scale = (field.get("parameters") or {}).get("scale")
    item = _told(field["items"]) if "items" in field else None
    return Told(field.get("name") or "", field.get("type") or "", None if scale is None else int(scale), item)


__all__ = ["MARKS", "Foreign", "ForeignDecoder", "JsonRows", "Opened", "Plain", "Rows", "operation"]
