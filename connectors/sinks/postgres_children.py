"""Child tables: a list of the documents in a table of its own, a row for each item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from connectors.sinks.postgres_columns import (
    NAME_BYTES,
    Member,
    cast,
    column_type,
    declared,
    indexed,
    literal,
    quoted,
    typed,
    value,
)
from connectors.sinks.postgres_layout import ITEM, ListTable
from pipeline.authoring.shape import FieldShape, RelationShape, Shape
from pipeline.errors import DefinitionError

# Behind the name of a list's view `_v999_999` has to fit.
VIEW_BYTES = NAME_BYTES - 9
# The lists that are on their way from the documents into tables of their own.
LISTS = "cdc_lists"
CREATE_LISTS = f"CREATE TEMP TABLE IF NOT EXISTS {LISTS}(id text, name text, list jsonb) ON COMMIT DELETE ROWS"
KEEP_LISTS_PLAIN = f"ALTER TABLE {LISTS} ALTER list SET STORAGE EXTERNAL"
# The column of a list whose items have no fields.
VALUE = "value"


@dataclass(frozen=True, slots=True)
class Child:
    """One list of the documents of one version. `item` is None where its items have no fields."""

    name: str
    schema: str
    table_name: str
    marker: str
    item: Shape | None
    columns: tuple[Member, ...]

    @property
    def table(self) -> str:
        return quoted(self.schema, self.table_name)

    @property
    def layout(self) -> ListTable:
        return ListTable(self.name, self.table_name, (*ITEM, *(member.name for member in self.columns)))

    def ddl(self) -> Iterator[str]:
        yield (
            f'CREATE TABLE IF NOT EXISTS {self.table}(\n  _id text COLLATE "C", _position int, _item jsonb NOT NULL'
            f"{declared(self.columns)},\n  PRIMARY KEY (_id, _position))"
        )
        yield f"COMMENT ON TABLE {self.table} IS {literal(self.marker)}"

    def replace(self) -> Iterator[str]:
        """The items of documents that were just written, in place of those that are there; parameter of each: the documents' ids.

        They run behind the documents' own statement, which locks them: so they see what an earlier write left.
        """
        yield f"DELETE FROM {self.table} WHERE _id = ANY(%s)"
        names = [*ITEM, *(quoted(member.name) for member in self.columns)]
        values = ["id", "n", "i", *map(self._value, self.columns)]
        yield (
            f"INSERT INTO {self.table}({', '.join(names)}) SELECT {', '.join(values)} FROM {LISTS},"
            f" jsonb_array_elements(list) WITH ORDINALITY e(i, n) WHERE name = {literal(self.name)} AND id = ANY(%s)"
        )

    def indexed(self, path: str) -> tuple[str, str]:
        """An index's name behind the table's, and what it is of; `path` is within the items, or empty: the items themselves."""
        if self.item is not None and path:
            return path, indexed(self.item, self.columns, "_item", path)
        if path:
            raise DefinitionError(f"No index of '{self.name}.{path}': {self.name} has no fields of its own.")
        if self.item is None and self.columns:
            return VALUE, f"({quoted(VALUE)})"
        return "_item", "USING gin (_item jsonb_path_ops)"

    def _value(self, member: Member) -> str:
        return value(member, "i") if self.item is not None else cast(column_type(member), "i #>> '{}'")


def moving(parsed: str, names: Sequence[str]) -> str:
    """From SQL of documents, `s`, with the lists that have items noted; empty ones and what is no list stay in the document."""
    of = f"ARRAY[{', '.join(map(literal, names))}]"
    moved = "jsonb_typeof(document -> name) = 'array' AND document -> name <> '[]'"
    return (
        f"WITH s AS MATERIALIZED (SELECT *, ARRAY(SELECT name FROM unnest({of}) name WHERE {moved}) AS moved FROM ({parsed}) d),"
        f" noted AS (INSERT INTO {LISTS} SELECT id, name, document -> name FROM s, unnest(moved) name)"
    )


def child(shape: Shape, name: str, schema: str, view_name: str, version: str, marker: str) -> Child:
    """The child table of the list; raises DefinitionError where there can be none."""
    lists = {
        member.name: member
        for member in shape.members
        if not member.hidden and (member.many if isinstance(member, RelationShape) else member.repeated)
    }
    if (own := lists.get(name)) is None:
        known = f"its lists are {', '.join(lists)}" if lists else "it has none"
        raise DefinitionError(f"No child table of {name!r}: {shape.name} has no list of that name; {known}.")
    if len(view_name.encode()) > VIEW_BYTES:
        raise DefinitionError(
            f"The child table of {name!r} would be called {view_name}, which is longer than {VIEW_BYTES} bytes."
        )
    columns: tuple[Member, ...] = ()
    item = own.item if isinstance(own, RelationShape) else None
    if item is not None:
        columns = typed(item, f"{name!r} of children")
    elif isinstance(own, FieldShape) and own.kind != "json":
        columns = (replace(own, name=VALUE, repeated=False),)
    return Child(name, schema, f"{view_name}_{version}", f"{marker}{name}", item, columns)
