"""A projection's mirror tables, keyed and typed as the source's catalog says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.authoring.catalog import UNREADABLE, Catalog, Column
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.engine.layout import Layout, lay_out
from pipeline.errors import DefinitionError
from pipeline.settings import Settings


def layout_of(settings: Settings, projection: Projection[Any]) -> Layout:
    """The mirror's layout as the worker has it."""
    catalog = Catalog.load(settings.catalog) if settings.catalog.exists() else None
    shape = shape_of(projection.shape)
    for name, column in unreadable(shape, catalog or Catalog()):
        raise DefinitionError(f"{projection.id}: {name}.{column.name} is {column.type}: see `cdc check`.")
    return lay_out(shape, catalog, settings.mask.salt)


def unreadable(shape: Shape, catalog: Catalog) -> Iterator[tuple[str, Column]]:
    """The columns that a shape uses and whose values can't be taken from the events."""
    for table, used in shape.columns().items():
        columns = catalog.tables[table].columns if table in catalog.tables else ()
        yield from ((table, column) for column in columns if column.name in used and column.base == UNREADABLE)
