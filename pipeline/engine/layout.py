"""A shape laid out as mirror tables: which columns, which keys, which indexes, and the ways up to the root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.authoring.shape import Kind, RelationShape, Shape


@dataclass(frozen=True, slots=True)
class Step:
    """One join on the way up: rows of `table` whose `columns` equal the `below` columns of the row beneath.

    `widens` says that one row beneath may have many above it (the relation is a `one`, or joins a non-key).
    """

    table: str
    columns: tuple[str, ...]
    below: tuple[str, ...]
    widens: bool


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One place of a table in the document, and the steps from there up to the root; none at the root itself."""

    number: int
    table: str
    steps: tuple[Step, ...]

    @property
    def links(self) -> tuple[str, ...]:
        """The row's own columns by which it hangs on the row above."""
        return self.steps[0].below if self.steps else ()


@dataclass(slots=True)
class Table:
    """One mirror table: the columns the projection uses, the key's first."""

    number: int
    name: str
    key: tuple[str, ...]
    columns: dict[str, Kind | None]
    occurrences: list[Occurrence] = field(default_factory=list)
    indexes: set[tuple[str, ...]] = field(default_factory=set)

    @property
    def integer_key(self) -> bool:
        return len(self.key) == 1 and self.columns[self.key[0]] == "int"


@dataclass(slots=True)
class Layout:
    """All mirror tables of one shape."""

    shape: Shape
    tables: dict[str, Table]

    @property
    def root(self) -> Table:
        return self.tables[self.shape.table]


def lay_out(shape: Shape, keys: Mapping[str, Sequence[str]] | None = None) -> Layout:
    """Lay out the mirror. `keys`: the source's primary keys, where known; else each shape's own key is taken for it."""
    declared = {level.table: level.key for level in shape.walk()}
    tables: dict[str, Table] = {}
    for name, used in shape.columns().items():
        key = tuple((keys or {}).get(name, declared[name]))
        columns: dict[str, Kind | None] = {column: used.get(column) for column in key}
        columns.update(used)
        tables[name] = Table(len(tables), name, key, columns)
    layout = Layout(shape, tables)
    _place(layout, shape, ())
    return layout


def _place(layout: Layout, shape: Shape, steps: tuple[Step, ...]) -> None:
    table = layout.tables[shape.table]
    number = sum(len(other.occurrences) for other in layout.tables.values())
    table.occurrences.append(Occurrence(number, shape.table, steps))
    for relation in shape.relations:
        _index(layout, shape, relation)
        widens = relation.local != table.key
        step = Step(shape.table, relation.local, relation.remote, widens)
        _place(layout, relation.shape, (step, *steps))


def _index(layout: Layout, shape: Shape, relation: RelationShape) -> None:
    """Both ends of a join are looked up: ours on the way up, theirs on the way down."""
    for name, columns in ((shape.table, relation.local), (relation.shape.table, relation.remote)):
        table = layout.tables[name]
        if table.key[: len(columns)] != columns:
            table.indexes.add(columns)
