"""What is done to a Debezium connector: apply its definition, watch, restart, pause, resume, delete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from connectors.sources import kinds, logs, notices, postgres
from connectors.sources.connect import Connect, ConnectorStatus, connect
from connectors.sources.debezium import SECRET, ConnectorDefinition
from connectors.sources.mariadb_config import UNPARSED, history_topic
from connectors.sources.masks import Salt, unsalted
from connectors.sources.retention import forget_topic
from pipeline.addresses import ConnectAddress, KafkaAddress
from pipeline.authoring.catalog import UNREADABLE, Catalog, Table
from pipeline.authoring.masks import complaint
from pipeline.errors import (
    ConnectorFailed,
    DefinitionError,
    NoPrimaryKey,
    NoReplicaIdentity,
    SourceUnavailable,
    UnknownTable,
)

Outcome = Literal["created", "updated", "unchanged"]
POLL = 0.25
SETTLE = 2.0
"""Seconds a task must stay RUNNING: it says so before its snapshot or stream has begun."""
TABLES, SNAPSHOT = "table.include.list", "snapshot.mode"


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ConfigChange(_Report):
    """One key of the configuration that differs; None: not there."""

    key: str
    before: str | None
    after: str | None


class ConnectorPlan(_Report):
    """What `apply` would do."""

    name: str
    outcome: Outcome
    changes: tuple[ConfigChange, ...] = ()


class ConnectorApplied(ConnectorPlan):
    """What `apply` did."""

    status: ConnectorStatus
    created_tables: tuple[str, ...] = ()
    """The connector's own tables that were missing in the source."""
    restarted: bool = False
    """It had failed before, and was started again."""
    added_tables: tuple[str, ...] = ()
    """Newly captured by an update: their old rows come only with a backfill."""
    warnings: tuple[str, ...] = ()
    """What will go wrong with the tables as they are, and the SQL that mends it."""


class ConnectorDeleted(_Report):
    """What `delete` removed."""

    name: str
    connector: bool
    slot: bool = False
    publication: bool = False


async def plan(
    definition: ConnectorDefinition,
    *,
    connect_at: ConnectAddress,
    source_dsn: str,
    password: str | None = None,
    kafka: KafkaAddress | None = None,
    salt: Salt = None,
) -> ConnectorPlan:
    """The difference between the definition and what Connect runs; changes nothing."""
    wanted = definition.config(source_dsn, password, str(kafka or ""), salt)
    async with connect(connect_at) as client:
        now = await client.config(definition.name)
        return _plan(definition.name, now, logs.labelled(_as_begun(definition, wanted, now), logs.log_of(now).label))


async def apply(
    definition: ConnectorDefinition,
    *,
    connect_at: ConnectAddress,
    source_dsn: str,
    password: str | None = None,
    kafka: KafkaAddress | None = None,
    salt: Salt = None,
    patience: float = 60.0,
) -> ConnectorApplied:
    """Make Connect run this definition, and wait until it does; idempotent.

    `kafka`: where it may be seen how far an earlier run has read, beside what Connect remembers.
    `source_dsn` is a user who may create the schema `cdc`; `password` the reference Connect resolves (never printed).
    Raises ConnectorFailed with the reason, or a DefinitionError, before anything is changed.
    """
    wanted, dsn = definition.config(source_dsn, password, str(kafka or ""), salt), definition.dsn(source_dsn)
    async with connect(connect_at) as client:
        now = await client.config(definition.name)
        wanted = _as_begun(definition, wanted, now)
        if definition.snapshot.mode == "copy" and now is None and await _sent_before(definition, kafka):
            wanted[SNAPSHOT] = "initial"
        catalog = await asyncio.to_thread(kinds.read_catalog, dsn, tables=definition.tables)
        check_tables(definition, catalog)
        _check_added(definition, now)
        await asyncio.to_thread(kinds.check_server, definition, wanted["database.user"], dsn)
        created = await asyncio.to_thread(kinds.prepare, definition, dsn)
        before = await client.status(definition.name)
        try:
            wanted = await logs.resolved(client, definition, now, wanted, dsn, kafka)
        except ConnectorFailed as error:
            raise ConnectorFailed(kinds.scrubbed(str(error), dsn)) from None
        planned = _plan(definition.name, now, wanted)
        if planned.outcome != "unchanged":
            await _put(client, definition.name, wanted, dsn)
        if now is None:
            await client.request("PUT", f"/connectors/{definition.name}/resume")
        restarted = before is not None and before.failed
        if restarted:
            await _restart(client, definition.name)
        status = await _settled(client, definition.name, dsn, patience)
    return ConnectorApplied(
        **planned.model_dump(),
        status=status,
        created_tables=tuple(created),
        restarted=restarted,
        added_tables=_added(definition, now) if planned.outcome == "updated" else (),
        warnings=warnings(catalog),
    )


def check_tables(definition: ConnectorDefinition, catalog: Catalog) -> None:
    """Every table is there and can be followed: publishing one that can't makes the application's UPDATEs fail.

    In MariaDB none of them may have a column whose type stops the connector.
    """
    for name in definition.tables:
        table = catalog.tables.get(name)
        if table is None:
            raise UnknownTable(
                f"Connector {definition.name}: the source has no table {name}; create it, or take it out of `tables`."
            )
        if definition.kind == "mariadb":
            _check_parsed(definition.name, table)
        else:
            _check_identity(definition.name, table)
    for column, way in definition.mask.items():
        if (wrong := complaint(catalog, column, way)) is not None:
            raise DefinitionError(f"Connector {definition.name}: {wrong}.")


def warnings(catalog: Catalog) -> tuple[str, ...]:
    """Columns whose long values an update may lose: Debezium can't say UNCHANGED for their types."""
    return tuple(
        f"{table.name}: {', '.join(silent)} would become null when an update leaves long values alone;"
        f" run: ALTER TABLE {table.name} REPLICA IDENTITY FULL;"
        for table in catalog.tables.values()
        if (silent := table.silent_columns())
    )


async def status(name: str, *, connect_at: ConnectAddress) -> ConnectorStatus:
    """The connector's state; ConnectorFailed where Connect has none of that name."""
    async with connect(connect_at) as client:
        return await _status(client, name)


async def statuses(*, connect_at: ConnectAddress) -> dict[str, ConnectorStatus]:
    """Every connector that Connect has."""
    async with connect(connect_at) as client:
        found = {name: await client.status(name) for name in await client.connectors()}
    return {name: status for name, status in found.items() if status is not None}


async def restart(name: str, *, connect_at: ConnectAddress, dsn: str = "", patience: float = 60.0) -> ConnectorStatus:
    """Start the connector and all its tasks again, and wait until they run."""
    async with connect(connect_at) as client:
        await _status(client, name)
        await _restart(client, name, only_failed=False)
        return await _settled(client, name, dsn, patience)


async def pause(name: str, *, connect_at: ConnectAddress, patience: float = 60.0) -> ConnectorStatus:
    """Stop reading; the source keeps its log for the slot until `resume`."""
    async with connect(connect_at) as client:
        await client.request("PUT", f"/connectors/{name}/pause")
        return await _until(client, name, "PAUSED", patience)


async def resume(name: str, *, connect_at: ConnectAddress, patience: float = 60.0) -> ConnectorStatus:
    """Go on reading where `pause` stopped."""
    async with connect(connect_at) as client:
        await client.request("PUT", f"/connectors/{name}/resume")
        return await _until(client, name, "RUNNING", patience)


async def delete(
    name: str,
    *,
    connect_at: ConnectAddress,
    definition: ConnectorDefinition | None = None,
    source_dsn: str | None = None,
    kafka: KafkaAddress | None = None,
) -> ConnectorDeleted:
    """Remove the connector; given its definition and the source, its slot and publication too, or (MariaDB) its position
    and its history of the tables in `kafka`.

    A slot that is kept makes the source keep its log.
    """
    async with connect(connect_at) as client:
        existed = await client.status(name) is not None
        if existed:
            if definition is not None:
                await _forget(client, name)
            await client.request("DELETE", f"/connectors/{name}", missing_ok=True)
            await _gone(client, name)
    if definition is None or source_dsn is None:
        return ConnectorDeleted(name=name, connector=existed)
    dsn = definition.dsn(source_dsn)
    if definition.kind == "mariadb":
        if kafka is not None:
            await forget_topic(kafka, history_topic(definition))
        return ConnectorDeleted(name=name, connector=existed)
    return ConnectorDeleted(
        name=name,
        connector=existed,
        slot=await asyncio.to_thread(postgres.drop_slot, dsn, definition.slot),
        publication=await asyncio.to_thread(postgres.drop_publication, dsn, definition.publication),
    )


def masked(key: str, value: str | None) -> str | None:
    """A value fit to be shown: a secret that someone put in clear is not."""
    return "**********" if value is not None and SECRET.search(key) and not value.startswith("${") else value


def _plan(name: str, now: Mapping[str, str] | None, wanted: Mapping[str, str]) -> ConnectorPlan:
    before = now or {}
    changes = tuple(
        ConfigChange(key=unsalted(key), before=masked(key, before.get(key)), after=masked(key, wanted.get(key)))
        for key in sorted({*before, *wanted})
        if before.get(key) != wanted.get(key)
    )
    outcome: Outcome = "created" if now is None else "updated" if changes else "unchanged"
    return ConnectorPlan(name=name, outcome=outcome, changes=changes)


def _as_begun(definition: ConnectorDefinition, wanted: dict[str, str], now: Mapping[str, str] | None) -> dict[str, str]:
    """Where tables are copied, one that began anew did so by a snapshot."""
    if definition.snapshot.mode != "copy" or now is None:
        return wanted
    return {**wanted, SNAPSHOT: now[SNAPSHOT]}


async def _sent_before(definition: ConnectorDefinition, kafka: KafkaAddress | None) -> bool:
    """Whether there may be mirrors of what an earlier connector of its name has sent: only a snapshot brings the gap."""
    return kafka is None or await notices.sent(kafka, definition.transaction_topic)


def _added(definition: ConnectorDefinition, now: Mapping[str, str] | None) -> tuple[str, ...]:
    had = (now or {}).get(TABLES, "").replace("\\", "").split(",")
    return tuple(table for table in definition.tables if table not in had)


def _check_parsed(connector: str, table: Table) -> None:
    stopping = [c for c in table.columns if c.base == UNREADABLE and c.type.partition("(")[0] in UNPARSED]
    if stopping:
        said = ", ".join(f"{column.name} ({column.type})" for column in stopping)
        raise ConnectorFailed(
            f"Connector {connector}: {table.name} has {said}, which Debezium's MariaDB connector can't parse, and would"
            " stop at: store it as VARBINARY or VARCHAR, or take the table out of `tables`."
        )
    if not table.primary_key:
        raise NoPrimaryKey(
            f"Connector {connector}: {table.name} has no primary key, so its rows can't be told apart;"
            f" give it one: ALTER TABLE {table.name} ADD PRIMARY KEY (…);"
        )


def _check_identity(connector: str, table: Table) -> None:
    if table.replica_identity == "nothing":
        raise NoReplicaIdentity(
            f"Connector {connector}: {table.name} has REPLICA IDENTITY NOTHING, so once published its UPDATEs"
            f" would fail; run: ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT;"
        )
    if table.replica_identity == "index":
        raise NoReplicaIdentity(
            f"Connector {connector}: {table.name} has REPLICA IDENTITY USING INDEX, so its deletes would come without"
            f" their key; run: ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT; (or FULL)"
        )
    if not table.primary_key and table.replica_identity == "default":
        raise NoPrimaryKey(
            f"Connector {connector}: {table.name} has no primary key, so once published its UPDATEs would fail;"
            f" give it one: ALTER TABLE {table.name} ADD PRIMARY KEY (…);"
        )


def _check_added(definition: ConnectorDefinition, now: Mapping[str, str] | None) -> None:
    """A running MariaDB connector knows the definitions of the tables that it began with, and fails on others."""
    if definition.kind == "mariadb" and now is not None and (added := _added(definition, now)):
        raise ConnectorFailed(
            f"Connector {definition.name} does not capture {', '.join(added)} yet, and one of MariaDB learns tables at its"
            f" beginning only: run `cdc connector apply {definition.name} --anew`."
        )


async def _put(client: Connect, name: str, config: Mapping[str, str], dsn: str) -> None:
    try:
        await client.put(name, config)
    except ConnectorFailed as error:
        raise ConnectorFailed(kinds.scrubbed(str(error), dsn)) from None


async def _restart(client: Connect, name: str, *, only_failed: bool = True) -> None:
    flags = f"includeTasks=true&onlyFailed={str(only_failed).lower()}"
    await client.request("POST", f"/connectors/{name}/restart?{flags}")


async def _status(client: Connect, name: str) -> ConnectorStatus:
    found = await client.status(name)
    if found is None:
        raise ConnectorFailed(f"Connect has no connector {name}: create it with `cdc connector apply {name}`.")
    return found


async def _settled(client: Connect, name: str, dsn: str, patience: float) -> ConnectorStatus:
    """Wait until the connector runs and goes on running, or raise with the reason."""
    started = time.monotonic()
    steady_since: float | None = None
    while True:
        found, now = await client.status(name), time.monotonic()
        # a status from before the restart may still say FAILED for a moment
        if found is not None and found.failed and now - started > SETTLE:
            reason = kinds.scrubbed(found.reason or "no reason given", dsn) if dsn else found.reason
            raise ConnectorFailed(
                f"Connector {name} has failed: {reason}; when that is mended: `cdc connector apply {name}`."
            )
        steady_since = (steady_since or now) if found is not None and found.settled else None
        if found is not None and steady_since is not None and now - steady_since >= SETTLE:
            return found
        if now - started > patience:
            state = "unknown to Connect" if found is None else found.state
            raise SourceUnavailable(f"Connector {name} is {state} after {patience:.0f} s: look at Connect's log.")
        await asyncio.sleep(POLL)


async def _until(client: Connect, name: str, state: str, patience: float) -> ConnectorStatus:
    give_up = time.monotonic() + patience
    while True:
        found = await _status(client, name)
        if found.state == state and all(task.state in (state, "FAILED") for task in found.tasks):
            return found
        if time.monotonic() > give_up:
            raise SourceUnavailable(
                f"Connector {name} is {found.state}, not {state}, after {patience:.0f} s: try again."
            )
        await asyncio.sleep(POLL)


async def _forget(client: Connect, name: str, patience: float = 30.0) -> None:
    """Without its slot the position that Connect remembers leads nowhere: the next of that name begins anew."""
    await client.request("PUT", f"/connectors/{name}/stop")
    await _until(client, name, "STOPPED", patience)
    await client.request("DELETE", f"/connectors/{name}/offsets")


async def _gone(client: Connect, name: str, patience: float = 30.0) -> None:
    give_up = time.monotonic() + patience
    while await client.status(name) is not None:
        if time.monotonic() > give_up:
            raise SourceUnavailable(f"Connect still has connector {name} {patience:.0f} s after its delete: try again.")
        await asyncio.sleep(POLL)
