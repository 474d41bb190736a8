"""Reads what the Postgres sink wrote, from the table that readers see through the view."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import psycopg

from connectors.sinks.postgres import RECORD, plain_id, stored_id
from connectors.sinks.postgres_client import Connections
from connectors.sinks.postgres_tables import SEEN, TYPES, Tables, literal, quoted
from pipeline.authoring.leaves import Leaf
from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Kind, Shape
from pipeline.errors import QueryRefused, TargetMissing
from pipeline.ports import Condition, Found, Group, Measure, Order, Page, Query, SinkRecord

CONNECTIONS = 8
OPERATORS: Final = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
# One value has one text, so that the text is compared and an index of it is used.
EXACT: Final[tuple[Kind, ...]] = ("int", "text", "uuid", "bool", "date", "time")
NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$"
# The SQL type of what is compared, and which texts can be cast: NaN, infinity and a year before Christ are no value here.
CAST: Final[dict[Kind, tuple[str, str]]] = {
    "int": ("numeric", NUMBER),
    "decimal": ("numeric", NUMBER),
    "float": ("numeric", NUMBER),
    "bool": ("boolean", "^(true|false)$"),
    "datetime": ("timestamptz", "^[0-9]*[1-9][0-9]*-"),
    "date": ("date", "^[0-9]*[1-9][0-9]*-"),
    "time": ("time", "^[0-9]"),
}
# More words than that are not looked at: Postgres refuses to.
TEXT_LENGTH = 250_000
# As documents spell it; the session's zone is UTC.
TIME = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'
ITEM = "(i #>> '{}')"


class PostgresReader:
    """Reads one view's table; what it says is of one moment."""

    def __init__(self, *, dsn: str, target: Target, shape: Shape, request_timeout: float) -> None:
        self._tables = Tables(target.name, "reader-v0", shape, target.options)
        self._typed = {member.name for member in self._tables.columns}
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._connections = Connections(dsn, self.name, timeout=request_timeout, setup=("SET TimeZone = 'UTC'",))

    @property
    def name(self) -> str:
        return f"postgres:{self._tables.schema}.{self._tables.view_name}"

    def version(self, projection: str) -> str:
        return replace(self._tables, projection=projection).table_name

    async def seen(self) -> str:
        found = await self._run(SEEN, (self._tables.view,))
        if len(found) != 1:
            raise TargetMissing(f"{self.name}: there is no such view: run `cdc apply`.")
        return str(found[0][0])

    async def record(self, version: str) -> SinkRecord | None:
        found = await self._run(f"SELECT {RECORD} FROM {self._tables.checkpoints} WHERE target = %s", (version,))
        return SinkRecord(*found[0]) if found else None

    async def get(self, version: str, ids: Sequence[str]) -> Mapping[str, Found]:
        query = (
            f"SELECT _id, _revision, document::text FROM {self._table(version)} WHERE _id = ANY(%s) AND NOT _deleted"
        )
        found = await self._run(query, ([stored_id(id) for id in ids],))
        return {plain_id(id): Found(revision, document.encode()) for id, revision, document in found}

    async def search(self, version: str, query: Query) -> Page:
        sql = _Statement()
        terms = [(*self._ordered(one, query, sql), one.descending or one.leaf is None) for one in query.order]
        where = self._where(query, sql)
        if query.after is not None:
            where += f" AND {_behind(terms, query.after, sql)}"
        order = "".join(f"{term}{' DESC' if falls else ''} NULLS LAST, " for term, _, falls in terms)
        shown = "".join(f", ({term})::text" for term, _, _ in terms)
        found = await self._run(
            f"SELECT document::text{shown}, _id FROM {self._table(version)} WHERE {where} ORDER BY {order}_id"
            f" LIMIT {query.limit + 1}",
            sql.values,
        )
        documents = [row[0].encode() for row in found[: query.limit]]
        return Page(documents, tuple(found[query.limit - 1][1:]) if len(found) > query.limit else None)

    async def count(self, version: str, query: Query) -> int:
        sql = _Statement()
        where = self._where(query, sql)
        return int((await self._run(f"SELECT count(*) FROM {self._table(version)} WHERE {where}", sql.values))[0][0])

    async def groups(
        self, version: str, query: Query, by: Leaf | None, limit: int, measures: Sequence[Measure] = ()
    ) -> Sequence[Group]:
        sql = _Statement()
        shown = "".join(f", {self._measured(measure)}" for measure in measures)
        rows, where = self._table(version), self._where(query, sql)
        if by is None:
            statement = f"SELECT NULL, count(*){shown} FROM {rows} WHERE {where}"
        else:
            value = f"SELECT DISTINCT nullif(i, 'null') AS v FROM {self._items(by)} i"
            statement = (
                f"SELECT v, count(*){shown} FROM {rows} LEFT JOIN LATERAL ({value}) s ON true"
                f' WHERE {where} GROUP BY v ORDER BY 2 DESC, v::text COLLATE "C" LIMIT {limit}'
            )
        return [
            Group(value, int(count), tuple(map(_result, measures, texts)))
            for value, count, *texts in await self._run(statement, sql.values)
        ]

    def _measured(self, measure: Measure) -> str:
        """The result as text; what is no number or time is left out."""
        leaf = measure.leaf
        found = f"{measure.function}({self._value(leaf)}) FILTER (WHERE true{self._finite(leaf)})"
        return f"to_char({found}, '{TIME}')" if leaf.kind == "datetime" else f"({found})::text"

    async def refresh(self, version: str) -> None:
        """What is committed is found."""

    async def close(self) -> None:
        await self._connections.close()

    def _table(self, version: str) -> str:
        return quoted(self._tables.schema, version)

    def _where(self, query: Query, sql: _Statement) -> str:
        parts = ["NOT _deleted", *(self._condition(one, sql) for one in query.conditions)]
        if query.text:
            parts.append(f"{self._words(query)} @@ plainto_tsquery('simple', {sql.add(query.text)})")
        return " AND ".join(parts)

    def _words(self, query: Query) -> str:
        texts = [
            f"(SELECT string_agg({ITEM}, ' ') FROM {self._items(leaf)} i)" if leaf.several else _text(leaf)
            for leaf in query.texts
        ]
        return f"to_tsvector('simple', left(concat_ws(' ', {', '.join(texts)}), {TEXT_LENGTH}))"

    def _condition(self, condition: Condition, sql: _Statement) -> str:
        leaf, operator = condition.leaf, condition.operator
        if operator == "null":
            there = f"EXISTS (SELECT FROM {self._items(leaf)} i WHERE i <> 'null')"
            return f"NOT {there}" if condition.values[0] else there
        exact = operator == "eq" and leaf.kind in EXACT and leaf.name not in self._typed
        if exact and leaf.several:
            wanted = [json.dumps(_nested(leaf, value)) for value in condition.values]
            return f"{self._root(leaf)} @> ANY({sql.add(wanted)}::jsonb[])"
        if exact:
            return f"{_text(leaf)} = ANY({sql.add([_spelled(value) for value in condition.values])}::text[])"
        values, type = [_spelled(value) for value in condition.values], self._compared(leaf)
        right = f"{OPERATORS[operator]} {sql.add(values[0])}::{type}" if operator != "eq" else (
            f"= ANY({sql.add(values)}::text[]::{type}[])"
        )  # fmt: skip
        if leaf.several:
            return f"EXISTS (SELECT FROM {self._items(leaf)} i WHERE {_cast(leaf, ITEM)} {right})"
        return f"{self._value(leaf)} {right}" + (self._finite(leaf) if operator != "eq" else "")

    def _ordered(self, order: Order, query: Query, sql: _Statement) -> tuple[str, str]:
        """What documents are put in order by, and its type."""
        if order.leaf is None:
            return f"ts_rank({self._words(query)}, plainto_tsquery('simple', {sql.add(query.text)}))::float8", "float8"
        return self._value(order.leaf), self._compared(order.leaf)

    def _value(self, leaf: Leaf) -> str:
        """A single value, as its kind is compared."""
        if leaf.name not in self._typed:
            return _cast(leaf, _text(leaf))
        return quoted(leaf.name) + (' COLLATE "C"' if TYPES[leaf.kind] == "text" else "")

    def _compared(self, leaf: Leaf) -> str:
        """The SQL type that its values are compared as."""
        return TYPES[leaf.kind] if leaf.name in self._typed else CAST.get(leaf.kind, ("text", ""))[0]

    def _finite(self, leaf: Leaf) -> str:
        """A typed column has NaN and infinities, which are less and greater than nothing here."""
        column = quoted(leaf.name)
        if leaf.name not in self._typed or leaf.kind not in ("decimal", "float", "datetime", "date"):
            return ""
        if leaf.kind in ("datetime", "date"):
            return f" AND isfinite({column})"
        return f" AND {column} > '-Infinity' AND {column} < 'Infinity'"

    def _root(self, leaf: Leaf) -> str:
        """The member of the document that the leaf is in; an index is of it."""
        return (
            quoted(leaf.path[0]) if leaf.path[0] in self._typed else f"document #> {literal('{' + leaf.path[0] + '}')}"
        )

    def _items(self, leaf: Leaf) -> str:
        """All values that a document has at the leaf."""
        steps = (
            f".{json.dumps(name)}{'[*]' if many else ''}" for name, many in zip(leaf.path, leaf.lists, strict=True)
        )
        return f"jsonb_path_query(document, {literal('$' + ''.join(steps))})"

    async def _run(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
        async with self._slots, self._connections.use() as db:
            try:
                return await self._connections.run(db, query, values)
            except (psycopg.errors.DataError, psycopg.errors.ProgramLimitExceeded) as error:
                refused = QueryRefused(f"{self.name} refuses: {type(error).__name__}.")
        raise refused


class _Statement:
    """The values of a statement's parameters."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def add(self, value: Any) -> str:
        """The place that stands for the value."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"%({name})s"


def _behind(terms: Sequence[tuple[str, str, bool]], after: Sequence[Any], sql: _Statement) -> str:
    """What comes behind a place of the order; the key is last in it."""
    if len(after) != len(terms) + 1 or not all(isinstance(value, str | None) for value in after) or after[-1] is None:
        raise QueryRefused("The cursor is of another order.")
    condition = f"_id > {sql.add(after[-1])}"
    for (term, type, falls), value in reversed(list(zip(terms, after[:-1], strict=True))):
        if value is None:
            condition = f"({term} IS NULL AND {condition})"
            continue
        place = f"{sql.add(value)}::{type}"
        condition = f"({term} IS NULL OR {term} {'<' if falls else '>'} {place} OR ({term} = {place} AND {condition}))"
    return condition


def _cast(leaf: Leaf, text: str) -> str:
    """The text of a value as its kind is compared, NULL where it is none."""
    if leaf.kind not in CAST:
        return f'{text} COLLATE "C"'
    type, castable = CAST[leaf.kind]
    return f"CASE WHEN {text} ~ {literal(castable)} THEN ({text})::{type} END"


def _text(leaf: Leaf) -> str:
    """As the index that an author declares has it."""
    return f"(document #>> {literal('{' + ','.join(leaf.path) + '}')})"


def _spelled(value: Any) -> str:
    """A value as documents spell it."""
    return value if isinstance(value, str) else f"{value:f}" if isinstance(value, Decimal) else json.dumps(value)


def _nested(leaf: Leaf, value: Any) -> Any:
    """What contains the value as the document's first member does."""
    for name, many in reversed(list(zip((*leaf.path[1:], None), leaf.lists, strict=True))):
        value = value if name is None else {name: value}
        value = [value] if many else value
    return value


def _result(measure: Measure, text: str | None) -> Any:
    """A result as documents spell it."""
    kind = measure.leaf.kind
    if text is None or kind in ("decimal", "date"):
        return text
    if kind == "datetime":
        return text.replace(".000000Z", "Z")
    return int(Decimal(text)) if kind == "int" and measure.function != "avg" else float(text)
