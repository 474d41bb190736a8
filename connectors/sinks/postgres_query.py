"""The SQL of a query over a version's tables: leaves are in the document, in a typed column, or in the table of a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from connectors.sinks.postgres_children import VALUE
from connectors.sinks.postgres_columns import TYPES, literal, quoted
from connectors.sinks.postgres_layout import Layout, ListTable
from pipeline.authoring.leaves import Leaf
from pipeline.authoring.shape import Kind
from pipeline.errors import QueryRefused
from pipeline.ports import Condition, Measure, Order, Query

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


class Statement:
    """The clauses of one statement over a version's table, called `t` in it, and the values of its parameters."""

    def __init__(self, layout: Layout) -> None:
        self.values: dict[str, Any] = {}
        self._level = _Level("document", layout.typed)
        self._schema, self._lists = layout.schema, {own.name: own for own in layout.lists}

    def add(self, value: Any) -> str:
        """The place that stands for the value."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"%({name})s"

    def where(self, query: Query) -> str:
        parts = ["NOT _deleted", *(self._condition(one) for one in query.conditions)]
        if query.text:
            parts.append(f"{self._words(query)} @@ plainto_tsquery('simple', {self.add(query.text)})")
        return " AND ".join(parts)

    def ordered(self, order: Order, query: Query) -> tuple[str, str]:
        """What documents are put in order by, and its type."""
        if order.leaf is None:
            return f"ts_rank({self._words(query)}, plainto_tsquery('simple', {self.add(query.text)}))::float8", "float8"
        return self._level.sortable(order.leaf), self._level.compared(order.leaf)

    def measured(self, measure: Measure) -> str:
        """The result as text; what is no number or time is left out."""
        leaf = measure.leaf
        found = f"{measure.function}({self._level.sortable(leaf)}) FILTER (WHERE true{self._level.finite(leaf)})"
        return f"to_char({found}, '{TIME}')" if leaf.kind == "datetime" else f"({found})::text"

    def items(self, leaf: Leaf) -> str:
        """All values that a document has at the leaf, as rows of `i`."""
        if (own := self._lists.get(leaf.path[0])) is None:
            return f"{self._level.items(leaf.path, leaf.lists)} i"
        values = _Level("c._item").items(leaf.path[1:], leaf.lists[1:])
        return f"(SELECT {values} AS i FROM {self._table(own)} c WHERE c._id = t._id) i"

    def behind(self, terms: Sequence[tuple[str, str, bool]], after: Sequence[Any]) -> str:
        """What comes behind a place of the order; the key is last in it."""
        if len(after) != len(terms) + 1 or not all(isinstance(v, str | None) for v in after) or after[-1] is None:
            raise QueryRefused("The cursor is of another order.")
        condition = f"_id > {self.add(after[-1])}"
        for (term, type, falls), value in reversed(list(zip(terms, after[:-1], strict=True))):
            if value is None:
                condition = f"({term} IS NULL AND {condition})"
                continue
            place, sign = f"{self.add(value)}::{type}", "<" if falls else ">"
            condition = f"({term} IS NULL OR {term} {sign} {place} OR ({term} = {place} AND {condition}))"
        return condition

    def _words(self, query: Query) -> str:
        texts = [
            f"(SELECT string_agg({ITEM}, ' ') FROM {self.items(leaf)})" if leaf.several else self._level.text(leaf)
            for leaf in query.texts
        ]
        return f"to_tsvector('simple', left(concat_ws(' ', {', '.join(texts)}), {TEXT_LENGTH}))"

    def _condition(self, condition: Condition) -> str:
        leaf = condition.leaf
        if condition.operator == "null":
            there = f"EXISTS (SELECT FROM {self.items(leaf)} WHERE i <> 'null')"
            return f"NOT {there}" if condition.values[0] else there
        if (own := self._lists.get(leaf.path[0])) is None:
            return self._compares(self._level, leaf, condition)
        level = _Level("c._item", frozenset(own.columns), "c.")
        if leaf.path[1:]:
            inside = replace(leaf, path=leaf.path[1:], lists=leaf.lists[1:])
        else:
            inside = replace(leaf, path=(VALUE,), lists=(False,))
        compares = self._compares(level, inside, condition)
        return f"EXISTS (SELECT FROM {self._table(own)} c WHERE c._id = t._id AND {compares})"

    def _compares(self, level: _Level, leaf: Leaf, condition: Condition) -> str:
        operator, spelled = condition.operator, [_spelled(value) for value in condition.values]
        exact = operator == "eq" and leaf.kind in EXACT and (leaf.several or not level.has(leaf))
        if exact and leaf.several:
            wanted = [json.dumps(_nested(leaf, value)) for value in condition.values]
            return f"{level.root(leaf)} @> ANY({self.add(wanted)}::jsonb[])"
        if exact:
            return f"{level.text(leaf)} = ANY({self.add(spelled)}::text[])"
        type = level.compared(leaf)
        right = f"{OPERATORS[operator]} {self.add(spelled[0])}::{type}" if operator != "eq" else (
            f"= ANY({self.add(spelled)}::text[]::{type}[])"
        )  # fmt: skip
        if leaf.several:
            items = level.items(leaf.path, leaf.lists)
            return f"EXISTS (SELECT FROM {items} i WHERE {_cast(leaf, ITEM)} {right})"
        if operator == "eq":
            return f"{level.value(leaf)} {right}"
        return f"{level.sortable(leaf)} {right}{level.finite(leaf)}"

    def _table(self, own: ListTable) -> str:
        return quoted(self._schema, own.table_name)


@dataclass(frozen=True, slots=True)
class _Level:
    """A level's values: in the object `json`, and in typed columns of the same row."""

    json: str
    columns: frozenset[str] = frozenset()
    row: str = ""

    def has(self, leaf: Leaf) -> bool:
        """Whether the leaf has a typed column."""
        return leaf.name in self.columns

    def value(self, leaf: Leaf) -> str:
        """A single value, as its kind is compared."""
        return f"{self.row}{quoted(leaf.name)}" if self.has(leaf) else _cast(leaf, self.text(leaf))

    def sortable(self, leaf: Leaf) -> str:
        """The same, texts by their bytes."""
        return self.value(leaf) + (' COLLATE "C"' if self.has(leaf) and TYPES[leaf.kind] == "text" else "")

    def compared(self, leaf: Leaf) -> str:
        """The SQL type that its values are compared as."""
        return TYPES[leaf.kind] if self.has(leaf) else CAST.get(leaf.kind, ("text", ""))[0]

    def finite(self, leaf: Leaf) -> str:
        """A typed column has NaN and infinities, which are less and greater than nothing here."""
        if not self.has(leaf) or leaf.kind not in ("decimal", "float", "datetime", "date"):
            return ""
        column = self.value(leaf)
        if leaf.kind in ("datetime", "date"):
            return f" AND isfinite({column})"
        return f" AND {column} > '-Infinity' AND {column} < 'Infinity'"

    def text(self, leaf: Leaf) -> str:
        """As the index that an author declares has it."""
        return f"({self.json} #>> {literal('{' + ','.join(leaf.path) + '}')})"

    def root(self, leaf: Leaf) -> str:
        """The member of the object that the leaf is in; an index is of it."""
        first = leaf.path[0]
        return f"{self.row}{quoted(first)}" if first in self.columns else f"{self.json} #> {literal('{' + first + '}')}"

    def items(self, path: Sequence[str], lists: Sequence[bool]) -> str:
        """All values that the object has there."""
        steps = (f".{json.dumps(name)}{'[*]' if many else ''}" for name, many in zip(path, lists, strict=True))
        return f"jsonb_path_query({self.json}, {literal('$' + ''.join(steps))})"


def _cast(leaf: Leaf, text: str) -> str:
    """The text of a value as its kind is compared, NULL where it is none."""
    if leaf.kind not in CAST:
        return f'{text} COLLATE "C"'
    type, castable = CAST[leaf.kind]
    return f"CASE WHEN {text} ~ {literal(castable)} THEN ({text})::{type} END"


def _spelled(value: Any) -> str:
    """A value as documents spell it."""
    return value if isinstance(value, str) else f"{value:f}" if isinstance(value, Decimal) else json.dumps(value)


def _nested(leaf: Leaf, value: Any) -> Any:
    """What contains the value as the document's first member does."""
    for name, many in reversed(list(zip((*leaf.path[1:], None), leaf.lists, strict=True))):
        value = value if name is None else {name: value}
        value = [value] if many else value
    return value
