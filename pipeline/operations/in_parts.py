"""What a projection with several workers (exchange mode) can have, and what not yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.exchange import owner_of
from pipeline.engine.layout import Layout
from pipeline.settings import Settings

KINDS = ("int", "text", "uuid")
"""Kinds of a root key's columns that are spelled alike wherever they stand."""


def in_parts(projection: Projection[Any], layout: Layout) -> Iterator[str]:
    """Why it can't have several workers."""
    if isinstance(shape_of(projection.shape), AggregateShape):
        yield "Groups and events are not of one root key, which says whose a row is."
    if projection.across_sources:
        yield "Tables of several sources have no transactions in common."
    for name in layout.root.key:
        kind = layout.root.wires[name].kind
        if kind not in KINDS:
            yield f"{layout.root.name}.{name}, a key of {kind}, can't say whose a row is; {', '.join(KINDS)} can."


def part_of(projection: Projection[Any], id: str) -> str:
    """Which of its parts has the document with this id."""
    return projection.parts[owner_of(id, projection.workers)]


def exchange_topic(settings: Settings, projection: Projection[Any]) -> str:
    """Where each row goes to the partition that owns its document."""
    return f"{settings.project}.exchange.{projection.id}"
