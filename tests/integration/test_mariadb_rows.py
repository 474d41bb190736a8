"""MariaDB's catalogue and rows, read by SQL: the values are those that the connector sends."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from connectors.sources import kinds
from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.lifecycle import check_tables
from connectors.sources.mariadb_rows import open_rows
from pipeline.addresses import MariadbAddress
from pipeline.authoring.column_types import wire_of
from pipeline.errors import ConnectorFailed, NoPrimaryKey, SourceError, SourceUnavailable
from pipeline.events.envelope import TableDecoder
from tests.fixtures import mariadb_types as types
from tests.support.mariadb import database

pytestmark = pytest.mark.stack


def test_rows_have_the_values_of_events(mariadb: str) -> None:
    with database(
        mariadb, "it_rows", "SET SESSION sql_mode = ''", types.create("DB.types"), *types.inserts("DB.types", 1)
    ) as own:
        table = kinds.read_catalog(own.dsn, tables=["it_rows.types"]).table("it_rows.types")
        names = [column.name for column in table.columns]
        of = TableDecoder(table.name, 0, {column.name: wire_of(column) for column in table.columns}, table.primary_key)
        with open_rows(own.dsn) as rows:
            found = rows.first(table, names, 10)
            assert [row["id"] for row in rows.matching(table, names, ["id"], [[2], ["3"]])] == [2, 3]
            assert [row["id"] for row in rows.after(table, ["id"], [1], 1)] == [2]
            own.sql("DELETE FROM DB.types WHERE id = 2")
            assert len(rows.matching(table, ["id"], ["vb", "da"], [["", "0001-01-01Z"]])) == 1, "all from one moment"
    for n, row in enumerate(found):
        event = of.decode(b'{"id":1}', json.dumps({"op": "c", "source": {}, "after": row}).encode())
        assert dict(zip(names, event.after, strict=True)) == types.expected(n + 1, n)


def test_what_a_connector_needs_is_said_before_anything_is_changed(mariadb: str) -> None:
    tables = (
        "CREATE TABLE DB.addresses (id INT PRIMARY KEY, ip INET6, u UUID, p POINT)",
        "CREATE TABLE DB.keyless (id INT)",
        "CREATE TABLE DB.fine (id INT PRIMARY KEY, name VARCHAR(10), other INT, KEY part (name(3)), UNIQUE KEY whole (other))",
    )
    with database(mariadb, "it_needs", *tables, "CREATE USER IF NOT EXISTS nobody_in_it@'%'") as own:
        catalog = kinds.read_catalog(own.dsn, schemas=["it_needs"])
        fine = catalog.table("it_needs.fine")
        assert (fine.indexes, fine.unique, fine.primary_key) == ((("other",),), (("other",),), ("id",))

        def definition(*names: str) -> ConnectorDefinition:
            given = {
                "name": "needs",
                "kind": "mariadb",
                "source": "mariadb",
                "tables": [f"it_needs.{n}" for n in names],
            }
            return ConnectorDefinition.model_validate(given)

        with pytest.raises(ConnectorFailed, match=r"addresses has ip \(inet6\).*VARBINARY"):
            check_tables(definition("addresses"), catalog)
        with pytest.raises(NoPrimaryKey, match="keyless"):
            check_tables(definition("keyless"), catalog)
        kinds.check_server(definition("fine"), "debezium", own.dsn)
        itself = replace(MariadbAddress.of(own.dsn), user="debezium").uri
        kinds.check_server(definition("fine"), "debezium", itself)
        with pytest.raises(ConnectorFailed) as said:
            kinds.check_server(definition("fine"), "nobody_in_it", own.dsn)
        (grants,) = str(said.value).partition("run: ")[2:]
        own.sql(*(line for line in grants.split(";") if line.strip()))
        kinds.check_server(definition("fine"), "nobody_in_it", own.dsn)
        own.sql("DROP USER nobody_in_it@'%'")
        with pytest.raises(SourceError, match="no user nobody_at_all"):
            kinds.check_server(definition("fine"), "nobody_at_all", own.dsn)


def test_the_end_of_the_log_is_at_or_after_what_was_written(mariadb: str) -> None:
    with database(mariadb, "it_log", "CREATE TABLE DB.t (id INT PRIMARY KEY)") as own:
        written = own.sql("INSERT INTO DB.t VALUES (1)")
        assert kinds.position(own.dsn) >= written


def test_a_server_that_is_away_or_refuses_is_named_without_the_password(mariadb: str) -> None:
    address = MariadbAddress.of(mariadb)
    with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:9 can't be reached"):
        kinds.position(replace(address, host="127.0.0.1", port=9).uri)
    with pytest.raises(SourceUnavailable) as said:
        kinds.position(replace(address, user="somebody").uri)
    assert "Access denied" in str(said.value) and address.password.get_secret_value() not in str(said.value)
