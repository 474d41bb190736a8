"""Which log of the source a connector reads: the label of its records, and whether the source went back beneath it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from connectors.sources import postgres
from connectors.sources.connect import Connect, connect
from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.notices import newest_commit
from pipeline.addresses import ConnectAddress, KafkaAddress, MariadbAddress
from pipeline.errors import PositionWentBack, SlotLost, SourceUnavailable
from pipeline.events.sourcelog import HEADER, Gtid, SourceLog, parsed

ALIAS: Final = "cdcLog"
LABEL: Final = f"transforms.{ALIAS}.value.literal"
NO_SNAPSHOT: Final = frozenset({"no_data", "configuration_based"})
IDENTITY = """
SELECT system_identifier::text AS system, pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS position,
  (('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int)::text AS timeline,
  EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %s AND wal_status IS DISTINCT FROM 'lost') AS slot
FROM pg_control_system()
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """The source's log as it is now: system id, timeline, its end, and whether it has the slot and what the slot needs.

    MariaDB's are the server's id, its GTID domain, and whether its binlogs have what the connector needs.
    """

    system: str
    timeline: str
    position: int
    slot: bool


def identity(definition: ConnectorDefinition, dsn: str, read: int | None = None) -> Identity:
    """Ask the source; `read`: the position up to which the connector has read. Raises SourceUnavailable."""
    if definition.kind == "mariadb":
        from connectors.sources import mariadb
        from connectors.sources.mariadb_client import connected

        with connected(MariadbAddress.of(dsn)) as session:
            kept = read is None or mariadb.keeps(session, read)
            return Identity(*mariadb.server(session), mariadb.position_in(session), kept)
    with postgres.connected(dsn) as connection:
        row: Any = connection.execute(IDENTITY, [definition.slot]).fetchone()
    return Identity(row["system"], row["timeline"], int(row["position"]), row["slot"])


def labelled(config: Mapping[str, str], label: str) -> dict[str, str]:
    """The configuration by which every record bears the label."""
    chain = [name for name in config.get("transforms", "").split(",") if name]
    return {
        **config,
        "transforms": ",".join([*chain, ALIAS]),
        f"transforms.{ALIAS}.type": "org.apache.kafka.connect.transforms.InsertHeader",
        f"transforms.{ALIAS}.header": HEADER,
        LABEL: label,
    }


def log_of(config: Mapping[str, str] | None) -> SourceLog:
    """The log whose label a running configuration gives its records."""
    return parsed((config or {}).get(LABEL, ""))


async def running(address: ConnectAddress, name: str) -> str | None:
    """The label that a connector gives its records now, or None where it has none; raises ConnectUnavailable."""
    async with connect(address) as client:
        return log_of(await client.config(name)).label or None


def begun(config: Mapping[str, str], source: Identity, *, fresh: bool) -> SourceLog:
    """A log that a connector of this configuration begins with now."""
    fresh = fresh and config["snapshot.mode"] not in NO_SNAPSHOT
    return SourceLog(int(time.time() * 1000), source.system, source.timeline, fresh)


def problem(name: str, log: SourceLog, source: Identity, offset: int | None) -> PositionWentBack | SlotLost | None:
    """Why the connector can't go on; `offset`: the position up to which it has read."""
    again = (
        f"`cdc connector apply {name} --anew`: a new snapshot is read, documents are served as they are until it is"
        " complete, and what is no longer in the source is then removed."
    )
    if log.system and log.system != source.system:
        return PositionWentBack(
            f"Connector {name} read another database server (system {log.system}, now {source.system}): it was restored"
            f" or upgraded, and positions begin anew. Run {again}"
        )
    if offset is not None and source.position < offset:
        return PositionWentBack(
            f"Connector {name} has read up to {offset:,}, but the source's log ends at {source.position:,}: the source"
            f" was restored to an earlier state. Run {again}"
        )
    if offset is not None and not source.slot:
        return SlotLost(
            f"Connector {name} has read up to {offset:,}, but the source no longer has its slot, or the log that it"
            f" needs, so changes since then are missing. Run {again}"
        )
    return None


async def offset(client: Connect, name: str) -> int | None:
    """The position that Connect remembers for a connector it knows; None where it has read nothing."""
    found = await client.request("GET", f"/connectors/{name}/offsets", missing_ok=True)
    known = [entry["offset"] for entry in (found or {}).get("offsets", ()) if entry.get("offset")]
    read = [int(one["lsn"]) for one in known if one.get("lsn") is not None]
    read += [Gtid.newest(one["gtids"]).sequence for one in known if one.get("gtids")]
    return max(read, default=None)


async def reached(
    client: Connect, definition: ConnectorDefinition, log: SourceLog, kafka: KafkaAddress | None
) -> int | None:
    """The position up to which a connector has read: what Connect remembers is behind what Kafka has, by up to a minute.

    Where Kafka can't be asked, what Connect remembers is all there is.
    """
    found = [await offset(client, definition.name)]
    if kafka is not None and log.number:
        with suppress(SourceUnavailable):
            newest = await newest_commit(kafka, definition.transaction_topic, log.__eq__)
            found.append(newest and newest[0])
    return max((one for one in found if one is not None), default=None)


async def resolved(
    client: Connect, definition: ConnectorDefinition, now: Mapping[str, str] | None, config: Mapping[str, str], dsn: str,
    kafka: KafkaAddress | None = None,
) -> dict[str, str]:  # fmt: skip
    """The configuration with its label; a connector that Connect does not know is created, stopped, to see what is
    remembered of an earlier one of its name. Raises PositionWentBack or SlotLost."""
    name, log = definition.name, log_of(now)
    source = await asyncio.to_thread(identity, definition, dsn)
    fresh = begun(config, source, fresh=True)
    if now is None:
        body = {"name": name, "config": labelled(config, fresh.label), "initial_state": "STOPPED"}
        await client.request("POST", "/connectors", json=body)
    read = await reached(client, definition, log, kafka)
    source = await asyncio.to_thread(identity, definition, dsn, read)  # as it is now: it went on meanwhile
    wrong = problem(name, log, source, read)
    if wrong is not None:
        raise wrong
    if not log.number:
        log = fresh if read is None else begun(config, source, fresh=False)
    return labelled(config, log.label)
