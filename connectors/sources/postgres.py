"""Postgres as a source: its catalogue, and what the connector needs to find there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from pipeline.authoring.catalog import Catalog, Column, ReplicaIdentity, Table
from pipeline.errors import SettingsError, SourceError, SourceUnavailable

CONNECT_TIMEOUT = 10
OWN_TABLES = {
    "heartbeat": "id int PRIMARY KEY, system_id text NOT NULL, timeline int NOT NULL, at timestamptz NOT NULL",
    "signal": "id text PRIMARY KEY, type text NOT NULL, data text",
}
"""Columns of the tables that a connector has of its own."""
IDENTITIES: dict[str, ReplicaIdentity] = {"d": "default", "f": "full", "i": "index", "n": "nothing"}

TABLES = """
SELECT c.oid, n.nspname || '.' || c.relname AS name, c.relreplident::text AS identity
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%%'
  AND (%(schemas)s::text[] IS NULL OR n.nspname = ANY (%(schemas)s))
  AND (%(tables)s::text[] IS NULL OR n.nspname || '.' || c.relname = ANY (%(tables)s))
"""
COLUMNS = """
SELECT a.attrelid AS oid, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
  NOT a.attnotnull AS nullable, a.attgenerated <> '' AS generated,
  (a.atthasdef AND a.attgenerated = '') OR a.attidentity <> '' AS "default",
  a.attlen = -1 AND a.attstorage <> 'p' AS toastable,
  CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'c' THEN 'composite' WHEN 'r' THEN 'range' WHEN 'm' THEN 'multirange'
    WHEN 'd' THEN format_type(t.typbasetype, t.typtypmod) END AS base
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = ANY (%(oids)s) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""
INDEXES = """
SELECT i.indrelid AS oid, i.indisprimary AS is_primary, i.indisunique AS is_unique, array_agg(a.attname::text ORDER BY k.place) AS columns
FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
  LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
WHERE i.indrelid = ANY (%(oids)s) AND i.indisvalid AND i.indpred IS NULL AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid, i.indrelid, i.indisprimary, i.indisunique
ORDER BY i.indisprimary DESC, columns
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot as the source sees it."""

    name: str
    active: bool
    confirmed: str | None
    """The log position up to which the connector has confirmed."""
    behind_bytes: int | None
    """Log not yet confirmed."""
    kept_bytes: int | None
    """Log that the source keeps on its disk for this slot."""
    wal_status: str | None


def heartbeat_query(table: str) -> str:
    """The heartbeat's statement: one row that says which source log the stream comes from."""
    return (
        f"INSERT INTO {table} (id, system_id, timeline, at) "
        "SELECT 1, system_identifier::text, ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int,"
        " now() FROM pg_control_system() "
        "ON CONFLICT (id) DO UPDATE SET system_id = EXCLUDED.system_id, timeline = EXCLUDED.timeline, at = EXCLUDED.at"
    )


def parsed(dsn: str) -> dict[str, Any]:
    """A DSN's parts; raises SettingsError, without the DSN, where it is none."""
    try:
        return conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        raise SettingsError(
            "source.dsn is no libpq URI (postgresql://user@host:5432/database): set it again."
        ) from None


def where(dsn: str) -> str:
    """The database of a DSN for messages, without user and password."""
    parts = parsed(dsn)
    host, port = parts.get("host") or "localhost", parts.get("port") or 5432
    return f"{parts.get('dbname') or parts.get('user') or 'postgres'} at {host}:{port}"


def scrubbed(text: str, dsn: str) -> str:
    """Text without the DSN's password."""
    password = conninfo_to_dict(dsn).get("password")
    return text.replace(str(password), "**********") if password else text


@contextmanager
def connected(dsn: str, *, autocommit: bool = False) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    """A connection that commits at the end; what goes wrong is a SourceError without the password."""
    place = where(dsn)
    try:
        connection = psycopg.connect(
            dsn,
            autocommit=autocommit,
            row_factory=dict_row,
            connect_timeout=CONNECT_TIMEOUT,
            application_name="cdc-pipeline",
        )
    except psycopg.OperationalError as error:
        raise SourceUnavailable(
            f"The source database {place} can't be reached ({reason(error, dsn)}): check source.dsn and that it is up."
        ) from None
    with explained(dsn), connection:
        yield connection


@contextmanager
def explained(dsn: str) -> Iterator[None]:
    """What psycopg raises becomes a SourceError without the password."""
    place = where(dsn)
    try:
        yield
    except psycopg.OperationalError as error:
        raise SourceUnavailable(f"The source database {place} broke off ({reason(error, dsn)}): try again.") from None
    except psycopg.Error as error:
        raise SourceError(
            f"The source database {place} refused ({reason(error, dsn)}): check the rights of the user in source.dsn."
        ) from None


def read_catalog(dsn: str, *, schemas: Sequence[str] | None = None, tables: Sequence[str] | None = None) -> Catalog:
    """The ordinary and partitioned tables (views and partitions are left out) of these schemas, or of all."""
    wanted = {"schemas": list(schemas) if schemas else None, "tables": list(tables) if tables else None}
    with connected(dsn) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        heads = connection.execute(TABLES, wanted).fetchall()
        oids = {"oids": [head["oid"] for head in heads]}
        columns = connection.execute(COLUMNS, oids).fetchall()
        indexes = connection.execute(INDEXES, oids).fetchall()
    return _catalog(heads, columns, indexes)


def prepare(dsn: str, *, heartbeat_table: str, signal_table: str, user: str | None = None) -> list[str]:
    """Create the connector's own tables where they are missing, and let `user` write them; returns what was created."""
    columns = {heartbeat_table: OWN_TABLES["heartbeat"], signal_table: OWN_TABLES["signal"]}
    created = []
    with connected(dsn) as connection:
        # two applies at once would both find the tables missing
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('cdc.prepare'))")
        for name, definition in columns.items():
            schema, table = name.split(".")
            row = connection.execute("SELECT to_regclass(%s) IS NULL AS missing", [name]).fetchone()
            if row is not None and row["missing"]:
                _create(connection, schema, table, definition)
                created.append(name)
            if user is not None:
                _grant(connection, schema, table, user)
    return created


def unreadable(dsn: str, user: str, tables: Sequence[str]) -> list[str]:
    """The tables that this user may not read: the snapshot would fail, and only after long retries."""
    with connected(dsn) as connection:
        rows = connection.execute(
            "SELECT n.nspname || '.' || c.relname AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname || '.' || c.relname = ANY (%(tables)s) AND NOT (has_table_privilege(%(user)s, c.oid, 'SELECT')"
            " AND has_schema_privilege(%(user)s, n.oid, 'USAGE')) ORDER BY 1",
            {"tables": list(tables), "user": user},
        ).fetchall()
    return [row["name"] for row in rows]


def slot(dsn: str, name: str) -> Slot | None:
    """The replication slot, or None where there is none."""
    with connected(dsn) as connection:
        row = connection.execute(
            "SELECT slot_name, active, confirmed_flush_lsn::text AS confirmed, wal_status,"
            " pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)::bigint AS behind,"
            " pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS kept"
            " FROM pg_replication_slots WHERE slot_name = %s",
            [name],
        ).fetchone()
    if row is None:
        return None
    return Slot(
        row["slot_name"], row["active"], row["confirmed"], row["behind"], row["kept"], row["wal_status"]
    )  # fmt: skip


def position(dsn: str, txid: int | None = None) -> int:
    """The end of the source's log: whoever has committed before this call, has committed before that place.

    Raises SourceError unless the transaction `txid` (`pg_current_xact_id()`) has.
    """
    with connected(dsn) as connection:
        # asked in this order: what has committed when the status is read, is before the end read after it
        if txid is not None:
            row = connection.execute("SELECT pg_xact_status(%s::text::xid8) AS status", [str(txid)]).fetchone()
            _assure_committed(dsn, txid, row["status"] if row is not None else None)
        row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS at").fetchone()
    assert row is not None
    return int(row["at"])


def _assure_committed(dsn: str, txid: int, status: str | None) -> None:
    if status not in ("committed", None):  # None: so long ago that Postgres has forgotten it
        raise SourceError(
            f"Transaction {txid} of {where(dsn)} is {status}: there is nothing to wait for before it commits."
        )


def drop_slot(dsn: str, name: str) -> bool:
    """Drop the slot, ending the session that still reads it; False where there is none."""
    with connected(dsn) as connection:
        found = connection.execute(
            "SELECT active_pid FROM pg_replication_slots WHERE slot_name = %s", [name]
        ).fetchone()
        if found is None:
            return False
        if found["active_pid"] is not None:
            connection.execute("SELECT pg_terminate_backend(%s, 5000)", [found["active_pid"]])
        connection.execute("SELECT pg_drop_replication_slot(%s)", [name])
    return True


def drop_publication(dsn: str, name: str) -> bool:
    """Drop the publication; False where there is none."""
    with connected(dsn) as connection:
        if connection.execute("SELECT FROM pg_publication WHERE pubname = %s", [name]).fetchone() is None:
            return False
        connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
    return True


def _create(connection: psycopg.Connection[dict[str, Any]], schema: str, table: str, columns: str) -> None:
    if connection.execute("SELECT to_regnamespace(%s) AS found", [schema]).fetchone() == {"found": None}:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    name = sql.Identifier(schema, table)
    connection.execute(sql.SQL("CREATE TABLE {} (" + columns + ")").format(name))


def _grant(connection: psycopg.Connection[dict[str, Any]], schema: str, table: str, user: str) -> None:
    to = sql.Identifier(user)
    connection.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.Identifier(schema), to))
    connection.execute(
        sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}").format(sql.Identifier(schema, table), to)
    )


def _catalog(heads: list[dict[str, Any]], columns: list[dict[str, Any]], indexes: list[dict[str, Any]]) -> Catalog:
    by_table: dict[int, list[Column]] = defaultdict(list)
    for row in columns:
        by_table[row.pop("oid")].append(Column(**row))
    keys: dict[int, tuple[str, ...]] = {}
    others: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    unique: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for row in indexes:
        names = tuple(row["columns"])
        if row["is_primary"]:
            keys[row["oid"]] = names
        elif None not in names:
            others[row["oid"]].append(names)
            if row["is_unique"]:
                unique[row["oid"]].append(names)
    return Catalog.of(
        Table(
            name=head["name"],
            columns=tuple(by_table[head["oid"]]),
            primary_key=keys.get(head["oid"], ()),
            replica_identity=IDENTITIES[head["identity"]],
            indexes=tuple(dict.fromkeys(others[head["oid"]])),
            unique=tuple(dict.fromkeys(unique[head["oid"]])),
        )
        for head in heads
    )


def reason(error: psycopg.Error, dsn: str) -> str:
    """The database's own words, without the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return scrubbed(lines[0].rstrip("."), dsn) if lines else type(error).__name__
