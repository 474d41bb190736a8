"""A shape laid out as mirror tables: which columns, which keys, which indexes, and the ways up to the root."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import SecretStr

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.column_types import Wire, declared_wire, wire_of
from pipeline.authoring.event_shape import EventShape
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
    wires: dict[str, Wire]
    """How each column's values come in events."""
    kept: bool = False
    """Its rows are events: they stay when the source deletes them."""
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
    aggregate: AggregateShape | None = None
    """What is made of the documents, where those are not themselves written."""
    salt: SecretStr = field(default_factory=lambda: SecretStr(""))
    """Goes before values that are hashed."""

    @property
    def written_key(self) -> tuple[str, ...]:
        """The columns by which `dirty` and `quarantine` name what is written: the root's key, or the group."""
        return ("k0",) if self.aggregate is not None else self.root_key

    @property
    def root_key(self) -> tuple[str, ...]:
        """The root's key in tables of the engine's own."""
        return tuple(f"k{i}" for i in range(len(self.root.key)))

    @property
    def root(self) -> Table:
        return self.tables[self.shape.table]


def lay_out(shape: Shape, catalog: Catalog | None = None, salt: SecretStr | None = None) -> Layout:
    """Lay out the mirror. Where the catalog does not know a table, its key and types are what the shape says."""
    aggregate = shape if isinstance(shape, AggregateShape) else None
    shape = shape.source
    declared = {level.table: level.key for level in shape.walk()}
    known = catalog.tables if catalog is not None else {}
    tables: dict[str, Table] = {}
    for name, used in shape.columns().items():
        source = known.get(name)
        key = (source.primary_key if source is not None else ()) or declared[name]
        columns: dict[str, Kind | None] = {column: used.get(column) for column in key}
        columns.update(used)
        fields = {f.column: f for level in shape.walk() if level.table == name for f in level.copied}
        wires = {column: declared_wire(fields.get(column)) for column in columns}
        if source is not None:
            wires.update({c.name: wire_of(c) for c in source.columns if c.name in columns})
        tables[name] = Table(len(tables), name, key, columns, wires)
    tables[shape.table].kept = isinstance(aggregate, EventShape) and not aggregate.forgets
    layout = Layout(shape, tables, aggregate, salt or SecretStr(""))
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
