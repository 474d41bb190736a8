"""The rights that a connector's user needs in its source, and no more, as SQL for who may give them."""

from __future__ import annotations

from collections.abc import Iterator

from psycopg import sql

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.mariadb_config import OWN_TABLE, RIGHTS, quoted
from connectors.sources.postgres import OWN_TABLES


def grants(definition: ConnectorDefinition, user: str, database: str) -> str:
    """Statements to be run once by a superuser, or by the tables' owner who may make roles; they may be run again.

    The user gets no rights on other tables, and may not make publications: the connector's is made here.
    """
    if definition.kind == "mariadb":
        return "\n".join(_mariadb_lines(definition, user))
    return "\n".join(
        line if isinstance(line, str) else line.as_string(None) + ";" for line in _lines(definition, user, database)
    )


def _lines(definition: ConnectorDefinition, user: str, database: str) -> Iterator[str | sql.Composed]:
    role = sql.Identifier(user)
    own = {definition.heartbeat_table: OWN_TABLES["heartbeat"], definition.signal_table: OWN_TABLES["signal"]}
    captured = sql.SQL(", ").join(sql.Identifier(*name.split(".")) for name in definition.captured)
    schemas = sorted({name.partition(".")[0] for name in definition.captured})
    publication = sql.Identifier(definition.publication)
    yield f"-- What the connector {definition.name} needs in the database {database}. Its password: \\password {user}"
    yield from (
        sql.SQL("DO $$ BEGIN IF to_regrole({name}) IS NULL THEN CREATE ROLE {role} LOGIN; END IF; END $$").format(
            name=sql.Literal(role.as_string(None)), role=role
        ),
        sql.SQL("ALTER ROLE {role} LOGIN REPLICATION").format(role=role),
        sql.SQL("GRANT CONNECT ON DATABASE {database} TO {role}").format(database=sql.Identifier(database), role=role),
    )
    yield "-- its own tables: a heartbeat, and signals for snapshots while it streams"
    for name, columns in own.items():
        schema, _, _ = name.partition(".")
        yield sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
        yield sql.SQL("CREATE TABLE IF NOT EXISTS {} (" + columns + ")").format(sql.Identifier(*name.split(".")))
    yield "-- what it reads, and what it writes"
    yield sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(sql.SQL(", ").join(map(sql.Identifier, schemas)), role)
    yield sql.SQL("GRANT SELECT ON {} TO {}").format(captured, role)
    written = sql.SQL(", ").join(sql.Identifier(*name.split(".")) for name in own)
    yield sql.SQL("GRANT INSERT, UPDATE, DELETE ON {} TO {}").format(written, role)
    yield '-- with this in the definition, the connector leaves it alone: [extra] "publication.autocreate.mode" = "disabled"'
    yield sql.SQL(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_publication WHERE pubname = {name})"
        " THEN CREATE PUBLICATION {publication} WITH (publish_via_partition_root = true); END IF; END $$"
    ).format(name=sql.Literal(definition.publication), publication=publication)
    yield sql.SQL("ALTER PUBLICATION {} SET TABLE {}").format(publication, captured)


def _mariadb_lines(definition: ConnectorDefinition, user: str) -> Iterator[str]:
    account = "'" + user.replace("\\", "\\\\").replace("'", "\\'") + "'@'%'"
    own = quoted(definition.heartbeat_table)
    yield f"-- What the connector {definition.name} needs. Its password: ALTER USER {account} IDENTIFIED BY '…';"
    yield f"CREATE USER IF NOT EXISTS {account};"
    yield f"GRANT {', '.join(RIGHTS)} ON *.* TO {account};"
    yield "-- its own table, the heartbeat"
    yield f"CREATE DATABASE IF NOT EXISTS {quoted(definition.heartbeat_table.partition('.')[0])};"
    yield f"CREATE TABLE IF NOT EXISTS {own} ({OWN_TABLE});"
    yield "-- what it reads, and what it writes"
    for table in definition.tables:
        yield f"GRANT SELECT ON {quoted(table)} TO {account};"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {own} TO {account};"


__all__ = ["grants"]
