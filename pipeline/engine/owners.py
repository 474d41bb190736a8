"""Whose a row is, and whose a document: the partition of each, where several workers share a projection's documents."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any, Final

from pipeline.authoring.aggregate_shape import AggregateShape, GroupShape
from pipeline.authoring.shape import Kind
from pipeline.engine.assemble import document_id
from pipeline.engine.layout import Layout, Table
from pipeline.engine.measures import group_id, group_text

KINDS: Final[tuple[Kind, ...]] = ("int", "text", "uuid")
"""Kinds of columns that are spelled alike wherever they stand."""


def owner_of(id: str, partitions: int) -> int:
    """The partition that has what is called so."""
    return zlib.crc32(id.encode()) % partitions


def telling(aggregate: AggregateShape) -> list[int]:
    """Which of its group fields a row of its own table has as a column: these say whose the group is."""
    return [i for i, group in enumerate(aggregate.groups) if _tells(group)]


def _tells(group: GroupShape) -> bool:
    field = group.value.field
    return len(group.value.path) == 1 and field.column is not None and field.mask is None and field.kind in KINDS


class Owners:
    """The partitions of one layout's rows and documents.

    A document's is that of its id; a group's, of its values that its rows have as columns. So a row tells whose it is
    where it has the root's key, or those columns, or is joined by them.
    """

    def __init__(self, layout: Layout, partitions: int) -> None:
        self.partitions = partitions
        self._layout, self._aggregate = layout, layout.aggregate
        self._telling = telling(layout.aggregate) if layout.aggregate is not None else []
        self._whole = layout.aggregate is None or len(self._telling) == len(layout.aggregate.groups)
        self.places = {name: self._places(table) for name, table in layout.tables.items()}
        """By table where in its rows they have what tells; None: its rows go to every partition."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The root's columns that tell whose its rows are."""
        if self._aggregate is None:
            return self._layout.root.key
        return tuple(str(self._aggregate.groups[i].value.field.column) for i in self._telling)

    def has_all_of(self, other: Owners) -> bool:
        """Whether each partition has the rows that the same one of `other` needs, of tables that both have."""
        if (self._aggregate is None, self._whole, self.columns) != (
            other._aggregate is None,
            other._whole,
            other.columns,
        ):
            return False
        theirs = {name: other._names(name) for name in other.places.keys() & self.places.keys()}
        return all(self.places[name] is None or self._names(name) == names for name, names in theirs.items())

    def _names(self, table: str) -> tuple[str, ...] | None:
        places, columns = self.places[table], list(self._layout.tables[table].columns)
        return None if places is None else tuple(columns[i] for i in places)

    def by_key(self, table: str) -> bool:
        """Whether a row of this table keeps its owner as long as it keeps its key."""
        own = self.places[table]
        return own is not None and max(own) < len(self._layout.tables[table].key)

    def of_row(self, own: tuple[int, ...], row: Sequence[object]) -> int:
        """The partition of a row, or of a key, that tells at the places `own`."""
        return self.of_values(tuple([row[i] for i in own]))

    def of_values(self, values: tuple[object, ...]) -> int:
        """The partition of the rows with these values of what tells."""
        if self._aggregate is not None and self._whole:
            groups = self._aggregate.groups
            return owner_of(group_id(group_text(list(zip(values, groups, strict=True)))), self.partitions)
        return owner_of(document_id(values), self.partitions)

    def of_key(self, key: tuple[Any, ...]) -> int:
        """The partition of a document by the root's key, or the group's."""
        if self._aggregate is None:
            return owner_of(document_id(key), self.partitions)
        return self._of_group(key[0]) if not self._whole else owner_of(group_id(key[0]), self.partitions)

    def of_id(self, id: str) -> int | None:
        """The partition of the document with this id; None where the id is a hash of what would tell."""
        if self._whole:
            return owner_of(id, self.partitions)
        return self._of_group(id) if id.startswith("[") else None

    def _of_group(self, key: str) -> int:
        values = json.loads(key)
        return self.of_values(tuple(values[i] for i in self._telling))

    def _places(self, table: Table) -> tuple[int, ...] | None:
        root, columns = self._layout.root, list(table.columns)
        found: set[tuple[int, ...] | None] = set()
        for occurrence in table.occurrences:
            names: tuple[str, ...] | None = self.columns
            for step in reversed(occurrence.steps):
                down = dict(zip(step.columns, step.below, strict=True))
                names = tuple(down[n] for n in names) if names is not None and set(names) <= down.keys() else None
            kinds = zip(
                (table.wires[n].kind for n in names or ()), (root.wires[n].kind for n in self.columns), strict=False
            )
            same = all(own in (of_root, None) for own, of_root in kinds)  # None: there is no catalog
            found.add(tuple(map(columns.index, names)) if names and same else None)
        return found.pop() if len(found) == 1 else None
