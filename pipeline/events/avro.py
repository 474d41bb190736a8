"""Avro by a schema registry, in Confluent's wire format: a zero byte, the schema's id in four, and the value."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import UNSET

from pipeline.authoring.column_types import Wire
from pipeline.errors import MalformedEnvelope, SettingsError
from pipeline.events.foreign import Envelope, Opened, operation
from pipeline.events.spellings import Reader, Told, reader

HEAD: Final = 5
"""Bytes before the value."""


@dataclass(frozen=True, slots=True)
class AvroSchema:
    """One schema of a registry, or why what is written by it can't be read."""

    parsed: Any = None
    """As fastavro reads by it: without logical types, whose values are spelled here."""
    declared: Any = None
    names: dict[str, Any] = field(default_factory=dict)
    """The named types within it."""
    wrong: str = ""

    @classmethod
    def of(cls, text: str) -> AvroSchema:
        """Read a registry's text; what is wrong with it is in `wrong`."""
        fastavro = library()
        try:
            declared = json.loads(text)
            found = cls(fastavro.parse_schema(_bare(declared)), declared)
        except (ValueError, TypeError, KeyError, fastavro.schema.SchemaParseException) as error:
            return cls(wrong=f"its schema is no Avro: {error}")
        _names(declared, "", found.names)
        return found

    def told(self, path: Sequence[str]) -> Mapping[str, Told]:
        """What it says of the columns of a record within it, or of itself where there is no path."""
        found = self._resolved(self.declared)
        for step in path:
            found = self._resolved({f["name"]: f["type"] for f in _fields(found)}.get(step))
        return {f["name"]: self._told(f["type"]) for f in _fields(found)}

    def whole(self) -> Told:
        """What it says of a value that is no record."""
        return self._told(self.declared)

    def _told(self, declared: Any) -> Told:
        kind = self._resolved(declared)
        if not isinstance(kind, Mapping):
            return Told(base=str(kind))
        name = kind.get("connect.name") or kind.get("logicalType") or kind.get("name") or ""
        items = self._told(kind["items"]) if kind.get("type") == "array" else None
        scale = kind.get("scale", (kind.get("connect.parameters") or {}).get("scale", 0 if name == "decimal" else None))
        return Told(name, str(kind.get("type")), None if scale is None else int(scale), items)

    def _resolved(self, declared: Any) -> Any:
        """The type itself: that of a name, and what a union has beside null."""
        if isinstance(declared, list):
            others = [one for one in declared if one != "null"]
            return self._resolved(others[0]) if len(others) == 1 else None
        if isinstance(declared, str):
            return self.names.get(declared, declared)
        return declared


def library() -> Any:
    """fastavro, which is an extra; raises SettingsError where it is not installed."""
    try:
        import fastavro
        import fastavro.schema
    except ImportError:
        raise SettingsError('Avro topics need fastavro: run pip install "cdc-pipeline[avro]".') from None
    return fastavro


class AvroRows:
    """The records of one table; `schemas` has those that were asked for (connectors/sources/registry.py)."""

    def __init__(
        self,
        wires: Mapping[str, Wire],
        key: Sequence[str],
        envelope: Envelope,
        schemas: Mapping[int, AvroSchema],
    ) -> None:
        self._wires, self._key, self._envelope, self._schemas = dict(wires), tuple(key), envelope, schemas
        self._plans: dict[int, list[Reader]] = {}
        self._key_plans: dict[int, list[Reader]] = {}
        self._read = library().schemaless_reader

    def open(self, data: bytes) -> Opened:
        id, body = self._body(data)
        if body is None:
            return Opened("d", None, ())
        if not isinstance(body, Mapping):
            raise MalformedEnvelope(f"schema {id} is of no record.")
        readers = self._plans.get(id)
        if readers is None:
            told = self._schemas[id].told(("after",) if self._envelope == "debezium" else ())
            readers = self._plans[id] = [reader(wire, told.get(name, Told())) for name, wire in self._wires.items()]
        if self._envelope == "flattened":
            values = [body.get(name, UNSET) for name in self._wires]
            ts_ms = _ms(body.get("__source_ts_ms")) or _ms(body.get("__ts_ms"))
            return Opened(operation(body.get("__op"), body.get("__deleted")), values, readers, ts_ms)
        if not isinstance(body.get("op"), str):
            raise MalformedEnvelope(f"schema {id} is of no Debezium envelope: is `envelope` right in the definition?")
        after, source = body.get("after"), body.get("source") or {}
        row = None if after is None else [after.get(name, UNSET) for name in self._wires]
        return Opened(body["op"], row, readers, _ms(source.get("ts_ms")))

    def key(self, data: bytes) -> Opened:
        id, body = self._body(data)
        record = isinstance(body, Mapping)
        readers = self._key_plans.get(id)
        if readers is None:
            told = self._schemas[id].told(()) if record else dict.fromkeys(self._key, self._schemas[id].whole())
            readers = [reader(self._wires[name], told.get(name, Told())) for name in self._key]
            self._key_plans[id] = readers
        return Opened("", [body.get(name, UNSET) for name in self._key] if record else [body], readers)

    def _body(self, data: bytes) -> tuple[int, Any]:
        id = schema_id(data)
        if id is None:
            raise MalformedEnvelope(
                f"no Avro in the registry's format: it begins with {data[:HEAD].hex() or 'nothing'}, not with 00 and an id."
            )
        schema = self._schemas[id]
        if schema.wrong:
            raise MalformedEnvelope(f"schema {id}: {schema.wrong}.")
        try:
            return id, self._read(io.BytesIO(memoryview(data)[HEAD:]), schema.parsed, None)
        except Exception as error:  # what fastavro raises for bytes that are not of the schema, is of many kinds
            raise MalformedEnvelope(
                f"its bytes are not as schema {id} says ({type(error).__name__}: {str(error)[:100]})."
            ) from None


def _ms(value: Any) -> int:
    return value if isinstance(value, int) else 0


def schema_id(data: bytes) -> int | None:
    """The schema by which a record's key or value is written; None where it does not say."""
    return int.from_bytes(data[1:HEAD], "big") if len(data) >= HEAD and data[0] == 0 else None


def schema_ids(records: Iterable[tuple[int, bytes | None, bytes | None]]) -> set[int]:
    """All that these records (offset, key, value) name."""
    heads = {data[:HEAD] for _, *both in records for data in both if data is not None}
    return {id for head in heads if (id := schema_id(head)) is not None}


def _bare(declared: Any) -> Any:
    """A schema without logical types."""
    if isinstance(declared, list):
        return [_bare(one) for one in declared]
    if not isinstance(declared, Mapping):
        return declared
    kept = {name: value for name, value in declared.items() if name not in ("logicalType", "default")}
    for name in ("type", "items", "values"):
        if name in kept:
            kept[name] = _bare(kept[name])
    if "fields" in kept:
        kept["fields"] = [_bare(one) for one in kept["fields"]]
    return kept


def _fields(declared: Any) -> Sequence[Any]:
    return declared.get("fields", ()) if isinstance(declared, Mapping) else ()


def _names(declared: Any, space: str, found: dict[str, Any]) -> None:
    """Every named type, by its name and its full name."""
    if isinstance(declared, list):
        for one in declared:
            _names(one, space, found)
    if not isinstance(declared, Mapping):
        return
    if "name" in declared and declared.get("type") in ("record", "enum", "fixed"):
        space = declared.get("namespace", space)
        name = str(declared["name"])
        found[name] = found[f"{space}.{name}" if space and "." not in name else name] = declared
    for inner in (declared.get("items"), declared.get("values"), declared.get("type")):
        _names(inner, space, found)
    for one in _fields(declared):
        _names(one["type"], space, found)


__all__ = ["AvroRows", "AvroSchema", "library", "schema_id", "schema_ids"]
