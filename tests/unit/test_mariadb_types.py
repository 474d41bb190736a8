"""MariaDB's types as its connector was recorded to send them, against what was written by hand from the SQL."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline import Document, elasticsearch, projection
from pipeline.authoring.catalog import UNREADABLE, Catalog, Column
from pipeline.authoring.column_types import kinds_of, spelling, wire_of
from pipeline.authoring.shape import shape_of
from pipeline.cli.sinks import RULES
from pipeline.errors import UnsupportedValue
from pipeline.events.envelope import Event, TableDecoder, decode_boundary, placed
from pipeline.operations.check import check
from pipeline.operations.draft import draft
from pipeline.operations.layouts import unreadable
from pipeline.testing import Scenario
from tests.fixtures import mariadb_types as types

FOLDER = Path(__file__).parents[1] / "fixtures"
CATALOG = Catalog.load(FOLDER / "mariadb.catalog.json")
TABLE = CATALOG.table("rec_mariadb.types")
RECORDS = [json.loads(line) for line in (FOLDER / "mariadb.jsonl").read_text("utf-8").splitlines()]


def decoder() -> TableDecoder:
    return TableDecoder(TABLE.name, 0, {column.name: wire_of(column) for column in TABLE.columns}, TABLE.primary_key)


def events() -> list[Event]:
    of, found = decoder(), []
    for record in RECORDS:
        if record["topic"].endswith(".types"):
            key = None if record["key"] is None else json.dumps(record["key"]).encode()
            found.append(of.decode(key, json.dumps(record["value"]).encode()))
    return found


def row(event: Event) -> dict[str, Any]:
    return dict(zip((column.name for column in TABLE.columns), event.after, strict=True))


def test_every_type_comes_as_it_is_in_a_snapshot_and_in_the_stream() -> None:
    rows = [row(event) for event in events()[:6]]
    wanted = [types.expected(id, n) for first in (1, 11) for n, id in enumerate(range(first, first + 3))]
    for found, expected in zip(rows, wanted, strict=True):
        assert found == expected
    assert [event.op for event in events()[:6]] == list("rrrccc")


def test_a_key_that_changes_a_delete_and_a_truncate_are_told() -> None:
    deleted, created, gone, truncated, last = events()[6:]
    assert (deleted.op, deleted.key, created.op, row(created)["id"]) == ("d", (11,), "c", 99)
    assert (gone.op, gone.key, truncated.op, row(last)["id"]) == ("d", (12,), "t", 100)
    for event in (deleted, truncated):
        placed(event)
    assert deleted.transaction is not None and truncated.transaction is None
    assert (truncated.source.lsn or 0) > (deleted.source.lsn or 0) > 0
    boundaries = [
        decode_boundary(json.dumps(r["value"]).encode()) for r in RECORDS if r["topic"].endswith(".transaction")
    ]
    assert [(b.status, b.event_count) for b in boundaries if b.lsn == deleted.source.lsn] == [
        ("BEGIN", None),
        ("END", 3),
    ]
    assert [b.status for b in boundaries if b.lsn == truncated.source.lsn] == ["BEGIN"], "DDL gets no END"


def test_the_catalog_has_names_keys_and_kinds() -> None:
    assert TABLE.primary_key == ("id",) and TABLE.replica_identity == "full"
    kinds = {column.name: kinds_of(column).kinds[0] for column in TABLE.columns}
    assert kinds == {
        **dict.fromkeys(("id", "ti", "tu", "si", "mi", "ui", "zi", "bi", "bu", "ye", "gs", "gv"), "int"), "flag": "bool",
        "b1": "bool", **dict.fromkeys(("de", "du", "d30"), "decimal"), **dict.fromkeys(("fl", "db"), "float"),
        **dict.fromkeys(("ch", "vc", "tx", "en", "se"), "text"), "js": "json",
        **dict.fromkeys(("b10", "bn", "vb", "bl"), "bytes"), **dict.fromkeys(("da", "z0", "z3"), "date"),
        **dict.fromkeys(("dt", "d6", "ts", "t6", "z1", "z2"), "datetime"), **dict.fromkeys(("tm", "tl", "t4"), "time"),
    }  # fmt: skip
    assert {column.name for column in TABLE.columns if not column.nullable} == {"id", "z3"}


def test_numbers_too_large_for_readers_are_refused_by_column() -> None:
    of = decoder()
    event = {"op": "c", "source": {}, "after": RECORDS[0]["value"]["after"] | {"bu": "AP//////////"}}
    with pytest.raises(UnsupportedValue, match=r"types\.bu .*18446744073709551615"):
        of.decode(b'{"id":"AQ=="}', json.dumps(event).encode())


def test_integers_join_whatever_their_size_and_sign() -> None:
    own = [Column(name="x", type=type) for type in ("bigint(20) unsigned", "int(11)", "tinyint(1)", "bigint")]
    assert {spelling(column) for column in own} == {"int"}


class Odd(Document, source="rec_mariadb.types"):
    id: int
    u: str


def test_a_column_that_the_connector_gets_wrong_is_refused_by_name() -> None:
    uuid = Column(name="u", type="uuid", nullable=False, base=UNREADABLE)
    catalog = Catalog.of([TABLE.model_copy(update={"columns": (*TABLE.columns, uuid)})])
    found = check([projection(Odd, to=elasticsearch("odd"))], catalog, sinks=RULES).findings
    assert [(finding.error, finding.level) for finding in found] == [("UnsupportedType", "error")], found
    assert "rec_mariadb.types.u is uuid" in found[0].message
    assert "\n    u: " not in draft(catalog.table(TABLE.name), "odds").projection
    assert [column.name for _, column in unreadable(shape_of(Odd), catalog)] == ["u"]


class Row(Document, source="rec_mariadb.types"):
    id: int
    flag: bool | None
    bu: int | None
    fl: float | None
    t6: datetime | None


def test_an_authors_test_makes_rows_of_these_types() -> None:
    source = Scenario(projection(Row, to=elasticsearch("rows")), catalog=CATALOG)
    at = datetime(2026, 1, 1, 12, 0, 0, 500_000, tzinfo=UTC)
    source.insert(TABLE.name, id=7, flag=True, bu=9, fl=0.1, t6=at, z3=date(2026, 1, 1))
    made = source.document(7)
    assert made is not None
    assert (made.flag, made.bu, made.fl, made.t6) == (True, 9, 0.1, at)
