"""What is wrong around the pipeline: the source, its slots, Kafka's topics, Elasticsearch and the clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import psycopg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError
from pydantic import BaseModel

from pipeline.addresses import KafkaAddress
from pipeline.reach import unreachable

SLOT_LIMIT = 1 << 30
"""Bytes of log that a slot may hold before it is worth a word."""
CLOCK_LIMIT = 2.0
"""Seconds by which two clocks may differ."""


class Finding(BaseModel):
    """One thing looked at; `fix` says what to do where it is not well."""

    subject: str
    level: Literal["ok", "warning", "error"]
    found: str
    fix: str = ""


def ok(subject: str, found: str) -> Finding:
    return Finding(subject=subject, level="ok", found=found)


def warn(subject: str, found: str, fix: str) -> Finding:
    return Finding(subject=subject, level="warning", found=found, fix=fix)


def bad(subject: str, found: str, fix: str) -> Finding:
    return Finding(subject=subject, level="error", found=found, fix=fix)


# ---- the source ---------------------------------------------------------------------------------------------


def source(dsn: str, tables: list[str], slots: Mapping[str, str]) -> list[Finding]:
    """wal_level, slots and the bytes they hold, replica identity, the clock; `dsn` is never shown.

    `slots`: the connectors' names, by the slots that they read.
    """
    try:
        with psycopg.connect(dsn, connect_timeout=5) as db:
            return [*_server(db), *_slots(db, slots), *_identities(db, tables)]
    except psycopg.OperationalError as error:
        reason = str(error).splitlines()[0].rpartition("failed: ")[2]
        return [bad("source", f"can't be reached: {reason}", "check source.dsn and that Postgres is up")]


def _server(db: psycopg.Connection) -> Iterator[Finding]:
    row = db.execute(
        "SELECT current_setting('server_version'), current_setting('wal_level'), extract(epoch FROM clock_timestamp()),"
        " current_setting('max_slot_wal_keep_size'), pg_is_in_recovery()"
    ).fetchone()
    assert row is not None
    version, level, clock, keep, standby = row
    yield ok("source version", f"Postgres {version}")
    if level == "logical":
        yield ok("wal_level", level)
    else:
        yield bad("wal_level", level, "ALTER SYSTEM SET wal_level = 'logical'; and restart Postgres")
    yield _clock("source clock", float(clock))
    if keep == "-1":
        yield warn(
            "max_slot_wal_keep_size", "unlimited: a slot that nobody reads fills the disk",
            "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; a slot beyond it is lost and needs a rebuild",
        )  # fmt: skip
    else:
        yield ok("max_slot_wal_keep_size", keep)
    if standby:
        yield warn("source role", "a standby", "name the primary in source.dsn: heartbeats and signals are written")


class SlotState(NamedTuple):
    """A logical slot, as the source sees it."""

    active: bool
    kept_bytes: int
    """Log that the source keeps on its disk for it."""
    wal_status: str


def slot(connector: str, name: str, found: SlotState | None) -> Finding:
    """What is to be said of a connector's slot; None: the source has none of that name."""
    subject = f"slot {name}"
    if found is None:
        fix = f"cdc connector apply {connector}; it says where changes are missing, and then it takes --anew"
        return bad(subject, "is not there", fix)
    held = f"holds {found.kept_bytes:,} bytes of log"
    text = f"{held}, {'read' if found.active else 'not read'} now, {found.wal_status}"
    if found.wal_status == "lost":
        fix = f"cdc connector apply {connector} --anew: a new snapshot is read"
        return bad(subject, "is lost: the source has removed log that was not read yet", fix)
    if not found.active:
        return bad(subject, text, f"cdc connector restart {connector}, or resume where it was paused")
    if found.kept_bytes > SLOT_LIMIT:
        return warn(subject, text, f"see why the connector is slow: cdc connector status {connector}")
    return ok(subject, text)


def _slots(db: psycopg.Connection, wanted: Mapping[str, str]) -> Iterator[Finding]:
    known = {
        name: SlotState(active, int(held or 0), status)
        for name, active, held, status in db.execute(
            "SELECT slot_name, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), wal_status"
            " FROM pg_replication_slots WHERE slot_type = 'logical' AND database = current_database()"
        )
    }
    for name, connector in wanted.items():
        yield slot(connector, name, known.get(name))
    for name in sorted(set(known) - set(wanted)):
        if not known[name].active:
            yield warn(
                f"slot {name}", f"nobody reads it, and it holds {known[name].kept_bytes:,} bytes of log",
                f"SELECT pg_drop_replication_slot('{name}'); if it is no longer needed",
            )  # fmt: skip


def _identities(db: psycopg.Connection, tables: list[str]) -> Iterator[Finding]:
    known: dict[str, str] = dict(
        db.execute(
            "SELECT n.nspname || '.' || c.relname, c.relreplident::text FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')"
        ).fetchall()
    )
    for table in tables:
        match known.get(table):
            case None:
                yield bad(f"table {table}", "is not there", "create it, or take it out of the connector's tables")
            case "n":
                yield bad(f"table {table}", "REPLICA IDENTITY NOTHING", f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT")
            case "i":
                yield bad(
                    f"table {table}", "REPLICA IDENTITY USING INDEX", f"ALTER TABLE {table} REPLICA IDENTITY DEFAULT"
                )
            case identity:
                yield ok(f"table {table}", f"replica identity {'full' if identity == 'f' else 'default'}")


def _clock(subject: str, theirs: float) -> Finding:
    apart = theirs - time.time()
    if abs(apart) > CLOCK_LIMIT:
        return warn(subject, f"{apart:+.1f} s from ours", "synchronise the clocks: delays are told by them")
    return ok(subject, f"{apart:+.2f} s from ours")


# ---- Kafka --------------------------------------------------------------------------------------------------


async def kafka(address: KafkaAddress, topics: dict[str, float]) -> list[Finding]:
    """`topics`: each input topic with the retention in days that its connector states."""
    admin = AIOKafkaAdminClient(**address.options(), client_id="cdc-doctor", request_timeout_ms=5000)
    try:
        await admin.start()
        known = set(await admin.list_topics())
        found: list[Finding] = [ok("kafka", f"{len(known)} topics")]
        for topic, days in sorted(topics.items()):
            if topic not in known:
                found.append(
                    warn(f"topic {topic}", "is not there yet", "cdc connector apply makes it; a worker does too")
                )
            else:
                found.append(await _topic(admin, topic, days))
        return found
    except (KafkaError, OSError) as error:
        why = str(await unreachable(address, error))
        return [bad("kafka", why, "check kafka.bootstrap and that Kafka is up")]
    finally:
        await admin.close()


async def _topic(admin: AIOKafkaAdminClient, topic: str, days: float) -> Finding:
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    settings: dict[str, Any] = {
        entry[0]: entry[1] for answer in answers for resource in answer.resources for entry in resource[4]
    }
    policy, kept = settings.get("cleanup.policy", ""), int(settings.get("retention.ms") or -1)
    if "compact" in policy:
        return warn(
            f"topic {topic}", f"cleanup.policy {policy}: compaction drops deletes and transaction counts",
            "set cleanup.policy=delete, or use consistency = 'row'",
        )  # fmt: skip
    if 0 <= kept < days * 86_400_000:
        return warn(
            f"topic {topic}", f"keeps {kept / 86_400_000:.1f} days, the connector says {days:g}",
            "raise retention.ms: a rebuild from the log needs it",
        )  # fmt: skip
    return ok(f"topic {topic}", f"{policy}, keeps {'for ever' if kept < 0 else f'{kept / 86_400_000:g} days'}")
