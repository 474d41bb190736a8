"""Rows copied from the source are in the mirror as their events would have put them there, value for value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from connectors.sources.postgres import read_catalog
from connectors.sources.postgres_copy import open_copies
from connectors.sources.postgres_documents import readable
from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.column_types import wire_of
from pipeline.events.envelope import TableDecoder
from pipeline.events.rows import RowsDecoder
from pipeline.settings import Endpoints
from tests.fixtures.envelope_tables import EXTENSIONS, FAMILIES, PREAMBLE
from tests.fixtures.golden import records
from tests.support.databases import own_database

pytestmark = pytest.mark.stack
STREAMED = 100
"""Rows with ids above this were recorded from the stream: snapshot rows have some values wrong."""
UNLIKE: dict[str, set[str]] = {
    "numeric_negative_scale": {"n"},  # with 2,046 zeros behind the point
    "floats": {"f4"},  # the smallest, whose shortest text differs between Java and Postgres
    "times": {"tm", "tm0", "tz"},  # 24:00:00
    "arrays": {"ao", "ae"},  # of a domain, and of an enum with a null
    "generated": {"always"},  # which each database numbers for itself
    "arrays_special": {"a2", "at2"},  # of two dimensions
}
"""Columns that have values which Debezium sends wrong (docs/concepts/types.md), and the source has right."""


@pytest.fixture(scope="module")
def dsn(stack: Endpoints) -> Iterator[str]:
    with own_database(stack.postgres, "copied_test") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def families(dsn: str) -> Catalog:
    with psycopg.connect(dsn, autocommit=True) as db:
        for extension in EXTENSIONS:
            db.execute(f"CREATE EXTENSION {extension}".encode())
        db.execute(PREAMBLE)
        for family in FAMILIES:
            db.execute(f"CREATE TABLE t.{family.name}(id int PRIMARY KEY, {family.columns})".encode())
            for n, row in enumerate((*family.rows, ""), STREAMED + 1):
                columns, values = ("", f", {row}") if row else ("(id)", "")
                db.execute(f"INSERT INTO t.{family.name}{columns} VALUES ({n}{values})".encode())
    return read_catalog(dsn, schemas=["t"])


def copied(dsn: str, table: Table, columns: list[str]) -> dict[int, dict[str, Any]]:
    """Each row of the table as the mirror would store it, by id."""
    decoder = RowsDecoder(table.name, {name: wire_of(table.column(name)) for name in columns})
    with open_copies(dsn, 60) as copies:
        rows = [row for batch in copies.rows(table, columns) for row in decoder.decode(batch)]
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


def streamed(family: str, table: Table, columns: list[str]) -> dict[int, dict[str, Any]]:
    """The same rows as their recorded events have them, without what these leave out."""
    decoder = TableDecoder(table.name, 0, {name: wire_of(table.column(name)) for name in columns}, ("id",))
    found: dict[int, dict[str, Any]] = {}
    for record in records(family):
        value = json.loads(record.value or b"{}")
        if value.get("op") == "c" and value["after"]["id"] > STREAMED:
            event = decoder.decode(record.key, record.value)
            assert event.after is not None
            if not event.partial:  # a text that is Debezium's own placeholder
                found.setdefault(event.after[0], dict(zip(columns, event.after, strict=True)))
    return found


def same(one: Any, other: Any) -> bool:
    """Floats are JSON, which Java writes otherwise: `1.0E21` is `1e+21`."""
    try:
        return bool(one == other or json.loads(one) == json.loads(other))
    except (TypeError, ValueError):
        return False


@pytest.mark.edge_case(26)
@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_a_value_of_any_type_is_as_its_event_has_it(dsn: str, families: Catalog, family: str) -> None:
    table = families.tables[f"t.{family}"]
    columns = [c.name for c in table.columns if readable(c) and not c.generated and c.type != "interval[]"]
    rows, events = copied(dsn, table, columns), streamed(family, table, columns)
    wrong = {
        (id, name): (rows[id][name], value)
        for id, event in events.items()
        for name, value in event.items()
        if not same(rows[id][name], value) and name not in UNLIKE.get(family, ())
    }
    assert events and not wrong
