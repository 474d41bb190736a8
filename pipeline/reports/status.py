"""How far the projections are, and whether the replication slots that they live on are there and read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from connectors.sources import postgres
from connectors.sources.debezium import ConnectorDefinition
from pipeline.authoring.projection import Projection
from pipeline.errors import DefinitionError, SourceError
from pipeline.operations.building import with_builds
from pipeline.operations.status import StatusReport
from pipeline.reports.connectors import slot_attention, source_dsn
from pipeline.runtime.wiring import connectors_of
from pipeline.settings import Settings


def status(settings: Settings, projections: Sequence[Projection[Any]], *, fail_behind: float = 30.0) -> StatusReport:
    """Asks the source of each of these projections for its slot; a source that is away is said, and nothing fails."""
    report = with_builds(settings, projections, fail_behind=fail_behind)
    definitions = {name: d for projection in projections for name, d in _definitions(settings, projection).items()}
    slots = [d for d in definitions.values() if d.kind == "postgres"]
    told = [_told(d, dsn) for d in slots if (dsn := source_dsn(settings, d))]
    report.attention = [line for line in told if line is not None]
    return report


def _definitions(settings: Settings, projection: Projection[Any]) -> dict[str, ConnectorDefinition]:
    try:
        return connectors_of(settings, projection)
    except DefinitionError:
        return {}  # no connector captures its tables: the plan says so


def _told(definition: ConnectorDefinition, dsn: str) -> str | None:
    try:
        return slot_attention(definition, postgres.slot(definition.dsn(dsn), definition.slot))
    except SourceError as error:
        return f"connector {definition.name}: {error}"
