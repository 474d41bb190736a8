"""Groups as verify expects them: read of rows in a file, found by key and by id, and judged only where they can be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

import pytest
from pydantic import BaseModel

from pipeline import Aggregate, Document, EventDocument, average, count, group, latest, on, total
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.shape import shape_of
from pipeline.errors import OperationError
from pipeline.operations.expected import Unbuildable
from pipeline.operations.expected_groups import Gone, GroupExpectation, GroupSource, Key

TYPES = {"id": "integer", "at": "timestamp with time zone", "n": "numeric", "up": "integer", "s": "text", "j": "jsonb"}
CATALOG = Catalog.of(
    [Table(name="x.rows", primary_key=("id",), columns=tuple(Column(name=n, type=t) for n, t in TYPES.items()))]
)


class Row(Document, source="x.rows"):
    id: int
    at: datetime | None
    n: Decimal | None
    up: int | None
    s: str | None

    @property
    def risky(self) -> int:
        return 1 // (self.up or 1 if self.s != "bad" else 0)


class ByText(Aggregate, of=Row):
    s: str | None = group()
    rows: int = count()
    n: Decimal | None = total("n")
    mean: Decimal | None = average("n", places=2)
    last: datetime | None = latest("at")
    risk: int = total("risky")


class ByNumber(Aggregate, of=Row):
    up: int | None = group()
    rows: int = count()


class Said(BaseModel):
    n: int


class Told(Document, source="x.rows"):
    id: int
    s: str
    up: int
    j: dict[str, Any]


class Sum(EventDocument, of=Told, type="s", payload="j"):
    up: int = group()
    n: int = 0

    @on(Said)
    def said(self, event: Said) -> Self:
        return self.but(n=self.n * 10 + event.n)


class Source:
    """Rows as one snapshot of a database gives them."""

    position = 7

    def __init__(self, *rows: Mapping[str, Any]) -> None:
        self.rows = {(str(row["id"]),): {name: row.get(name) for name in TYPES} for row in rows}

    @contextmanager
    def snapshot(self) -> Iterator[Self]:
        yield self

    def keys(self, batch: int) -> Iterator[list[tuple[Key, list[Any]]]]:
        yield [(key, [row["id"]]) for key, row in self.rows.items()]

    def documents(self, keys: Sequence[Key]) -> list[tuple[Key, list[Any], dict[str, Any]]]:
        return [(key, [self.rows[key]["id"]], self.rows[key]) for key in keys]


def groups(of: type[Aggregate], *rows: Mapping[str, Any], gone: Gone | None = None) -> dict[str, Any]:
    """Every group by its id: its document, or why there is none; the same whether asked for by key, or by id."""
    shape = shape_of(of)
    assert isinstance(shape, AggregateShape)
    expectation = GroupExpectation(shape, CATALOG, gone=gone)

    def told(found: list[tuple[Key, list[Any], dict[str, Any]]]) -> dict[str, Any]:
        told = {}
        for _, (id,), raw in found:
            try:
                told[id] = expectation.document(raw)
            except Unbuildable as error:
                told[id] = str(error)
        return told

    source = GroupSource(Source(*rows), expectation, lambda id: True)
    with source.snapshot() as snapshot:
        keys = [key for batch in snapshot.keys(2) for key, _ in batch]
        assert all(expectation.key_of(id) == key[0] for batch in snapshot.keys(9) for key, (id,) in batch)
        by_key = told(snapshot.documents(keys))
    with source.snapshot() as snapshot:
        assert told(snapshot.documents([(id,) for id in by_key])) == by_key
    return by_key


def test_each_group_is_counted_over_its_rows_alone() -> None:
    found = groups(
        ByText,
        {"id": 1, "s": "a", "n": "1.10", "at": "2024-01-01T00:05:00Z"},
        {"id": 2, "s": "a", "n": "2", "at": "2024-01-01T00:04:00Z"},
        {"id": 3, "s": None},
        {"id": 4, "s": "[odd"},
    )
    assert found["a"] == {
        "s": "a", "rows": 2, "n": "3.1", "mean": "1.55", "last": "2024-01-01T00:05:00.000000", "risk": 2,
    }  # fmt: skip
    assert (found["[null]"]["n"], found["[null]"]["mean"], found['["[odd"]']["rows"]) == (None, None, 1)


def test_the_rows_of_given_groups_are_told_by_their_keys() -> None:
    shape = shape_of(ByText)
    assert isinstance(shape, AggregateShape)
    rows = [{"id": 1, "s": "a"}, {"id": 2, "s": "b"}, {"id": 3, "s": "a"}, {"id": 4}, {"id": 5, "s": "bad"}]
    source = GroupSource(Source(*rows), GroupExpectation(shape, CATALOG), lambda id: True)
    with source.snapshot() as snapshot:
        assert snapshot.members(['["a"]', "[null]", '["none"]']) == {(1,), (3,), (4,)}
        assert snapshot.members(['["bad"]']) == {(5,)}


def test_a_row_that_the_authors_code_fails_on_leaves_its_own_group_untold() -> None:
    found = groups(ByText, {"id": 1, "s": "a"}, {"id": 2, "s": "bad"})
    assert found["a"]["rows"] == 1 and found["bad"].startswith("ZeroDivisionError")


def test_groups_of_numbers_go_by_the_number() -> None:
    found = groups(ByNumber, {"id": 1, "up": 5}, {"id": 2, "up": 5}, {"id": 3, "up": -1}, {"id": 4})
    assert {id: group["rows"] for id, group in found.items()} == {"5": 2, "-1": 1, "[null]": 1}


def test_events_are_folded_in_their_order_and_left_alone_where_rows_are_gone() -> None:
    rows = [{"id": n, "s": "Said", "up": n % 2, "j": f'{{"n": {n}}}'} for n in (4, 3, 2, 1)]
    assert groups(Sum, *rows, {"id": 9, "s": "Other", "up": 7, "j": "{}"}, gone=lambda group, keys: False) == {
        "0": {"up": 0, "n": 24}, "1": {"up": 1, "n": 13}, "7": None,
    }  # fmt: skip
    known = {"[0]": {(2,), (4,), (6,)}, "[1]": {(1,), (3,)}}
    found = groups(Sum, *rows, gone=lambda group, keys: bool(known.get(group, set()) - keys))
    assert (found["0"], found["1"]) == ("rows of its events are gone from the source", {"up": 1, "n": 13})

    with pytest.raises(OperationError, match="only its mirror knows: verify it on the worker's machine"):
        groups(Sum, *rows)
