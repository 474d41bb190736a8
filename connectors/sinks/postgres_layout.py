"""What a version's tables are: as the code makes them, or as they are found, which another code may have made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from connectors.sinks.postgres_columns import literal, quoted

# In these orders, with the typed columns behind them.
OWN = ("_id", "document", "_revision", "_epoch", "_deleted")
ITEM = ("_id", "_position", "_item")

# Behind the name of a list's view while readers see a version without that list: so who may read it is known when one has it again.
ASIDE = "-aside"

FOUND = (
    "SELECT c.relname, substr(d.description, length(%(marker)s) + 1),"
    " ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)"
    " FROM pg_class c LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = 0"
    " WHERE c.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND c.relkind = 'r'"
    " AND (c.relname = %(table)s OR starts_with(d.description, %(marker)s)) ORDER BY 1"
)
"""A version's table and those of its lists: name, list, columns."""
VIEWS = (
    "SELECT DISTINCT v.relname, t.relname FROM pg_class t"
    " JOIN pg_description m ON m.objoid = t.oid AND m.classoid = 'pg_class'::regclass AND m.objsubid = 0"
    " JOIN pg_depend d ON d.refobjid = t.oid AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_rewrite'::regclass"
    " JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class AND v.relnamespace = t.relnamespace"
    " WHERE t.relnamespace = to_regnamespace(quote_ident(%(schema)s)) AND starts_with(m.description, %(marker)s)"
    " AND regexp_replace(v.relname, %(aside)s || '$', '') = %(view)s || '_' || split_part(m.description, ': ', 2)"
)
"""The views of a target's lists, those put aside too, and the table of each, whatever version it is of."""


@dataclass(frozen=True, slots=True)
class ListTable:
    """The table of one list, with all its columns."""

    name: str
    table_name: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """A version's table and those of its lists, each with all its columns; without any where there is no table."""

    schema: str
    view_name: str
    table_name: str
    columns: tuple[str, ...] = ()
    lists: tuple[ListTable, ...] = ()

    @property
    def names(self) -> dict[str, str]:
        """What `FOUND` is asked with."""
        return {"schema": self.schema, "table": self.table_name, "marker": self.marker}

    @property
    def of_target(self) -> dict[str, str]:
        """What `VIEWS` is asked with."""
        return {"schema": self.schema, "view": self.view_name, "marker": self._of_target, "aside": ASIDE}

    @property
    def _of_target(self) -> str:
        """How the comments on the tables of all lists of the target begin."""
        return f"cdc list of {self.view_name} in "

    @property
    def marker(self) -> str:
        """The comments on the tables of this version's lists, up to the list's name."""
        return f"{self._of_target}{self.table_name}: "

    @property
    def table(self) -> str:
        return quoted(self.schema, self.table_name)

    @property
    def typed(self) -> frozenset[str]:
        return frozenset(self.columns) - frozenset(OWN)

    def found(self, rows: Sequence[tuple[Any, ...]]) -> Layout:
        """The same version as `FOUND` has it."""
        columns = next((tuple(columns) for name, _, columns in rows if name == self.table_name), ())
        lists = (ListTable(own, name, tuple(columns)) for name, own, columns in rows if name != self.table_name)
        return Layout(self.schema, self.view_name, self.table_name, columns, tuple(lists))

    def tables(self) -> dict[str, tuple[str, ...]]:
        """All tables with their columns."""
        return {self.table_name: self.columns, **{own.table_name: own.columns for own in self.lists}}

    def list_view(self, name: str) -> str:
        return f"{self.view_name}_{name}"

    def views(self) -> Iterator[tuple[str, str]]:
        """The views that readers see this version through, and what each shows; the documents' is first."""
        shown = [column for column in self.columns if column not in OWN]
        yield self.view_name, f"{_select(OWN[:-1], shown)} FROM {self.table} WHERE NOT _deleted"
        for own in self.lists:
            shown = [column for column in own.columns if column not in ITEM]
            yield self.list_view(own.name), f"{_select(ITEM, shown)} FROM {quoted(self.schema, own.table_name)}"

    def document(self) -> str:
        """The SQL of a whole document of the table `t`, with the lists that are in tables of their own."""
        lists = (
            f" || coalesce((SELECT jsonb_build_object({literal(own.name)}, jsonb_agg(c._item ORDER BY c._position))"
            f" FROM {quoted(self.schema, own.table_name)} c WHERE c._id = t._id HAVING count(*) > 0), '{{}}')"
            for own in self.lists
        )
        return f"(t.document{''.join(lists)})"


def _select(first: Sequence[str], then: Sequence[str]) -> str:
    return f"SELECT {', '.join([*first, *map(quoted, then)])}"
