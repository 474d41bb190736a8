"""The catalogue read from a real Postgres."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.sources.postgres import read_catalog
from pipeline.authoring.catalog import Catalog
from pipeline.errors import SettingsError, SourceUnavailable
from pipeline.settings import Endpoints

pytestmark = pytest.mark.stack

TABLES = """
CREATE SCHEMA shop;
CREATE SCHEMA other;
CREATE TYPE shop.mood AS ENUM ('sad', 'ok');
CREATE DOMAIN shop.cents AS numeric(12, 2);
CREATE TABLE shop.lines (
    order_id bigint, line_no int, price shop.cents NOT NULL, quantity int DEFAULT 1, mood shop.mood, tags text[],
    note text, doubled int GENERATED ALWAYS AS (quantity * 2) STORED, gone text, PRIMARY KEY (line_no, order_id)
);
ALTER TABLE shop.lines DROP COLUMN gone;
CREATE INDEX ON shop.lines (order_id, note);
CREATE INDEX ON shop.lines (lower(note));
CREATE INDEX ON shop.lines (quantity) WHERE quantity > 1;
CREATE TABLE shop.full_identity (id int PRIMARY KEY);
ALTER TABLE shop.full_identity REPLICA IDENTITY FULL;
CREATE TABLE shop.nothing (id int);
ALTER TABLE shop.nothing REPLICA IDENTITY NOTHING;
CREATE TABLE shop.parted (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE shop.parted_1 PARTITION OF shop.parted FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE VIEW shop.seen AS SELECT 1 AS one;
CREATE TABLE other.things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY);
"""


@pytest.fixture(scope="module")
def dsn(stack: Endpoints) -> Iterator[str]:
    name = f"rec_cat_{uuid4().hex[:8]}"
    with psycopg.connect(stack.postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    own = make_conninfo(stack.postgres, dbname=name)
    with psycopg.connect(own) as connection:
        connection.execute(TABLES)
    yield own
    with psycopg.connect(stack.postgres, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def catalog(dsn: str) -> Catalog:
    return read_catalog(dsn)


def test_tables_are_read_without_views_partitions_and_system_tables(catalog: Catalog) -> None:
    assert list(catalog.tables) == [
        "other.things",
        "shop.full_identity",
        "shop.lines",
        "shop.nothing",
        "shop.parted",
    ]


def test_columns_have_their_types_and_what_they_are_made_of(catalog: Catalog) -> None:
    columns = {column.name: column for column in catalog.table("shop.lines").columns}
    assert list(columns) == ["order_id", "line_no", "price", "quantity", "mood", "tags", "note", "doubled"]
    assert (columns["price"].type, columns["price"].base) == ("shop.cents", "numeric(12,2)")
    assert (columns["mood"].type, columns["mood"].base) == ("shop.mood", "enum")
    assert columns["tags"].type == "text[]"
    assert columns["quantity"].default and not columns["quantity"].generated
    assert columns["doubled"].generated and not columns["doubled"].default
    assert columns["note"].toastable and not columns["line_no"].toastable
    assert columns["note"].nullable and not columns["price"].nullable


def test_an_identity_counts_as_a_default(catalog: Catalog) -> None:
    assert catalog.table("other.things").column("id").default


def test_the_primary_key_is_in_its_own_order(catalog: Catalog) -> None:
    assert catalog.table("shop.lines").primary_key == ("line_no", "order_id")
    assert catalog.table("shop.nothing").primary_key == ()


def test_only_whole_indexes_over_plain_columns_are_kept(catalog: Catalog) -> None:
    assert catalog.table("shop.lines").indexes == (("order_id", "note"),)


def test_the_replica_identity_is_read(catalog: Catalog) -> None:
    found = {name: table.replica_identity for name, table in catalog.tables.items()}
    assert found["shop.full_identity"] == "full"
    assert found["shop.nothing"] == "nothing"
    assert found["shop.lines"] == "default"


def test_schemas_and_tables_can_be_chosen(dsn: str) -> None:
    assert list(read_catalog(dsn, schemas=["other"]).tables) == ["other.things"]
    assert list(read_catalog(dsn, tables=["shop.lines", "shop.no_such"]).tables) == ["shop.lines"]


def test_a_database_that_is_away_is_unavailable_and_the_password_is_not_said() -> None:
    with pytest.raises(SourceUnavailable, match=r"shop at 127\.0\.0\.1:9 can't be reached") as away:
        read_catalog("postgresql://reader:very-secret@127.0.0.1:9/shop")
    assert "very-secret" not in str(away.value)


def test_a_wrong_password_is_not_said_either(stack: Endpoints) -> None:
    with pytest.raises(SourceUnavailable, match="password authentication failed") as refused:
        read_catalog(make_conninfo(stack.postgres, password="very-secret"))
    assert "very-secret" not in str(refused.value)


def test_a_dsn_that_is_none_is_a_wrong_setting() -> None:
    with pytest.raises(SettingsError, match=r"source\.dsn is no libpq URI"):
        read_catalog("postgresql://reader:very-secret@[broken/shop")
