"""What `cdc apply` would do now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from connectors.sinks import open_sink
from connectors.sources import lifecycle
from connectors.sources.debezium import load_definitions
from connectors.sources.topics import load_topics
from pipeline.authoring.discovery import discover
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.errors import CdcError
from pipeline.operations import apply as operation
from pipeline.operations.apply import Applied, ApplyReport, CapturedBy
from pipeline.ports import Sink
from pipeline.reports.connectors import clusters
from pipeline.settings import Settings


def plan(settings: Settings, projections: Sequence[Projection[Any]] | None = None) -> ApplyReport:
    """What differs between what runs and what the files say, or these projections; changes nothing."""
    projections = discover(settings.projections) if projections is None else projections
    applied = Applied(settings.state_dir)
    return asyncio.run(operation.plan(projections, opener(settings), applied, _connectors(settings)))


def opener(settings: Settings) -> operation.Opener:
    """Opens the sinks of these settings."""

    def opened(target: Target, projection: Projection[Any]) -> Sink:
        return open_sink(target, projection, shape_of(projection.shape), settings)

    return opened


def _connectors(settings: Settings) -> list[CapturedBy]:
    definitions = load_definitions(settings.connectors)
    foreign = [CapturedBy(name, frozenset(of.tables), True) for name, of in load_topics(settings.topics).items()]
    running: dict[str, set[str] | None] = {}
    for cluster in clusters(definitions):
        try:
            running[cluster] = set(asyncio.run(lifecycle.statuses(connect_at=settings.connect_address(cluster))))
        except CdcError:
            running[cluster] = None
    return [
        *foreign,
        *(
            CapturedBy(name, frozenset(d.tables), None if (known := running[d.kafka]) is None else name in known)
            for name, d in definitions.items()
        ),
    ]
