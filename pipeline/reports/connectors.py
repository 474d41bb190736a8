"""The connectors as Connect and the source have them: one line each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from connectors.sources import lifecycle, postgres
from connectors.sources.connect import ConnectorStatus
from connectors.sources.debezium import ConnectorDefinition, load_definitions
from pipeline.addresses import KafkaAddress
from pipeline.errors import CdcError, SettingsError, SourceError
from pipeline.operations.doctor import SlotState
from pipeline.operations.doctor import slot as judged
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
    attention: str | None = None
    """What is wrong with its slot, and what heals it."""


def connectors(settings: Settings) -> list[ConnectorLine]:
    """Every connector defined here or known to Connect; who is away is said in the lines."""
    defined = load_definitions(settings.connectors)
    away: dict[str, str] = {}
    running: dict[str, ConnectorStatus] = {}
    for cluster in clusters(defined):
        try:
            running |= asyncio.run(lifecycle.statuses(connect_at=settings.connect_address(cluster)))
        except CdcError as error:
            away[cluster] = str(error)
    return [
        line(settings, name, own, running.get(name), away.get(own.kafka if own is not None else ""))
        for name in sorted({*defined, *running})
        for own in (defined.get(name),)
    ]


def clusters(defined: Mapping[str, ConnectorDefinition]) -> list[str]:
    """The Kafka clusters that these connectors write to; the first is that of the empty name."""
    return sorted({definition.kafka for definition in defined.values()} or {""})


def line(
    settings: Settings,
    name: str,
    definition: ConnectorDefinition | None,
    status: ConnectorStatus | None,
    away: str | None = None,
) -> ConnectorLine:
    """One connector's line; `away` says why Connect could not be asked."""
    slot, problem, asked = None, away, False
    if definition is not None and definition.kind == "postgres" and (dsn := source_dsn(settings, definition)):
        try:
            slot = postgres.slot(definition.dsn(dsn), definition.slot)
            asked = True
        except SourceError as error:
            problem = f"{away} {error}" if away else str(error)
    return ConnectorLine(
        name=name,
        state=("not known" if away else "not applied") if status is None else status.state.lower(),
        tables=() if definition is None else definition.tables,
        tasks=() if status is None else tuple(task.state.lower() for task in status.tasks),
        slot=None if definition is None or definition.kind != "postgres" else definition.slot,
        slot_active=None if slot is None else slot.active,
        behind_bytes=None if slot is None else slot.behind_bytes,
        kept_bytes=None if slot is None else slot.kept_bytes,
        reason=None if status is None else status.reason,
        problem=problem,
        attention=None
        if definition is None or not asked or (status is None and not away)
        else slot_attention(definition, slot),
    )


def slot_attention(definition: ConnectorDefinition, slot: postgres.Slot | None) -> str | None:
    """What is wrong with a connector's slot, and the command that heals it; None where it is read."""
    state = None if slot is None else SlotState(slot.active, slot.kept_bytes or 0, slot.wal_status or "")
    found = judged(definition.name, definition.slot, state)
    return (
        f"{found.subject} of connector {definition.name}: {found.found}: {found.fix}"
        if found.level == "error"
        else None
    )


def source_dsn(settings: Settings, definition: ConnectorDefinition | None) -> str:
    """The DSN of the connector's source, or nothing where none is set. It has the password: never print it."""
    name = definition.source if definition is not None else ""
    return settings.source_dsn(name) if settings.has_source(name) else ""


def kafka(settings: Settings, name: str = "") -> KafkaAddress | None:
    """Kafka's address; None where this project does not say, though Connect knows it."""
    try:
        return settings.kafka_address(name)
    except SettingsError:
        return None
