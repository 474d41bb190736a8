"""The connectors as Connect and the source have them: one line each."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, ConfigDict

from connectors.sources import lifecycle, postgres
from connectors.sources.connect import ConnectorStatus
from connectors.sources.debezium import ConnectorDefinition, load_definitions
from pipeline.errors import CdcError, SourceError
from pipeline.settings import Settings


class ConnectorLine(BaseModel):
    """One connector: its definition, what Connect says, and the source's slot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    state: str
    """Connect's word in small letters; `not applied`, or `not known` where Connect is away."""
    tables: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    slot: str | None = None
    slot_active: bool | None = None
    behind_bytes: int | None = None
    kept_bytes: int | None = None
    reason: str | None = None
    problem: str | None = None
    """Who could not be asked."""


def connectors(settings: Settings) -> list[ConnectorLine]:
    """Every connector defined here or known to Connect; who is away is said in the lines."""
    defined = load_definitions(settings.connectors)
    away: str | None = None
    running: dict[str, ConnectorStatus] = {}
    try:
        running = asyncio.run(lifecycle.statuses(connect_at=settings.connect_address()))
    except CdcError as error:
        away = str(error)
    return [line(settings, name, defined.get(name), running.get(name), away) for name in sorted({*defined, *running})]


def line(
    settings: Settings,
    name: str,
    definition: ConnectorDefinition | None,
    status: ConnectorStatus | None,
    away: str | None = None,
) -> ConnectorLine:
    """One connector's line; `away` says why Connect could not be asked."""
    slot, problem = None, away
    if definition is not None and (dsn := source_dsn(settings)):
        try:
            slot = postgres.slot(definition.dsn(dsn), definition.slot)
        except SourceError as error:
            problem = f"{away} {error}" if away else str(error)
    return ConnectorLine(
        name=name,
        state=("not known" if away else "not applied") if status is None else status.state.lower(),
        tables=() if definition is None else definition.tables,
        tasks=() if status is None else tuple(task.state.lower() for task in status.tasks),
        slot=None if definition is None else definition.slot,
        slot_active=None if slot is None else slot.active,
        behind_bytes=None if slot is None else slot.behind_bytes,
        kept_bytes=None if slot is None else slot.kept_bytes,
        reason=None if status is None else status.reason,
        problem=problem,
    )


def source_dsn(settings: Settings) -> str:
    """The source's DSN, or nothing where none is set. It has the password: never print it."""
    return settings.source_dsn() if settings.source.dsn is not None or settings.endpoints() is not None else ""
