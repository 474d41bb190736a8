"""Column types: which kinds of field can hold a source column's values, and how those come in the events."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from pipeline.authoring.catalog import UNREADABLE, Column
from pipeline.authoring.shape import FieldShape, Kind

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
    # MariaDB's own names
    "tinyint": ("int", "float"),
    "mediumint": ("int", "float"),
    "int": ("int", "float"),
    "bigint unsigned": ("int",),
    "year": ("int",),
    "decimal": ("decimal", "text"),
    "float": ("float",),
    "double": ("float",),
    "datetime": ("datetime", "text"),
    "timestamp": ("datetime", "text"),
    "time": ("time", "text"),
    **dict.fromkeys(("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"), ("bytes", "text")),
}
_BYTES = ("pg_lsn", "xid8", "regclass", "jsonpath", "tsquery")
WRITTEN: dict[Kind, str] = {
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
        item = WRITTEN[self.kinds[0]]
        written = f"tuple[{item}, ...]" if self.repeated else item
        return f"{written} | None" if nullable and written != "Any" else written

    def said(self) -> str:
        """The types in words, `Decimal or str`."""
        names = [f"tuple[{WRITTEN[kind]}, ...]" if self.repeated else WRITTEN[kind] for kind in self.kinds]
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
    if base == UNREADABLE:
        return ColumnKinds(())
    if base is not None:
        return kinds_of(Column(name=column.name, type=base))
    return ColumnKinds(_kinds(name, column.type))


def _kinds(name: str, whole: str) -> tuple[Kind, ...]:
    if name == "bit":
        return ("bool",) if whole in ("bit", "bit(1)") else ("bytes", "text")
    if name in _BYTES:
        return ("bytes", "text")
    if whole == "tinyint(1)":  # MariaDB's BOOLEAN
        return ("bool", "int")
    return _KINDS.get(name, ("text",))


def _plain(written: str) -> str:
    """`numeric(12,2)` → `numeric`, `timestamp(3) with time zone` → `timestamp with time zone`."""
    name = re.sub(r"\([^)]*\)| zerofill", "", written)
    if name.endswith(" unsigned") and name != "bigint unsigned":
        name = name.removesuffix(" unsigned")
    return "interval" if name.startswith("interval ") else name


# ---- in the events ----------------------------------------------------------------------------------------

WireKind = Kind | Literal["timestamp", "timetz", "jsonb", "instant", "zoned", "flag", "unsigned", "single"]
"""A kind, told apart further: `datetime` is in UTC and `timestamp` has no zone, `jsonb` is JSON in one line. MariaDB's:
`instant` is a `datetime` with any number of zeros at its end, `zoned` one that may be the zero date, `flag` a number or a truth, `unsigned` an integer in base64, `single` a
float of six digits."""

PLACEHOLDER: Final = b"__debezium_unavailable_value"
"""Debezium's word for "the source did not send this column" (TOAST)."""
_TEXT: Final = b'"%b"' % PLACEHOLDER
_BYTES64: Final = b'"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="'
_HSTORE: Final = rb'"{\"%b\":\"%b\"}"' % (PLACEHOLDER, PLACEHOLDER)
_ITEMS: Final = {
    **dict.fromkeys(("text", "character varying", "json", "jsonb"), b"[%b]" % _TEXT),
    **dict.fromkeys(("integer", "bigint"), b"[%b]" % ",".join(map(str, PLACEHOLDER)).encode()),
    "bytea": b"[%b]" % _BYTES64,
    "uuid": b'["b68a35a7-17ad-35b3-af2a-ae46edb4545a"]',
}
_TEXTS: Final = ("text", "character varying", "character", "citext", "xml", "tsvector")
_NAMED: Final = ("enum", "range", "multirange", "composite")


@dataclass(frozen=True, slots=True)
class Wire:
    """How a column's values come in events; `unchanged` are the JSON tokens that stand for UNCHANGED."""

    kind: WireKind | None
    """None: not known, a join column without a catalog."""
    array: bool = False
    unchanged: tuple[bytes, ...] = ()


def wire_of(column: Column) -> Wire:
    """How this column's values come in events."""
    written = column.type if column.base is None or column.base in _NAMED else column.base
    array, item = written.endswith("[]"), _plain(written.rstrip("[]"))
    kinds: dict[str, WireKind] = {
        "timestamp without time zone": "timestamp",
        "time with time zone": "timetz",
        "jsonb": "jsonb",
        "hstore": "jsonb",
        "datetime": "timestamp",
        "timestamp": "zoned" if column.nullable else "instant",
        "bigint unsigned": "unsigned",
        "float": "single",
    }
    if column.base == UNREADABLE:
        return Wire(None, array)
    kind = "flag" if written == "tinyint(1)" else kinds.get(item) or kinds_of(column).kinds[0]
    if not column.toastable:
        return Wire(kind, array)
    if array:
        token = _ITEMS.get(item)
        return Wire(kind, array, (token,) if token else ())
    if column.base in _NAMED or item not in (*_TEXTS, *_KINDS):
        return Wire(kind, array, (_TEXT, _BYTES64))
    return Wire(kind, array, (_HSTORE if item == "hstore" else _BYTES64 if kind == "bytes" else _TEXT,))


def spelling(column: Column) -> str:
    """Two columns of one kind, but of another spelling, may write equal values as different texts: 1.1 and 1.10."""
    written = column.type if column.base is None or column.base in _NAMED else column.base
    kind = wire_of(column).kind
    padded = kind == "text" and _plain(written) == "character"
    if kind in ("flag", "unsigned"):
        return "int"
    return (
        written if padded or kind in ("decimal", "datetime", "timestamp", "timetz", "instant", "zoned") else str(kind)
    )


def declared_wire(field: FieldShape | None) -> Wire:
    """The same where there is no catalog, by what a field declares (None: no field has the column)."""
    if field is None:
        return Wire(None, False, (_TEXT,))
    if field.repeated:
        return Wire(field.kind, True, (_TEXT, _HSTORE, *dict.fromkeys(_ITEMS.values())))
    unchanged: dict[Kind, tuple[bytes, ...]] = {
        "text": (_TEXT,),
        "decimal": (_TEXT,),
        "bytes": (_BYTES64,),
        "json": (_TEXT, _HSTORE, *dict.fromkeys(_ITEMS.values())),
    }
    return Wire(field.kind, False, unchanged.get(field.kind, ()))
