"""A projection's mirror tables, keyed and typed as the source's catalog says."""

from __future__ import annotations

from typing import Any

from pipeline.authoring.catalog import Catalog
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.layout import Layout, lay_out
from pipeline.settings import Settings


def layout_of(settings: Settings, projection: Projection[Any]) -> Layout:
    """The mirror's layout as the worker has it."""
    catalog = Catalog.load(settings.catalog) if settings.catalog.exists() else None
    return lay_out(shape_of(projection.shape), catalog)
