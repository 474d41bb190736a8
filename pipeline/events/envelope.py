"""The Debezium envelope: one record's bytes decoded to the columns a projection uses, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

import msgspec
from msgspec import Raw, Struct

from pipeline.authoring.column_types import PLACEHOLDER, Wire
from pipeline.errors import DecodeError, MalformedEnvelope, UnsupportedValue
from pipeline.events.sourcelog import Gtid, is_gtid
from pipeline.events.values import converter, field_type, row_reader

_SIGNS: Final = (
    PLACEHOLDER,
    b"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ",
    b"95,95,100,101,98,101,122,105,117,109",
    b"b68a35a7-17ad-35b3-af2a-ae46edb4545a",
)
"""What a record with an UNCHANGED value has somewhere."""


class Unchanged:
    """ "The source did not send this column": not null, not absent."""

    def __repr__(self) -> str:
        return "UNCHANGED"

    def __bool__(self) -> bool:
        return False


UNCHANGED: Final = Unchanged()


class Source(Struct, gc=False):
    """What the source says of an event; other databases' connectors lack some of it."""

    snapshot: str | bool | None = None
    sequence: str | None = None
    txId: int | str | None = None
    lsn: int | None = None
    """The position; of MariaDB's events the sequence of their GTID (`placed`)."""
    ts_ms: int = 0
    gtid: str | None = None
    """MariaDB's transaction, `0-1-42`; null in a snapshot."""


class TransactionBlock(Struct, gc=False):
    """The event's place in its source transaction."""

    id: str
    total_order: int


class Event(Struct, gc=False):
    """One decoded change. `after` holds the used columns; after `decode` a tuple of values, None for a delete."""

    op: str
    source: Source
    after: Any = None
    transaction: TransactionBlock | None = None
    key: tuple[Any, ...] | None = None
    offset: int = -1
    table: int = -1
    error: str | None = None
    raw: tuple[bytes | None, bytes | None] | None = None
    partial: bool = False
    """Some value of `after` is UNCHANGED."""
    absent: str | None = None
    """A column that the event does not have at all."""
    moved: bool = False
    """The row is not gone at the source, but another partition's now."""
    log: int = 0
    """The source log it comes from (see sourcelog.py); the engine sets it, and `transaction.id` to the bare id in it."""


class _Wrapped(Struct, gc=False):
    payload: Raw


def transaction_id(event: Event) -> str | None:
    """The transaction's id, as the gate knows it."""
    block = event.transaction
    return None if block is None else block.id


def commit_order(source: Source) -> int:
    """Where the event's transaction stands in commit order: the LSN of the commit before it; 0 where unknown.

    Debezium's `source.sequence` is a JSON text `["last commit", "lsn"]`.
    """
    sequence = source.sequence
    if sequence is None or sequence[1:2] != '"':
        return 0
    return int(sequence[2 : sequence.index('"', 2)])


def placed(event: Event) -> None:
    """Give an event of MariaDB's the position that its GTID is; raises MalformedEnvelope.

    A truncate is DDL, a transaction of its own that gets no END: it goes without.
    """
    try:
        event.source.lsn = Gtid.of(event.source.gtid or "").sequence
    except ValueError:
        raise MalformedEnvelope(f"{event.source.gtid!r} is no GTID.") from None
    if event.op == "t":
        event.transaction = None


class TableDecoder:
    """Decodes the records of one source table.

    `wires` are the used columns in the mirror's order, with how their values come.
    """

    def __init__(self, table: str, number: int, wires: Mapping[str, Wire], key: Sequence[str]) -> None:
        self.table, self.number = table, number
        self.wires, self.key = dict(wires), tuple(key)
        names = list(self.wires)
        row = msgspec.defstruct(
            f"Row_{table}",
            [(f"f{i}", field_type(wire), msgspec.field(name=name)) for i, (name, wire) in enumerate(wires.items())],
            gc=False,
        )
        envelope = msgspec.defstruct(
            f"Envelope_{table}",
            [
                ("op", str),
                ("source", Source),
                ("after", row | None, None),
                ("transaction", TransactionBlock | None, None),
            ],
            bases=(Event,),
            gc=False,
        )
        self._decode = msgspec.json.Decoder(envelope).decode
        self._unwrap = msgspec.json.Decoder(_Wrapped).decode
        self._converters = {name: converter(wire) for name, wire in wires.items()}
        self._stored = row_reader(wires.values())
        tokens = b"".join(token for wire in wires.values() for token in wire.unchanged)
        signs = [sign for sign in _SIGNS if sign in tokens]
        self._sign = signs[0] if signs else b"\0"  # no JSON has that byte
        self._signs = signs[1:]
        self._key_index = [names.index(name) for name in self.key]
        key_type = msgspec.defstruct(
            f"Key_{table}",
            [(f"f{i}", field_type(self.wires[n]), msgspec.field(name=n)) for i, n in enumerate(self.key)],
            gc=False,
        )
        self._decode_key = msgspec.json.Decoder(key_type).decode
        self._wrapped = False

    def decode(self, key: bytes | None, value: bytes | None) -> Event:
        """One record's event, its `after` a tuple in the order of the columns; raises DecodeError."""
        if value is None:
            return self._tombstone(key)
        if self._sign in value or (self._signs and any(sign in value for sign in self._signs)):
            return self._careful(key, value)
        try:
            event: Any = self._decode(self._unwrap(value).payload if self._wrapped else value)
            if event.after is not None and event.op in _UPSERTS:
                event.after = self._stored(event.after)
                event.table = self.number
                return cast(Event, event)
            if event.after is None and event.op == "d":
                event.key, event.table = self.read_key(key), self.number
                return cast(Event, event)
        except (msgspec.MsgspecError, DecodeError, ValueError, AttributeError):
            pass
        return self._careful(key, value)

    def _tombstone(self, key: bytes | None) -> Event:
        return Event(op="d", source=Source(), key=self.read_key(key), table=self.number)

    def read_key(self, key: bytes | None) -> tuple[Any, ...]:
        """The key of a record by itself; raises MalformedEnvelope."""
        if key is None:
            raise MalformedEnvelope(f"{self.table}: a delete without a key; the table needs a primary key.")
        try:
            data = self._unwrap(key).payload if self._wrapped or b'"payload"' in key else key
            values = msgspec.structs.astuple(self._decode_key(data))
            return tuple(
                value if value is None or convert is None else convert(value)
                for value, convert in zip(values, map(self._converters.get, self.key), strict=True)
            )
        except (msgspec.MsgspecError, DecodeError, ValueError) as error:
            raise MalformedEnvelope(f"{self.table}: the record's key can't be read: {error}") from None

    def _careful(self, key: bytes | None, value: bytes) -> Event:
        """The slow road: deletes, truncates, schemas in the message, placeholders, missing columns; says what is wrong."""
        envelope = self._open(value)
        event = Event(
            op=envelope.op, source=envelope.source, transaction=envelope.transaction, table=self.number,
            moved=envelope.moved,
        )  # fmt: skip
        if event.op == "d":
            event.key = self.read_key(key)
        elif event.op in _UPSERTS:
            if envelope.after is None:
                raise MalformedEnvelope(f"{self.table}: an event of operation {event.op!r} without an image after.")
            read = event.op == "r"
            after = [self._value(envelope.after, name, wire, read=read) for name, wire in self.wires.items()]
            if key is not None and any(after[i] is UNCHANGED for i in self._key_index):
                # a key is never kept out of line: it is text like the placeholder, or not in the row's image
                for i, part in zip(self._key_index, self.read_key(key), strict=True):
                    after[i] = part
            event.after = tuple(after)
            event.partial = UNCHANGED in event.after
            event.absent = next((name for name in self.wires if name not in envelope.after), None)
            if any(event.after[i] is UNCHANGED or event.after[i] is None for i in self._key_index):
                raise MalformedEnvelope(f"{self.table}: the image after lacks a column of the key {self.key}.")
        elif event.op not in ("t", "m"):
            raise MalformedEnvelope(f"{self.table}: the operation {event.op!r} is not known.")
        return event

    def _open(self, value: bytes) -> LooseEnvelope:
        try:
            return _loose(value)
        except msgspec.MsgspecError as first:
            try:
                opened = _loose(bytes(self._unwrap(value).payload))
            except msgspec.MsgspecError:
                raise MalformedEnvelope(f"{self.table}: no Debezium envelope: {first}") from None
            self._wrapped = True
            return opened

    def _value(self, after: Mapping[str, Raw], name: str, wire: Wire, *, read: bool) -> Any:
        token = after.get(name)
        # what a snapshot reads is there, whatever it looks like
        if token is None or (not read and bytes(token).replace(b" ", b"") in wire.unchanged):
            return UNCHANGED
        convert = self._converters[name]
        try:
            found = msgspec.json.decode(token, type=field_type(wire))
            return found if found is None or convert is None else convert(found)
        except (msgspec.MsgspecError, UnsupportedValue, ValueError) as error:
            raise UnsupportedValue(
                f"{self.table}.{name} is read as {wire.kind}, and the event has something else: {error}"
            ) from None


class LooseEnvelope(Struct, gc=False):
    """Any table's envelope, its image after as JSON tokens."""

    op: str
    source: Source
    after: dict[str, Raw] | None = None
    transaction: TransactionBlock | None = None
    moved: bool = False


_loose: Final = msgspec.json.Decoder(LooseEnvelope).decode
_UPSERTS: Final = frozenset({"c", "u", "r"})


class _OnlyPlace(Struct):
    transaction: TransactionBlock | None = None
    source: Source | None = None


def dead_letter(table: int, offset: int, key: bytes | None, value: bytes | None, error: DecodeError) -> Event:
    """An undecodable record as an event, in its transaction where that can be read: it counts there."""
    found = _OnlyPlace()
    try:
        found = msgspec.json.decode(value or b"null", type=_OnlyPlace)
    except msgspec.MsgspecError:
        pass
    of_gtid = found.source if found.source is not None and found.source.gtid is not None else None
    event = Event(
        op="!",
        source=of_gtid or Source(),
        transaction=found.transaction,
        table=table,
        offset=offset,
        error=f"{type(error).__name__}: {error}",
        raw=(key, value),
    )
    if of_gtid is not None:
        with suppress(DecodeError):
            placed(event)
    return event


class DataCollection(Struct, gc=False):
    """How many events a transaction has in one table."""

    data_collection: str
    event_count: int


class Boundary(Struct, gc=False):
    """A message of the transaction topic: BEGIN or END."""

    status: str
    id: str
    ts_ms: int = 0
    event_count: int | None = None
    data_collections: list[DataCollection] | None = None

    @property
    def txid(self) -> str:
        return self.id.partition(":")[0]

    @property
    def lsn(self) -> int:
        """The end of the commit record, which only an END's is; or the sequence of a GTID."""
        txid, _, lsn = self.id.partition(":")
        return int(lsn) if lsn else Gtid.of(txid).sequence if self.has_gtid else 0

    @property
    def has_gtid(self) -> bool:
        return is_gtid(self.id)


class _WrappedBoundary(Struct, gc=False):
    payload: Boundary


_boundary: Final = msgspec.json.Decoder(Boundary).decode
_wrapped_boundary: Final = msgspec.json.Decoder(_WrappedBoundary).decode


def decode_boundary(value: bytes) -> Boundary:
    """A message of the transaction topic; raises MalformedEnvelope."""
    try:
        return _boundary(value)
    except msgspec.MsgspecError as first:
        try:
            return _wrapped_boundary(value).payload
        except msgspec.MsgspecError:
            raise MalformedEnvelope(f"the transaction topic has no BEGIN or END: {first}") from None
