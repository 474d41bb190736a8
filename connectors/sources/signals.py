"""Signals to a running connector: incremental snapshots of a table, or of some of its rows.

Debezium reads the signal from the source's log, so the row that carries it is deleted in the transaction that inserts
it, and none is lost while the connector is down. It takes one snapshot at a time and remembers only the newest
signal's id: who wants one takes turns, by an advisory lock of the source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import sql

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.kinds import only_postgres
from connectors.sources.postgres import connected, explained, read_catalog, reason
from connectors.sources.postgres_rows import plain
from pipeline.authoring.catalog import Column, Table
from pipeline.errors import OperationError, SourceError

Key = tuple[Any, ...]

KEY_TYPES: Final = frozenset(
    {
        "smallint", "integer", "bigint", "oid", "numeric", "boolean", "text", "character varying", "character", "citext",
        "name", "uuid", "date", "timestamp without time zone", "timestamp with time zone", "bytea", "inet", "cidr",
        "macaddr", "enum",
    }
)  # fmt: skip
"""The types whose values in events lead back to the very row; of the others something is lost on the way."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the source had of some keys in one state of it."""

    present: frozenset[Key]
    lsn: int
    """A position not before that state: what is committed there or before it is all that the state can have."""


class Turn:
    """A connection that alone may ask the connector for snapshots."""

    def __init__(
        self, connection: psycopg.Connection[dict[str, Any]], definition: ConnectorDefinition, dsn: str
    ) -> None:
        self._connection, self._definition, self._dsn = connection, definition, dsn
        self._signals = sql.Identifier(*definition.signal_table.split("."))

    def look(self, table: str, names: Sequence[str], keys: Sequence[Key]) -> Look:
        """Which of these keys the source has now; `names` are the key's columns."""
        columns = self._columns(table, names)
        numbered = [
            sql.SQL("({}, {})").format(sql.Literal(n), _values(columns, key)) for n, key in enumerate(keys)
        ]  # fmt: skip
        same = [
            sql.SQL("t.{} = k.{}").format(sql.Identifier(c.name), sql.Identifier(f"k{i}"))
            for i, c in enumerate(columns)
        ]
        query = sql.SQL("SELECT n FROM (VALUES {}) AS k(n, {}) WHERE EXISTS (SELECT FROM {} t WHERE {})").format(
            sql.SQL(", ").join(numbered),
            sql.SQL(", ").join(sql.Identifier(f"k{i}") for i in range(len(columns))),
            _table(table),
            sql.SQL(" AND ").join(same),
        )
        with explained(self._dsn), self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            found = self._connection.execute(query).fetchall()
            return Look(frozenset(keys[row["n"]] for row in found), self._position())

    def rows(self, table: str, names: Sequence[str], keys: Sequence[Key]) -> str:
        """Ask for a snapshot of the rows with these keys; the signal's id."""
        columns = self._columns(table, names)
        named = sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
        listed = sql.SQL(", ").join(sql.SQL("({})").format(_values(columns, key)) for key in keys)
        condition = sql.SQL("({}) IN ({})").format(named, listed).as_string(self._connection)
        return self.snapshot(table, condition)

    def snapshot(self, table: str, where: str = "") -> str:
        """Ask for a snapshot of a table's rows, or of those that an SQL condition holds for; the signal's id.

        A condition that the source refuses fails the connector: try it first (`count`).
        """
        name = re.escape(table)
        data: dict[str, Any] = {"type": "incremental", "data-collections": [name]}
        if where:
            data["additional-conditions"] = [{"data-collection": name, "filter": f"({where})"}]
        return self._send("execute-snapshot", data)

    def stop(self, table: str) -> None:
        """Give up what is left of the table's snapshot."""
        self._send("stop-snapshot", {"type": "incremental", "data-collections": [re.escape(table)]})

    def count(self, table: str, where: str = "") -> int:
        """How many rows a snapshot would have; OperationError where the source refuses the condition."""
        if "?" in where:
            raise OperationError(
                "The condition has a question mark, which JDBC takes for a parameter: write it without."
            )
        condition = sql.SQL((where or "true").replace("%", "%%"))
        query = sql.SQL("SELECT count(*) AS n FROM {} WHERE ({}) AND %s").format(_table(table), condition)
        try:
            with self._connection.transaction():
                self._connection.execute("SET TRANSACTION READ ONLY")
                # a parameter makes it one statement, whatever the condition says
                row = self._connection.execute(query, [True]).fetchone()
        except psycopg.OperationalError:
            raise
        except (psycopg.Error, ValueError) as error:
            said = reason(error, self._dsn) if isinstance(error, psycopg.Error) else str(error)
            raise OperationError(f"The source refused the condition on {table}: {said}.") from None
        assert row is not None
        return int(row["n"])

    def position(self) -> int:
        """Where the source's log is now: what was committed before is at or before it."""
        with explained(self._dsn):
            return self._position()

    def _position(self) -> int:
        row = self._connection.execute("SELECT (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint AS at").fetchone()
        assert row is not None
        return int(row["at"])

    def _columns(self, table: str, names: Sequence[str]) -> list[Column]:
        found: Table = read_catalog(self._dsn, tables=[table]).table(table)
        columns = [found.column(name) for name in names]
        for column in columns:
            kind = column.base or column.type
            if plain(kind) not in KEY_TYPES:
                raise SourceError(
                    f"{table} has a key of type {column.type} ({column.name}), and its values in events do not lead back"
                    f" to the row: read the whole table again, cdc backfill {table}."
                )
        return columns

    def _send(self, kind: str, data: dict[str, Any]) -> str:
        number = f"cdc-{uuid4()}"
        with explained(self._dsn), self._connection.transaction():
            self._connection.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(self._signals), [number, kind, json.dumps(data)]
            )
            self._connection.execute(sql.SQL("DELETE FROM {} WHERE id = %s").format(self._signals), [number])
        return number


@contextmanager
def turn(definition: ConnectorDefinition, source_dsn: str) -> Iterator[Turn | None]:
    """The connector's turn; None where somebody else has it. It ends with the block, or with the process."""
    only_postgres(
        definition, "Reading rows again", f"cdc connector apply {definition.name} --anew reads all its tables again."
    )
    dsn = definition.dsn(source_dsn)
    with connected(dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT pg_try_advisory_lock(hashtext(%s)) AS mine", [f"cdc.snapshot {definition.signal_table}"]
        ).fetchone()
        yield Turn(connection, definition, dsn) if row is not None and row["mine"] else None


def _table(name: str) -> sql.Identifier:
    return sql.Identifier(*name.split(".", 1))


def _values(columns: Sequence[Column], key: Key) -> sql.Composable:
    """A key's values as literals of their columns' types; the catalog has quoted the types' names."""
    return sql.SQL(", ").join(_literal(column, value) for column, value in zip(columns, key, strict=True))


def _literal(column: Column, value: Any) -> sql.Composable:
    if plain(column.base or column.type) == "bytea":
        return sql.SQL("decode({}, 'base64')").format(sql.Literal(str(value)))
    return sql.SQL("{}::{}").format(sql.Literal(str(value)), sql.SQL(column.type))
