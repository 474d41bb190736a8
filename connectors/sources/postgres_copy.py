"""Whole tables read by COPY, all of them as of one moment whose place in the log is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import sql

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.masks import salted
from connectors.sources.notices import newest_commit
from connectors.sources.postgres import connected, heartbeat_query, position
from connectors.sources.postgres_documents import ARGUMENTS, held
from connectors.sources.postgres_rows import spelled
from pipeline.addresses import KafkaAddress
from pipeline.authoring.catalog import Table
from pipeline.events.sourcelog import Moment, SourceLog

BATCH: Final = 2_000
"""Rows that are decoded at once."""
_HEAD: Final = 19
"""Bytes before the first row of a binary COPY; six before each: how many fields, and the length of the one."""
MOMENT: Final = """
SELECT system_identifier::text || '/' || ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int AS log,
  pg_current_snapshot()::text AS snapshot
FROM pg_control_system()
"""
PATIENCE: Final = 2.0
"""Seconds in which a connector sends what was just committed, or is told of as one that does not."""


class TableCopies:
    """Reads tables as of one moment; what committed before its position is seen."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]], at: int) -> None:
        self._connection = connection
        found = connection.execute(MOMENT).fetchone()
        assert found is not None
        self.moment = Moment(found["log"], at, found["snapshot"])

    def rows(self, table: Table, columns: Sequence[str]) -> Iterator[bytes]:
        """All rows, some thousand at a time: `[[1, "a"], …]`, values as events have them, columns in this order."""
        schema, _, name = table.name.partition(".")
        salted(self._connection, map(table.column, columns))
        values = [spelled(table.column(column), sql.Identifier(column)) for column in columns]
        arrays = [values[start : start + ARGUMENTS] for start in range(0, len(values), ARGUMENTS)]
        # without its brackets: one array has no more values than a function takes arguments
        row = sql.SQL(" || ',' || ").join(
            sql.SQL("substr(left(json_build_array({})::text, -1), 2)").format(sql.SQL(", ").join(one)) for one in arrays
        )
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)").format(row, sql.Identifier(schema, name))
        with self._connection.cursor() as cursor, cursor.copy(query, ()) as copy:
            found: list[bytes] = []
            before = _HEAD
            for block in copy:
                # the last block has the end's mark only
                if text := bytes(block[before + 6 :]):
                    found.append(text)
                before = 0
                if len(found) == BATCH:
                    yield _together(found)
                    found.clear()
        if found:
            yield _together(found)


def _together(rows: Sequence[bytes]) -> bytes:
    return b"[[" + b"],[".join(rows) + b"]]"


@contextmanager
def open_copies(dsn: str, patience: float) -> Iterator[TableCopies]:
    """One moment of the source; raises SourceError where no temporary slot can be made, SourceUnavailable where it is away."""
    with held(dsn, patience) as (connection, at):
        yield TableCopies(connection, at)


async def streams(definition: ConnectorDefinition, dsn: str, kafka: KafkaAddress) -> SourceLog | None:
    """The log that the connector reads, once it has sent something of it that was committed after this call; else None."""
    log, at = await asyncio.to_thread(_beat, definition, dsn)
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        newest = await newest_commit(kafka, definition.transaction_topic, lambda found: found.identity == log)
        if newest is not None and newest[0] >= at:
            return newest[1]
    return None


def _beat(definition: ConnectorDefinition, dsn: str) -> tuple[str, int]:
    """The source's log, and its end; then a heartbeat, so that the connector need not wait for its own."""
    at = position(dsn)
    with connected(dsn, autocommit=True) as connection:
        found = connection.execute(MOMENT).fetchone()
        assert found is not None
        with suppress(psycopg.Error):  # without the right to, the connector's own comes within heartbeat_ms
            connection.execute(heartbeat_query(definition.heartbeat_table).encode())
    return str(found["log"]), at
