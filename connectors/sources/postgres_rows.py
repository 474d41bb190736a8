"""Rows read from Postgres, with their values written as Debezium writes them in events.

Bit strings, geometric and system types, and times beyond the year 9999 stay as Postgres writes them.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
from psycopg import sql

from connectors.sources.masks import in_sql, salted
from connectors.sources.postgres import connected
from pipeline.authoring.catalog import Column, Table

_STAMP = 'CASE WHEN isfinite({0}) THEN to_char({0}{1}, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\') ELSE {0}::text END'
_EXPRESSIONS = {
    "timestamp with time zone": _STAMP.replace("{1}", " AT TIME ZONE 'UTC'"),
    "timestamp without time zone": r"regexp_replace("
    + _STAMP.replace("{1}", "")
    + r", '(\.[0-9]*[1-9])?\.?0*Z$', '\1Z')",
    "date": "CASE WHEN isfinite({0}) THEN {0}::text || 'Z' ELSE {0}::text END",
    "numeric": (
        "CASE {0}::text WHEN 'NaN' THEN 'NAN' WHEN 'Infinity' THEN 'POSITIVE_INFINITY'"
        " WHEN '-Infinity' THEN 'NEGATIVE_INFINITY' ELSE {0}::text END"
    ),
    "time without time zone": "{0}::text || 'Z'",
    "time with time zone": "({0} AT TIME ZONE 'UTC')::time::text || 'Z'",
    "interval": (
        "CASE WHEN {0} IS NOT NULL THEN format('P%%sY%%sM%%sDT%%sH%%sM%%sS', extract(year FROM {0}), extract(month FROM {0}), extract(day FROM {0}),"
        " extract(hour FROM {0}), extract(minute FROM {0}), trim_scale(extract(second FROM {0}))) END"
    ),
    "money": "{0}::numeric::text",
    "bytea": "translate(encode({0}, 'base64'), E'\\n', '')",
    "hstore": "hstore_to_json({0})::text",
    "bit": "{0} = B'1'",
}
_AS_THEY_ARE = frozenset(
    {"smallint", "integer", "bigint", "oid", "boolean", "real", "double precision", "character", "inet"}
)
_BASE64 = frozenset({"tsquery", "pg_lsn", "xid8", "regclass", "jsonpath"})
_SPELLED = {
    "oid": "{0}::bigint",
    "interval": _EXPRESSIONS["interval"]
    .replace("%%", "%")
    .replace(" THEN", " AND isfinite({0}) THEN", 1)
    .removesuffix("END")
    + "WHEN {0} IS NOT NULL THEN 'P0Y0M0DT0H0M0S' END",
    "hstore": (
        "CASE WHEN {0} IS NOT NULL THEN '{{' || coalesce((SELECT string_agg(to_json(key)::text || ':' ||"
        " coalesce(to_json(value)::text, 'null'), ',') FROM each({0})), '') || '}}' END"
    ),
}
_TIMES = frozenset({"timestamp with time zone", "timestamp without time zone", "date"})
_ARRAYS = frozenset(f"{name}[]" for name in (*_AS_THEY_ARE, *_EXPRESSIONS, "json", "jsonb"))


class Rows:
    """Reads rows of one state of the source."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection

    def first(self, table: Table, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """The first rows in the order of the primary key."""
        query = sql.SQL("{} ORDER BY {} LIMIT {}").format(
            self._select(table, columns), _listed(table.primary_key or columns[:1]), sql.Literal(limit)
        )
        return self._read(query, ())

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        """The rows whose `match` columns have one of these values."""
        # a type's name comes from the catalog, where Postgres itself has quoted it
        arrays = [sql.SQL("%s::text[]::{}[]").format(sql.SQL(table.column(name).type)) for name in match]
        query = sql.SQL("{} WHERE ({}) IN (SELECT * FROM unnest({}))").format(
            self._select(table, columns), _listed(match), sql.SQL(", ").join(arrays)
        )
        return self._read(query, tuple([_parameter(row[i]) for row in values] for i in range(len(match))))

    def _select(self, table: Table, columns: Sequence[str]) -> sql.Composable:
        schema, _, name = table.name.partition(".")
        salted(self._connection, map(table.column, columns))
        wanted = [
            sql.SQL("{} AS {}").format(written(table.column(column), sql.Identifier(column)), sql.Identifier(column))
            for column in columns
        ]
        return sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(wanted), sql.Identifier(schema, name))

    def _read(self, query: sql.Composed, parameters: Sequence[Any]) -> list[dict[str, Any]]:
        found = self._connection.execute(query, parameters).fetchall()
        return [{name: _wire(value) for name, value in row.items()} for row in found]


@contextmanager
def open_rows(dsn: str) -> Iterator[Rows]:
    """A reader whose every answer is from the same moment."""
    with connected(dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield Rows(connection)


def written(column: Column, name: sql.Composable) -> sql.Composable:
    """The SQL expression of a column's value in an event; `name` is the column in its query.

    Where a column is hashed, the session needs the salt: `masks.salted`.
    """
    return in_sql(column, _clear(column, name))


def _clear(column: Column, name: sql.Composable) -> sql.Composable:
    named = ("enum", "composite", "range", "multirange")
    kind = plain(column.base if column.base and column.base not in named else column.type)
    if kind.endswith("[]"):
        return name if kind in _ARRAYS else sql.SQL("{0}::text[]").format(name)
    if kind in _AS_THEY_ARE:
        return name
    own = column.base in ("composite", "multirange") or (column.base == "range" and "." in column.type)
    if own or kind in _BASE64:
        text = sql.SQL("translate(encode(convert_to({0}::text, 'UTF8'), 'base64'), E'\\n', '')")
        return text.format(name)
    return sql.SQL(_EXPRESSIONS.get(kind, "{0}::text")).format(name)


def spelled(column: Column, name: sql.Composable) -> sql.Composable:
    """As `written`, and to the letter: years beyond four digits, decimals by the type's precision, items of arrays."""
    own = (
        column.base if column.base and column.base not in ("enum", "composite", "range", "multirange") else column.type
    )
    kind = plain(own)
    item = kind.removesuffix("[]")
    if item in _TIMES:
        return _by_item(kind, name, partial(_time, own.removesuffix("[]")))
    if item in _SPELLED or (kind != item and item in (*_EXPRESSIONS, "json", "jsonb")):
        return _by_item(kind, name, sql.SQL(_SPELLED.get(item) or _EXPRESSIONS.get(item, "{0}::text")).format)
    return written(column, name)


def _by_item(kind: str, name: sql.Composable, write: Callable[[sql.Composable], sql.Composable]) -> sql.Composable:
    if not kind.endswith("[]"):
        return write(name)
    return sql.SQL(
        "CASE WHEN {0} IS NOT NULL THEN ARRAY(SELECT {1} FROM unnest({0}) WITH ORDINALITY item(value, place) ORDER BY place) END"
    ).format(name, write(sql.SQL("item.value")))


def _time(type: str, name: sql.Composable) -> sql.Composable:
    """Years as ISO 8601 has them, before Christ and beyond 9999 too; a time without zeros at its end, but for that of a
    zone, which has as many decimals as its type."""
    kind = plain(type)
    at = sql.SQL("({} AT TIME ZONE 'UTC')" if kind == "timestamp with time zone" else "{}").format(name)
    decimals = int(found[1]) if (found := re.search(r"\((\d)\)", type)) else 6
    text, clock = "to_char({0}, {1})", f'"T"HH24:MI:SS{f".FF{decimals}" if decimals else ""}'
    if kind == "date":  # which has more years than to_char knows
        text, clock = "to_char(make_date(2000, extract(month FROM {0})::int, extract(day FROM {0})::int), {1})", ""
    elif kind == "timestamp without time zone" and decimals:
        text = "rtrim(rtrim(to_char({0}, {1}), '0'), '.')"
    return sql.SQL(
        "CASE WHEN NOT isfinite({2}) THEN {2}::text ELSE CASE WHEN extract(year FROM {0}) BETWEEN 1 AND 9999"
        " THEN lpad(extract(year FROM {0})::text, 4, '0') WHEN extract(year FROM {0}) > 9999 THEN '+' || extract(year FROM {0})"
        " WHEN extract(year FROM {0}) = -1 THEN '0000' ELSE '-' || lpad((-extract(year FROM {0}) - 1)::text, 4, '0') END"
        " || " + text + " || 'Z' END"
    ).format(at, sql.Literal(f"-MM-DD{clock}"), name)


def plain(written: str) -> str:
    """A type's name without its modifiers: `timestamp(3) without time zone` is `timestamp without time zone`."""
    if written.startswith("interval"):
        return "interval[]" if written.endswith("[]") else "interval"
    if written in ("bit", "bit(1)"):
        return "bit"
    head, opened, rest = written.partition("(")
    name = head + rest.partition(")")[2] if opened else written
    return "text" if name == "bit" else name


def _parameter(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else str(value)


def _listed(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _wire(value: Any) -> Any:
    """A value as JSON has it; only arrays come here as Python's own."""
    if isinstance(value, list):
        return [_wire(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return _item(value)


def _item(value: Any) -> str:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat() + "Z"
    if isinstance(value, (date, time)):
        return value.isoformat() + "Z"
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else str(value)
    return str(value) if not isinstance(value, timedelta) else f"PT{value.total_seconds()}S"
