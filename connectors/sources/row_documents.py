"""What documents hold, made of rows that are read from the source table by table: the truth that `verify` compares with.

For sources whose SQL is not asked for whole documents, and for shapes whose tables are in several. Nothing here is shared
with the engine: rows are joined in memory, for the keys asked for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final, Protocol

from pydantic import TypeAdapter

from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.column_types import Wire, wire_of
from pipeline.authoring.shape import FieldShape, RelationShape, Shape
from pipeline.events.values import converter

Key = tuple[str, ...]
Row = dict[str, Any]
MOMENTS: Final = ("datetime", "timestamp", "instant", "zoned")
SPELLED: Final = (*MOMENTS, "decimal", "date", "time")
"""Kinds of which equal values may come as different texts."""
_PERIOD: Final = TypeAdapter(timedelta)


class TableReader(Protocol):
    """Reads rows of one state of a source, their values as in events."""

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[Row]: ...

    def after(self, table: Table, columns: Sequence[str], last: Sequence[Any], limit: int) -> list[Row]: ...


class RowSnapshot:
    """Documents of one moment of each source. `readers`: who reads which table."""

    def __init__(
        self, shape: Shape, catalog: Catalog, readers: Callable[[str], TableReader], position: int | Mapping[str, int]
    ) -> None:
        self.position = position
        """What committed up to this place in the log is seen, and nothing else; of several sources, by connector."""
        self._shape, self._catalog, self._readers = shape, catalog, readers
        self._columns: dict[str, list[str]] = {name: list(used) for name, used in shape.columns().items()}
        self._wires = {
            name: {column.name: wire_of(column) for column in catalog.table(name).columns} for name in self._columns
        }
        for name, used in self._columns.items():
            used += [column for column in catalog.table(name).primary_key if column not in used]

    def keys(self, batch: int) -> Iterator[list[tuple[Key, list[Any]]]]:
        """All root keys in their order: as text, and as documents have them."""
        table = self._catalog.table(self._shape.table)
        last: list[Any] = []
        while rows := self._readers(table.name).after(table, table.primary_key, last, batch):
            last = [rows[-1][name] for name in table.primary_key]
            yield [self._key(table, row) for row in rows]

    def documents(self, keys: Sequence[Key]) -> list[tuple[Key, list[Any], dict[str, Any]]]:
        """Key, key as documents have it, and document of those keys that there are."""
        table = self._catalog.table(self._shape.table)
        roots = self._matching(table.name, table.primary_key, keys)
        made = self._nested(self._shape, roots)
        return [(*self._key(table, row), document) for row, document in zip(roots, made, strict=True)]

    def _key(self, table: Table, row: Row) -> tuple[Key, list[Any]]:
        wire = [_held(self._wires[table.name][name], row[name]) for name in table.primary_key]
        return tuple(str(int(part)) if isinstance(part, bool) else str(part) for part in wire), wire

    def _matching(self, table: str, match: Sequence[str], values: Iterable[Sequence[Any]]) -> list[Row]:
        wanted = list(values)
        if not wanted:
            return []
        return self._readers(table).matching(self._catalog.table(table), self._columns[table], match, wanted)

    # ---- one level of a document -----------------------------------------------------------------------------

    def _nested(self, shape: Shape, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The documents of these rows; what hangs on them is read for all at once."""
        found: list[dict[str, Any]] = [{} for _ in rows]
        chosen = {relation.name: self._chosen(shape, relation, rows) for relation in shape.relations}
        for member in shape.members:
            if isinstance(member, RelationShape):
                for into, below in zip(found, self._related(member, chosen[member.name]), strict=True):
                    into[member.name] = below
                continue
            of = next((r for r in shape.relations if r.name == member.left_out_of), None)
            for n, (into, row) in enumerate(zip(found, rows, strict=True)):
                if of is not None:
                    into[member.name] = max(0, len(chosen[of.name][n]) - (of.limit or 0))
                elif member.column is not None:
                    into[member.name] = _value(member, row[member.column])
        return found

    def _related(self, relation: RelationShape, chosen: Sequence[Sequence[Row]]) -> list[Any]:
        cut = [rows[: relation.limit if relation.many else 1] for rows in chosen]
        made = iter(self._nested(relation.item, [row for rows in cut for row in rows]))
        parts = [[next(made) for _ in rows] for rows in cut]
        return parts if relation.many else [one[0] if one else None for one in parts]

    def _chosen(self, shape: Shape, relation: RelationShape, rows: Sequence[Row]) -> list[list[Row]]:
        """For each row the rows that the relation shows, in their order."""
        found = self._joined(shape.table, relation, rows)
        if relation.links:
            onward = relation.shape.relations[0]
            links = [link for some in found for link in some]
            shown = iter(self._joined(relation.shape.table, onward, links))
            found = [[other for _ in some for other in next(shown)] for some in found]
        return [self._ordered(relation, some) for some in found]

    def _joined(self, above: str, relation: RelationShape, rows: Sequence[Row]) -> list[list[Row]]:
        below = relation.shape.table
        wanted = [self._values(above, relation.local, row) for row in rows]
        raw = {
            of: tuple(row[name] for name in relation.local)
            for of, row in zip(wanted, rows, strict=True)
            if None not in of
        }
        by: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
        for other in self._matching(below, relation.remote, raw.values()):
            by[self._values(below, relation.remote, other)].append(other)
        return [list(by.get(of, ())) for of in wanted]

    def _values(self, table: str, names: Sequence[str], row: Row) -> tuple[Any, ...]:
        """A row's columns as they are compared: exactly, whatever the database's collation says."""
        return tuple(_held(self._wires[table][name], row[name]) for name in names)

    def _ordered(self, relation: RelationShape, rows: list[Row]) -> list[Row]:
        wires, item = self._wires[relation.item.table], relation.item
        kept = [row for row in rows if all(row[name] in values for name, values in relation.where)]
        for name in reversed(list(dict.fromkeys((*relation.order_by, *item.key)))):
            kept.sort(key=lambda row, n=name: _rank(wires[n], row[n]), reverse=name in relation.descending)  # type: ignore[misc]
        return kept


def _value(field: FieldShape, value: Any) -> Any:
    """A boolean may be a number in the source."""
    return bool(value) if field.kind == "bool" and isinstance(value, int) and not field.repeated else value


def _held(wire: Wire, value: Any) -> Any:
    """A value in the one spelling that equal values have."""
    if isinstance(value, str) and wire.kind in SPELLED and not wire.array:
        convert = converter(wire)
        return value if convert is None else convert(value)
    return int(value) if isinstance(value, bool) else value


def _rank(wire: Wire, value: Any) -> tuple[bool, Any]:
    """As the source orders: numbers by their value, times by their moment, texts by their code points; nulls last."""
    held = _held(wire, value)
    if held is None:
        return True, 0
    if wire.kind in ("decimal", "float", "single"):
        number = Decimal(str(held))
        return False, (number.is_nan(), 0 if number.is_nan() else number)
    if wire.kind == "interval":
        return False, _PERIOD.validate_python(held)
    # with a zone or without, as all of one column are
    return False, held.removesuffix("Z") if isinstance(held, str) and wire.kind in MOMENTS else held
