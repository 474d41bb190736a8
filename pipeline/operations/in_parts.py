"""What a projection with several workers (exchange mode) can have, and what not yet."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pipeline.authoring.catalog import Catalog
from pipeline.authoring.projection import Projection
from pipeline.engine.layout import Layout
from pipeline.engine.owners import KINDS, Owners
from pipeline.settings import Settings


def in_parts(projection: Projection[Any], layout: Layout, kinds: Collection[str]) -> Iterator[str]:
    """Why it can't have several workers; `kinds` are those of its sources."""
    columns, root = Owners(layout, projection.workers).columns, layout.root
    if not columns:
        yield (
            f"No field that it groups by is a column of {root.name}, of {_listed(KINDS)}: only such a column says in its rows"
            " to which partition they go."
        )
    if "topics" in kinds:
        yield "Topics that others produce have no transactions."
    if projection.across_sources:
        yield "Tables of several sources have no transactions in common."
    for name in columns:
        kind = root.wires[name].kind
        if kind not in KINDS:
            yield f"{root.name}.{name}, of {kind}, can't say whose a row is; {_listed(KINDS)} can."


def costs(
    projection: Projection[Any], layout: Layout, catalog: Catalog, with_images: Collection[str]
) -> Iterator[tuple[str, str]]:
    """What goes to more partitions than one, by the name of a hint; `with_images`: tables whose source always sends old images."""
    owners, number = Owners(layout, projection.workers), projection.workers
    whose = f"{', '.join(owners.columns)} of {layout.root.name}"
    if everywhere := sorted(name for name, places in owners.places.items() if places is None):
        rows = " and ".join(everywhere)
        yield "SentEverywhere", f"The rows of {rows} go to all {number} partitions, for they don't have {whose}."
    told = [name for name, places in owners.places.items() if places and not owners.by_key(name)]
    if hiding := sorted(n for n in told if n not in with_images and catalog.table(n).replica_identity != "full"):
        yield (
            "ToldEverywhere",
            (
                f"Updates of {' and '.join(hiding)} are told to all {number} partitions, for {whose} is not in the key, and without"
                " REPLICA IDENTITY FULL nothing says which of them had the row."
            ),
        )


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def exchange_topic(settings: Settings, projection: Projection[Any]) -> str:
    """Where each row goes to the partition that owns its document."""
    return f"{settings.project}.exchange.{projection.id}"
