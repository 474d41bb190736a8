"""What a projection with several workers (exchange mode) can have, and what not yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.authoring.projection import Projection
from pipeline.engine.layout import Layout
from pipeline.engine.owners import KINDS, Owners
from pipeline.settings import Settings


def in_parts(projection: Projection[Any], layout: Layout) -> Iterator[str]:
    """Why it can't have several workers."""
    columns, root = Owners(layout, projection.workers).columns, layout.root
    if not columns:
        yield (
            f"No field that it groups by is a column of {root.name}, of {_listed(KINDS)}: only such a column says in its rows"
            " to which partition they go."
        )
    if projection.across_sources:
        yield "Tables of several sources have no transactions in common."
    for name in columns:
        kind = root.wires[name].kind
        if kind not in KINDS:
            yield f"{root.name}.{name}, of {kind}, can't say whose a row is; {_listed(KINDS)} can."


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def part_of(projection: Projection[Any], layout: Layout, key: tuple[Any, ...]) -> str:
    """Which of its parts has the document with this key, the root's or the group's."""
    return projection.parts[Owners(layout, projection.workers).of_key(key)]


def exchange_topic(settings: Settings, projection: Projection[Any]) -> str:
    """Where each row goes to the partition that owns its document."""
    return f"{settings.project}.exchange.{projection.id}"
