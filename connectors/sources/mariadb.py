"""MariaDB as a source: its catalogue, what the connector needs to find there, and where its log stands.

A position is the sequence number of a GTID. In one replication domain, with `gtid_strict_mode`, it rises by every
transaction, on a replica that became the primary too; places in binlog files would begin anew there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from connectors.sources.mariadb_client import Session, connected
from connectors.sources.mariadb_config import OWN_TABLE, RIGHTS, UNPARSED, quoted
from pipeline.addresses import MariadbAddress
from pipeline.authoring.catalog import UNREADABLE, Catalog, Column, Table
from pipeline.errors import SourceError
from pipeline.events.sourcelog import Gtid

SYSTEM: Final = ("information_schema", "mysql", "performance_schema", "sys")
NEEDED: Final = {
    "log_bin": ("ON", "log_bin"),
    "binlog_format": ("ROW", "binlog_format=ROW"),
    "binlog_row_image": ("FULL", "binlog_row_image=FULL"),
    "gtid_strict_mode": ("ON", "gtid_strict_mode=ON"),
}
"""Server variables that events are read right by: their value, and what to write into the server's configuration."""
WRONG: Final = frozenset(
    {
        "uuid", "point", "linestring", "polygon", "geometry", "geometrycollection", "multipoint", "multilinestring",
        "multipolygon",
    }
)  # fmt: skip
"""Types whose values the connector gets wrong (a UUID that ends with zero bytes), or that are not read here."""

TABLES = """
SELECT CONCAT(table_schema, '.', table_name) AS name FROM information_schema.tables
WHERE table_type = 'BASE TABLE' AND table_schema NOT IN %(system)s
"""
COLUMNS = """
SELECT CONCAT(table_schema, '.', table_name) AS name, column_name AS col, column_type AS type, data_type AS plain,
  is_nullable = 'YES' AS nullable, column_default IS NOT NULL AND column_default <> 'NULL' OR extra LIKE '%%auto_increment%%' AS has_default,
  EXISTS (SELECT 1 FROM information_schema.check_constraints k WHERE k.constraint_schema = c.table_schema
    AND k.table_name = c.table_name AND k.check_clause = CONCAT('json_valid(`', c.column_name, '`)')) AS is_json
FROM information_schema.columns c WHERE table_schema NOT IN %(system)s
"""
INDEXES = """
SELECT CONCAT(table_schema, '.', table_name) AS name, index_name AS idx, non_unique = 0 AS is_unique, column_name AS col,
  sub_part IS NOT NULL OR index_type NOT IN ('BTREE', 'HASH') AS partly
FROM information_schema.statistics WHERE table_schema NOT IN %(system)s
"""


def read_catalog(dsn: str, *, schemas: Sequence[str] | None = None, tables: Sequence[str] | None = None) -> Catalog:
    """The tables (views are left out) of these databases, or of all that the user sees."""
    wanted: dict[str, Any] = {"system": SYSTEM}
    tests = ""
    if schemas:
        wanted["schemas"], tests = tuple(schemas), tests + " AND table_schema IN %(schemas)s"
    if tables:
        wanted["tables"], tests = tuple(tables), tests + " AND CONCAT(table_schema, '.', table_name) IN %(tables)s"
    with connected(MariadbAddress.of(dsn)) as session:
        heads = session.mappings(TABLES + tests, wanted)
        columns = session.mappings(COLUMNS + tests + " ORDER BY name, ordinal_position", wanted)
        indexes = session.mappings(INDEXES + tests + " ORDER BY name, idx, seq_in_index", wanted)
    return _catalog(heads, columns, indexes)


def _catalog(heads: list[dict[str, Any]], columns: list[dict[str, Any]], indexes: list[dict[str, Any]]) -> Catalog:
    by_table: dict[str, list[Column]] = defaultdict(list)
    for row in columns:
        by_table[row["name"]].append(
            Column(
                name=row["col"],
                type="json" if row["is_json"] else row["type"],
                nullable=bool(row["nullable"]),
                default=bool(row["has_default"]),
                base=UNREADABLE if row["plain"] in WRONG | UNPARSED else "enum" if row["plain"] == "enum" else None,
            )
        )
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in indexes:
        found[row["name"]][row["idx"]].append(row)
    return Catalog.of(_table(head["name"], by_table[head["name"]], found[head["name"]]) for head in heads)


def _table(name: str, columns: list[Column], indexes: Mapping[str, list[dict[str, Any]]]) -> Table:
    whole = {index: rows for index, rows in indexes.items() if not any(row["partly"] for row in rows)}
    named = {index: tuple(row["col"] for row in rows) for index, rows in whole.items()}
    key = named.pop("PRIMARY", ())
    return Table(
        name=name,
        columns=tuple(columns),
        primary_key=key,
        replica_identity="full",
        indexes=tuple(dict.fromkeys(sorted(named.values()))),
        unique=tuple(dict.fromkeys(sorted(own for index, own in named.items() if whole[index][0]["is_unique"]))),
    )


def unfit(dsn: str) -> list[str]:
    """What is wrong with the server for a connector: each with what to write into its configuration."""
    with connected(MariadbAddress.of(dsn)) as session:
        found = {str(name).lower(): str(value) for name, value in session.rows("SHOW GLOBAL VARIABLES")}
        domains = _domains(session)
    wrong = [
        f"{name} is {found.get(name)}: set {fix}" for name, (value, fix) in NEEDED.items() if found.get(name) != value
    ]
    if found.get("server_id") in (None, "0"):
        wrong.append("server_id is not set: set server_id to a number of its own")
    if len(domains) > 1:
        wrong.append(f"its binlog has the GTID domains {', '.join(map(str, domains))}: positions of two have no order")
    return wrong


def prepare(dsn: str, *, heartbeat_table: str, user: str | None = None) -> list[str]:
    """Create the connector's own table where it is missing, and let `user` write it; returns what was created."""
    database, _, table = heartbeat_table.partition(".")
    with connected(MariadbAddress.of(dsn)) as session:
        there = session.rows(
            "SELECT 1 FROM information_schema.tables WHERE table_schema = %s AND table_name = %s", (database, table)
        )
        if not there:
            session.rows(f"CREATE DATABASE IF NOT EXISTS {quoted(database)}")
            session.rows(f"CREATE TABLE IF NOT EXISTS {quoted(heartbeat_table)} ({OWN_TABLE})")
        if user is not None and user != MariadbAddress.of(dsn).user:
            session.rows(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {quoted(heartbeat_table)} TO {_account(session, user)}"
            )
    return [] if there else [heartbeat_table]


def lacking(dsn: str, user: str, tables: Sequence[str]) -> list[str]:
    """The GRANT statements that this user lacks: the snapshot or the stream would fail."""
    with connected(MariadbAddress.of(dsn)) as session:
        itself = user == MariadbAddress.of(dsn).user
        account = _spelled(str(session.one("SELECT CURRENT_USER()")[0])) if itself else _account(session, user)
        held = [str(line) for (line,) in session.rows("SHOW GRANTS" if itself else f"SHOW GRANTS FOR {account}")]
    everywhere = _rights(held, r"\*\.\*")
    missing = [right for right in RIGHTS if not {right, "ALL PRIVILEGES"} & everywhere]
    found = [f"GRANT {', '.join(missing)} ON *.* TO {account};"] if missing else []
    if {"SELECT", "ALL PRIVILEGES"} & everywhere:
        return found
    for table in tables:
        database, _, name = table.partition(".")
        own = _rights(held, rf"`{re.escape(database)}`\.(?:\*|`{re.escape(name)}`)")
        if not {"SELECT", "ALL PRIVILEGES"} & own:
            found.append(f"GRANT SELECT ON {quoted(table)} TO {account};")
    return found


def _rights(held: Sequence[str], on: str) -> set[str]:
    lines = [match[1] for line in held if (match := re.match(rf"GRANT (.+?) ON {on} TO ", line))]
    return {right.strip() for line in lines for right in re.sub(r"\([^)]*\)", "", line).split(",")}


def _spelled(account: str) -> str:
    user, _, host = account.rpartition("@")
    return f"`{user}`@`{host}`"


def _account(session: Session, user: str) -> str:
    """The user's account; where he has several, the one for any host."""
    hosts = [
        str(host) for (host,) in session.rows("SELECT Host FROM mysql.user WHERE User = %s ORDER BY Host", (user,))
    ]
    if not hosts:
        raise SourceError(
            f"The source has no user {user}: create it, or set database.user of the connector to another."
        )
    return f"{quoted(user)}@{session.literal('%' if '%' in hosts else hosts[0])}"


# ---- its log ----------------------------------------------------------------------------------------------


def position(dsn: str) -> int:
    """The end of the source's log: whoever has committed before this call, has committed at or before that place."""
    with connected(MariadbAddress.of(dsn)) as session:
        return position_in(session)


def position_in(session: Session) -> int:
    gtid = str(session.one("SELECT @@gtid_binlog_pos")[0])
    return 0 if not gtid else Gtid.newest(gtid).sequence


def server(session: Session) -> tuple[str, str]:
    """The server's id and its GTID domain: they tell one log from another."""
    system, domain = session.one("SELECT @@global.server_id, @@global.gtid_domain_id")
    return str(system), str(domain)


def keeps(session: Session, sequence: int) -> bool:
    """Whether the binlogs have all that came after this position."""
    first = session.rows("SHOW BINARY LOGS")[0][0]
    start = session.one("SELECT BINLOG_GTID_POS(%s, 4)", (first,))[0]
    return not start or Gtid.newest(str(start)).sequence <= sequence


def _domains(session: Session) -> list[int]:
    return sorted({Gtid.of(part).domain for part in str(session.one("SELECT @@gtid_binlog_pos")[0]).split(",") if part})
