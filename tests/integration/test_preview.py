"""Preview on a real Postgres: rows as Debezium would send them, documents as a worker would write them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from connectors.sources.postgres import read_catalog
from connectors.sources.postgres_rows import open_rows
from pipeline.authoring.discovery import look
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.demo import shop
from pipeline.errors import OperationError
from pipeline.operations.preview import Previewed, preview
from pipeline.settings import Endpoints
from tests.fixtures.envelope_tables import EXTENSIONS, FAMILIES, PREAMBLE, Family
from tests.support.customers import customers
from tests.support.databases import own_database

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
EXACT = ("ints", "numerics", "bools", "texts", "citexts", "uuids", "enums", "jsons", "byteas", "xmls", "ltrees", "networks", "composites")  # fmt: skip


@pytest.fixture(scope="module")
def dsn(stack: Endpoints) -> Iterator[str]:
    with own_database(stack.postgres, "preview_test") as dsn:
        yield dsn


@pytest.fixture(scope="module")
def sample_shop(dsn: str) -> str:
    shop.create(dsn)
    shop.seed(dsn, customers=5, products=5, orders=20)
    return dsn


@pytest.fixture(scope="module")
def families(dsn: str) -> str:
    with psycopg.connect(dsn, autocommit=True) as db:
        for extension in EXTENSIONS:
            if db.execute("SELECT FROM pg_available_extensions WHERE name = %s", [extension]).fetchone() is not None:
                db.execute(f"CREATE EXTENSION {extension}".encode())
        db.execute(PREAMBLE)
        for family in FAMILIES:
            if family.name in EXACT and _available(db, family):
                db.execute(f"CREATE TABLE t.{family.name}(id int PRIMARY KEY, {family.columns})".encode())
                for n, row in enumerate(family.rows, 1):
                    db.execute(f"INSERT INTO t.{family.name} VALUES ({n}, {row})".encode())
    return dsn


def _available(db: psycopg.Connection[Any], family: Family) -> bool:
    known = db.execute("SELECT FROM pg_extension WHERE extname = %s", [family.extension]).fetchone()
    return family.extension is None or known is not None


def recorded(family: str) -> dict[int, dict[str, Any]]:
    """The first image of each row that Debezium sent of this family."""
    found: dict[int, dict[str, Any]] = {}
    for line in (ROOT / f"tests/fixtures/envelopes/{family}.jsonl").read_text("utf-8").split("\n"):
        value = json.loads(json.loads(line)["value"] or "{}") if line else {}
        if value.get("op") in ("c", "r"):
            found.setdefault(value["after"]["id"], value["after"])
    return found


@pytest.mark.parametrize("family", EXACT)
def test_rows_are_written_as_debezium_writes_them(families: str, family: str) -> None:
    table = read_catalog(families).tables.get(f"t.{family}")
    if table is None:
        pytest.skip("the server lacks its extension")
    sent = recorded(family)
    with open_rows(families) as rows:
        read = rows.first(table, [column.name for column in table.columns], 1000)

    assert read
    for row in read:
        wanted = {name: value for name, value in sent[row["id"]].items() if name in row}
        assert row == wanted


def documents(dsn: str, of: str | Projection[Any], *keys: str, limit: int = 3) -> list[Previewed]:
    projection = look(ROOT / "projections").projections[of] if isinstance(of, str) else of
    catalog = read_catalog(dsn, tables=sorted(shape_of(projection.shape).columns()))
    with open_rows(dsn) as rows:
        return preview(projection, catalog, rows, keys=keys, limit=limit)


def test_a_document_is_joined_from_live_rows(sample_shop: str) -> None:
    (order,) = documents(sample_shop, "orders", "7")

    assert order.document is not None
    assert (order.document["id"], order.document["customer"]["id"]) == (7, 1 + 7 * 7919 % 5)
    assert [line["line_no"] for line in order.document["lines"]] == [1, 2, 3]
    assert order.document["total"] == order.document["charged"]


def test_without_keys_the_first_documents_are_shown(sample_shop: str) -> None:
    assert [one.key for one in documents(sample_shop, "orders", limit=2)] == [(1,), (2,)]


def test_a_key_without_a_row_and_a_document_that_leaves_say_so(sample_shop: str) -> None:
    with psycopg.connect(sample_shop) as db:
        db.execute("UPDATE shop.customers SET deleted_at = now() WHERE id = 2")

    first, second, third = documents(sample_shop, customers, "1", "2", "77")

    assert first.document is not None
    assert (second.document, second.reason) == (None, "keep() says no")
    assert (third.document, third.reason) == (None, "shop.customers has no such row")


def test_a_key_of_the_wrong_length_is_refused(sample_shop: str) -> None:
    projection = look(ROOT / "projections").projections["orders"]
    lines = type(projection)(_lines(), projection.to, "lines")
    with open_rows(sample_shop) as rows, pytest.raises(OperationError, match="order_id,line_no"):
        preview(lines, read_catalog(sample_shop), rows, keys=["1"])


def _lines() -> Any:
    from pipeline import Document

    class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
        quantity: int

    return Line
