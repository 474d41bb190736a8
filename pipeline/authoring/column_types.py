"""Column types: which kinds of field can hold the values of a source column, as they come in the events."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.authoring.catalog import Column
from pipeline.authoring.shape import Kind

_KINDS: dict[str, tuple[Kind, ...]] = {
    "smallint": ("int", "float"),
    "integer": ("int", "float"),
    "bigint": ("int",),
    "oid": ("int",),
    "numeric": ("decimal", "text"),
    "money": ("decimal", "text"),
    "real": ("float",),
    "double precision": ("float",),
    "boolean": ("bool",),
    "timestamp with time zone": ("datetime", "text"),
    "timestamp without time zone": ("datetime", "text"),
    "date": ("date", "text"),
    "time without time zone": ("time", "text"),
    "time with time zone": ("time", "text"),
    "interval": ("interval", "text"),
    "uuid": ("uuid", "text"),
    "json": ("json", "text"),
    "jsonb": ("json", "text"),
    "hstore": ("json", "text"),
    "bytea": ("bytes", "text"),
    "bit varying": ("bytes", "text"),
    "point": ("json",),
    "line": ("json",),
    "lseg": ("json",),
    "box": ("json",),
    "path": ("json",),
    "polygon": ("json",),
    "circle": ("json",),
}
_BYTES = ("pg_lsn", "xid8", "regclass", "jsonpath", "tsquery")
_WRITTEN: dict[Kind, str] = {
    "int": "int",
    "decimal": "Decimal",
    "float": "float",
    "bool": "bool",
    "text": "str",
    "datetime": "datetime",
    "date": "date",
    "time": "time",
    "interval": "timedelta",
    "uuid": "UUID",
    "bytes": "bytes",
    "json": "Any",
}


@dataclass(frozen=True, slots=True)
class ColumnKinds:
    """The kinds a field may have, the most natural first; `repeated` where the column is an array."""

    kinds: tuple[Kind, ...]
    repeated: bool = False

    def allows(self, kind: Kind, repeated: bool) -> bool:
        if self.repeated:
            return (repeated and kind in (*self.kinds, "json")) or (not repeated and kind == "json")
        return (not repeated and kind in self.kinds) or (repeated and "json" in self.kinds)

    def annotation(self, *, nullable: bool) -> str:
        """The natural type as an author writes it."""
        item = _WRITTEN[self.kinds[0]]
        written = f"tuple[{item}, ...]" if self.repeated else item
        return f"{written} | None" if nullable and written != "Any" else written

    def said(self) -> str:
        """The types in words, `Decimal or str`."""
        names = [f"tuple[{_WRITTEN[kind]}, ...]" if self.repeated else _WRITTEN[kind] for kind in self.kinds]
        if self.repeated:
            names.append("Any")
        return " or ".join(names)


def kinds_of(column: Column) -> ColumnKinds:
    """What a field may be that copies this column."""
    name = _plain(column.type)
    if name.endswith("[]"):
        return ColumnKinds(_kinds(name.rstrip("[]"), column.type.rstrip("[]")), repeated=True)
    base = column.base
    if base in ("enum", "range", "multirange"):
        return ColumnKinds(("text",))
    if base == "composite":
        return ColumnKinds(("bytes", "text"))
    if base is not None:
        return kinds_of(Column(name=column.name, type=base))
    return ColumnKinds(_kinds(name, column.type))


def _kinds(name: str, whole: str) -> tuple[Kind, ...]:
    if name == "bit":
        return ("bool",) if whole in ("bit", "bit(1)") else ("bytes", "text")
    if name in _BYTES:
        return ("bytes", "text")
    return _KINDS.get(name, ("text",))


def _plain(written: str) -> str:
    """`numeric(12,2)` → `numeric`, `timestamp(3) with time zone` → `timestamp with time zone`."""
    name = re.sub(r"\([^)]*\)", "", written)
    return "interval" if name.startswith("interval ") else name
