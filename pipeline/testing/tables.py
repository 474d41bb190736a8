"""The tables of a scenario: what the projection reads, with the columns' types from the catalog or, failing it, the shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.authoring.catalog import Catalog, did_you_mean
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape
from pipeline.engine.layout import Layout
from pipeline.errors import ScenarioError, UnknownColumn, UnknownTable
from pipeline.events.envelope import UNCHANGED
from pipeline.testing.source import Key, Row
from pipeline.testing.wire import WireColumn, column_of, declared_column


@dataclass(frozen=True, slots=True)
class SourceTable:
    """One source table: its key, its columns, and which of them the projection reads."""

    name: str
    key: tuple[str, ...]
    columns: Mapping[str, WireColumn]
    used: tuple[str, ...]

    def row(self, values: Mapping[str, Any]) -> Row:
        """A new row as events have it; raises where a value is wrong or missing."""
        self._check_names(values)
        missing = [name for name in self.used if name not in values and not self.columns[name].nullable]
        if missing:
            column = self.columns[missing[0]]
            why = (
                "has a default that only the source knows"
                if column.default
                else "is of the key"
                if missing[0] in self.key
                else "may not be null"
            )
            raise ScenarioError(f"{column} {why}: give {', '.join(f'{name}=…' for name in missing)}.")
        for name, value in values.items():
            if value is UNCHANGED:
                raise ScenarioError(f"{self.name}.{name}: only an update can leave a value UNCHANGED.")
        return {name: self.columns[name].encode(values.get(name)) for name in {**dict.fromkeys(self.used), **values}}

    def changes(self, values: Mapping[str, Any]) -> Row:
        """Some new values of a row as events have them; UNCHANGED stays what it is."""
        self._check_names(values)
        for name, value in values.items():
            if value is UNCHANGED:
                self.columns[name].unchanged("")  # refused here, before anything has happened
        return {n: v if v is UNCHANGED else self.columns[n].encode(v) for n, v in values.items()}

    def key_of(self, key: Any) -> Key:
        """A key as an author writes it (`10`, or `(10, 1)`) as events have it."""
        parts = tuple(key) if isinstance(key, tuple | list) else (key,)
        if len(parts) != len(self.key):
            names, n = ", ".join(self.key), len(self.key)
            raise ScenarioError(f"The key of {self.name} is ({names}): give {n} value{'s' * (n > 1)}, not {key!r}.")
        return tuple(self.columns[name].encode(part) for name, part in zip(self.key, parts, strict=True))

    def _check_names(self, values: Mapping[str, Any]) -> None:
        for name in values:
            if name not in self.columns:
                raise UnknownColumn(f"{self.name} has no column {name!r}{did_you_mean(name, self.columns)}")


@dataclass(frozen=True, slots=True)
class SourceTables:
    """The tables that one projection reads."""

    projection: str
    tables: Mapping[str, SourceTable]

    def __getitem__(self, name: str) -> SourceTable:
        try:
            return self.tables[name]
        except KeyError:
            near = did_you_mean(name, self.tables)
            raise UnknownTable(f"{self.projection} reads no table {name!r}{near}") from None


def source_tables(projection: str, layout: Layout, catalog: Catalog) -> SourceTables:
    """Every table of the layout, as the catalog or else the shape has it."""
    tables: dict[str, SourceTable] = {}
    required = _required(layout.shape)
    for name, own in layout.tables.items():
        known = catalog.tables.get(name)
        if known is not None:
            silent = known.silent_columns()
            columns = {c.name: column_of(name, c, silent=c.name in silent) for c in known.columns}
            for column in own.columns:
                known.column(column)  # raises UnknownColumn, as `cdc check` would
        else:
            fields = {f.column: f for level in layout.shape.walk() if level.table == name for f in level.copied}
            columns = {
                c: declared_column(name, c, fields.get(c), nullable=(name, c) not in required and c not in own.key)
                for c in own.columns
            }
        tables[name] = SourceTable(name, own.key, columns, tuple(own.columns))
    return SourceTables(projection, tables)


def _required(shape: Shape) -> set[tuple[str, str]]:
    """Columns that some field takes for never null."""
    return {
        (level.table, field.column)
        for level in shape.walk()
        for field in level.copied
        if field.column is not None and not field.nullable
    }


def catalog_beside(projection: Projection[Any]) -> Catalog:
    """The lock file in the projection's folder; without one the shape says what its columns are."""
    path = Path(projection.file).parent / "catalog.lock.json"
    return Catalog.load(path) if projection.file and path.is_file() else Catalog()
