"""What is asked of a source of any kind: its address says which it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from connectors.sources import postgres
from connectors.sources.across_documents import AcrossDocuments, Captured
from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.postgres_documents import PostgresDocuments
from connectors.sources.postgres_documents import readable as readable_in_postgres
from connectors.sources.postgres_rows import open_rows as open_postgres_rows
from pipeline.addresses import MariadbAddress
from pipeline.authoring.catalog import UNREADABLE, Catalog, Column, Table
from pipeline.authoring.shape import Shape
from pipeline.errors import ConnectorFailed, OperationError

if TYPE_CHECKING:
    from connectors.sources.mariadb_documents import MariadbDocuments
    from connectors.sources.mariadb_rows import MariadbRows
    from connectors.sources.postgres_rows import Rows

# connectors.sources.mariadb is imported where it is asked for: its client is an extra


def is_mariadb(dsn: str) -> bool:
    return MariadbAddress.is_one(dsn)


def read_catalog(dsn: str, *, schemas: Sequence[str] | None = None, tables: Sequence[str] | None = None) -> Catalog:
    """The tables of these schemas (MariaDB: databases), or of all."""
    if is_mariadb(dsn):
        from connectors.sources import mariadb

        return mariadb.read_catalog(dsn, schemas=schemas, tables=tables)
    return postgres.read_catalog(dsn, schemas=schemas, tables=tables)


def position(dsn: str, txid: int | None = None) -> int:
    """The end of the source's log: whoever has committed before this call, has committed at or before that place."""
    if not is_mariadb(dsn):
        return postgres.position(dsn, txid)
    if txid is not None:
        raise OperationError("A MariaDB source knows no transaction by a number: wait for its GTID, gtid:0-1-42.")
    from connectors.sources import mariadb

    return mariadb.position(dsn)


@contextmanager
def open_rows(dsn: str) -> Iterator[Rows | MariadbRows]:
    """A reader whose every answer is from the same moment."""
    if is_mariadb(dsn):
        from connectors.sources.mariadb_rows import open_rows as open_mariadb_rows

        with open_mariadb_rows(dsn) as rows:
            yield rows
    else:
        with open_postgres_rows(dsn) as found:
            yield found


class RowsBySource:
    """Reads each table's rows where the table is; of no common moment."""

    def __init__(self) -> None:
        self.catalog = Catalog()
        self._readers: dict[str, Rows | MariadbRows] = {}

    def add(self, catalog: Catalog, rows: Rows | MariadbRows) -> None:
        """The tables that this reader has."""
        self.catalog = Catalog.of([*self.catalog.tables.values(), *catalog.tables.values()])
        self._readers |= dict.fromkeys(catalog.tables, rows)

    def first(self, table: Table, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
        return self._readers[table.name].first(table, columns, limit)

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        return self._readers[table.name].matching(table, columns, match, values)


def readable(dsn: str, column: Column) -> bool:
    """Whether the value that an event has of this column can be told from SQL."""
    return column.base != UNREADABLE if is_mariadb(dsn) else readable_in_postgres(column)


def documents(
    captured: Mapping[str, Captured], shape: Shape, *, patience: float
) -> PostgresDocuments | MariadbDocuments | AcrossDocuments:
    """What the documents of one shape hold, as the databases say that its connectors read.

    `patience`: seconds that a snapshot may wait.
    """
    if len(captured) > 1:
        return AcrossDocuments(shape, captured, patience=patience)
    (own,) = captured.values()
    if is_mariadb(own.dsn):
        from connectors.sources.mariadb_documents import MariadbDocuments

        return MariadbDocuments(own.dsn, shape, own.catalog)
    return PostgresDocuments(own.dsn, shape, own.catalog, patience=patience)


def scrubbed(text: str, dsn: str) -> str:
    """Text without the DSN's password."""
    if not is_mariadb(dsn):
        return postgres.scrubbed(text, dsn)
    password = MariadbAddress.of(dsn).password.get_secret_value()
    return text.replace(password, "**********") if password else text


def check_server(definition: ConnectorDefinition, user: str, dsn: str) -> None:
    """The server is as the connector needs it, and lets its user read; raises ConnectorFailed with what to run."""
    if not is_mariadb(dsn):
        if hidden := postgres.unreadable(dsn, user, definition.tables):
            schemas = ", ".join(sorted({table.partition(".")[0] for table in hidden}))
            raise ConnectorFailed(
                f"Connector {definition.name}: the user {user} may not read {', '.join(hidden)};"
                f" run: GRANT USAGE ON SCHEMA {schemas} TO {user}; GRANT SELECT ON {', '.join(hidden)} TO {user};"
            )
        return
    from connectors.sources import mariadb

    if wrong := mariadb.unfit(dsn):
        raise ConnectorFailed(
            f"Connector {definition.name}: the server {MariadbAddress.of(dsn)} is not as it has to be: {'; '.join(wrong)};"
            " restart it, and apply again."
        )
    if lacking := mariadb.lacking(dsn, user, definition.tables):
        raise ConnectorFailed(
            f"Connector {definition.name}: the user {user} may do too little; run: {' '.join(lacking)}"
        )


def prepare(definition: ConnectorDefinition, dsn: str) -> list[str]:
    """Create the connector's own tables where they are missing, and let its user write them; returns what was created."""
    user = definition.database.user
    if is_mariadb(dsn):
        from connectors.sources import mariadb

        return mariadb.prepare(dsn, heartbeat_table=definition.heartbeat_table, user=user)
    return postgres.prepare(
        dsn, heartbeat_table=definition.heartbeat_table, signal_table=definition.signal_table, user=user
    )


def only_postgres(definition: ConnectorDefinition, what: str, instead: str) -> None:
    """Raise OperationError where a source is of a kind for which this is not there."""
    if definition.kind != "postgres":
        raise OperationError(
            f"{what} is there for Postgres sources only, and connector {definition.name} reads {definition.kind}: {instead}"
        )
