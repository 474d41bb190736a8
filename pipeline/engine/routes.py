"""Routes: for one source table, the partition that each of its records goes to, and what the others get in its place."""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from pipeline.engine.inputs import Record
from pipeline.engine.owners import Owners
from pipeline.errors import DecodeError
from pipeline.events.envelope import Event, Source, TableDecoder, TransactionBlock, dead_letter
from pipeline.events.values import field_type

ALL: Final = -1
NOBODY: Final = -2
"""In place of a partition's number."""


class Place(Struct, gc=False):
    """What each partition has to know of an event."""

    op: str
    source: Source
    transaction: TransactionBlock | None = None


class _Wrapped(Struct, gc=False):
    payload: Raw


class _Said(Struct, gc=False):
    source: Raw
    transaction: Raw = Raw(b"null")


Routed = tuple[Place | Event, int, Record | None]
"""Where the event stands, the partition that gets its record, and what the others get instead; None: only the place."""

_place: Final = msgspec.json.Decoder(Place).decode
_wrapped: Final = msgspec.json.Decoder(_Wrapped).decode
_said: Final = msgspec.json.Decoder(_Said).decode


class ByKey:
    """Of a table whose key tells whose a row is: neither an update nor a delete changes or hides it."""

    def __init__(self, decoder: TableDecoder, own: tuple[int, ...], owners: Owners) -> None:
        self._decoder, self._own, self._owners = decoder, own, owners

    def __call__(self, record: Record) -> Routed:
        """Of a record with a value."""
        _, key, value = record
        assert value is not None
        place, parts = _read(_place, value), self._key(key)
        if place is not None and place.op == "t":
            return place, ALL, None
        if place is not None and place.op == "m":
            return place, NOBODY, None
        if place is not None and parts is not None:
            return place, self._owners.of_row(self._own, parts), None
        event = _event(self._decoder, record)
        row = parts if event.after is None else event.after
        if row is None:
            return event, zlib.crc32(key or b"") % self._owners.partitions, None
        return event, self._owners.of_row(self._own, row), None

    def _key(self, key: bytes | None) -> tuple[object, ...] | None:
        try:
            return self._decoder.read_key(key)
        except DecodeError:
            return None


class ByColumns:
    """Of a table whose other columns tell it: a row that may have moved goes to its owner, and to all others as a delete.

    Only REPLICA IDENTITY FULL shows where a row was before: then one that stayed is told to nobody else.
    """

    def __init__(self, decoder: TableDecoder, own: tuple[int, ...], owners: Owners) -> None:
        self._decoder, self._own, self._owners = decoder, own, owners
        names = list(decoder.wires)
        self._wires = [decoder.wires[names[i]] for i in own]
        row = msgspec.defstruct(
            "Row",
            [(f"f{i}", field_type(w) | UnsetType, msgspec.field(name=names[at], default=UNSET))
             for i, (at, w) in enumerate(zip(own, self._wires, strict=True))],
            gc=False,
        )  # fmt: skip
        place = msgspec.defstruct(
            "RowPlace", [("before", row | None, None), ("after", row | None, None)], bases=(Place,), gc=False
        )
        self._place = msgspec.json.Decoder(place).decode

    def __call__(self, record: Record) -> Routed:
        """Of a record with a value."""
        offset, key, value = record
        assert value is not None
        place = _read(self._place, value)
        if place is None:
            # whose the row is, nobody knows: each partition has it for a dead letter, and reads its own again
            return _event(self._decoder, record), ALL, None
        if place.op == "m":
            return place, NOBODY, None
        if place.op not in ("c", "u", "r") or place.after is None:
            return place, ALL, None
        told = place.op == "u" or place.source.snapshot == "incremental"
        after, before = self._values(place.after, place.op), self._values(place.before, "r")
        values = [old if new is UNSET else new for new, old in zip(after, before, strict=True)]
        if UNSET in values:
            return place, ALL, None
        # without an old image its columns come as null, as 0 or as an empty text
        stayed = values == before and all(before)
        others = (offset, key, moved(value)) if told and not stayed else None
        return place, self._owners.of_values(tuple(values)), others

    def _values(self, row: Any, op: str) -> list[Any]:
        """What tells; UNSET where the event does not say it."""
        if row is None:
            return [UNSET] * len(self._own)
        values = msgspec.structs.astuple(row)
        if op == "r":
            return list(values)
        return [
            UNSET if isinstance(value, str) and msgspec.json.encode(value) in wire.unchanged else value
            for value, wire in zip(values, self._wires, strict=True)
        ]


def _event(decoder: TableDecoder, record: Record) -> Event:
    """A record decoded whole, or as the dead letter that it is."""
    offset, key, value = record
    try:
        return decoder.decode(key, value)
    except DecodeError as error:
        return dead_letter(decoder.number, offset, key, value, error)


def moved(value: bytes) -> bytes:
    """For who does not have the row any more: an event of the same place, in which it goes."""
    said = _read(_said, value)
    assert said is not None
    return b'{"op":"d","moved":true,"source":%b,"transaction":%b}' % (bytes(said.source), bytes(said.transaction))


def _read(decode: Any, value: bytes) -> Any:
    """An envelope, with its schema around it or without; None where it is none."""
    try:
        try:
            return decode(value)
        except msgspec.MsgspecError:
            return decode(_wrapped(value).payload)
    except msgspec.MsgspecError:
        return None
