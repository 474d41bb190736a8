"""Lists of rows inside a document: their order is the source's, and each row's own `keep()` counts."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import Document, derived, hidden, many, one
from tests.fixtures.golden import DIGITS
from tests.support.documents import SOURCE, Documents, Make, Records, event


class Child(Document, source="x.rows"):
    id: int


ORDERS: dict[str, list[Any]] = {
    "n": ["NEGATIVE_INFINITY", "-1" + "0" * 400, "-10.5", "-9.75", "-9.7", "-0.001", "0", "1e-30", "0.1", "9", "9.0000000000000000001",
          "10.5", "100", DIGITS, "POSITIVE_INFINITY", "NAN"],
    "f": ["-Infinity", -1e300, -10.5, -9.0, 0.0, 5e-324, 9.0, 10.5, 1e21, 1e300, "Infinity", "NaN"],
    "at": ["-infinity", "-4712-01-01T00:00:00.000000Z", "-0043-03-15T12:00:00.000000Z", "-0043-03-16T12:00:00.000000Z", "0000-01-01T00:00:00.000000Z",
           "0001-01-01T00:00:00.000000Z", "2024-01-01T00:00:00.000000Z", "2024-01-01T00:00:00.100000Z", "9999-12-31T00:00:00.000000Z",
           "+10000-01-01T00:00:00.000000Z", "+294276-01-01T00:00:00.000000Z", "infinity"],
    "ts": ["-292275055-05-16T23:00:00Z", "-0043-03-15T12:00:00Z", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00.05Z", "2024-01-01T00:00:00.1Z",
           "+10000-01-01T00:00:00Z", "+292278994-08-16T23:00:00Z"],
    "d": ["-5877611-06-22Z", "-4712-01-01Z", "-0043-03-15Z", "0001-01-01Z", "9999-12-31Z", "+10000-01-01Z", "+5874897-12-31Z", "+5877611-06-21Z"],
    "t": ["00:00:00Z", "00:00:00.000001Z", "04:05:06Z", "23:59:59.999999Z", "24:00:00Z"],
    "iv": ["P0Y-14M0DT0H0M0S", "P0Y0M0DT0H0M-0.000001S", "P0Y0M0DT0H0M0S", "P0Y0M9DT0H0M0S", "P0Y0M10DT0H0M0S", "P0Y0M0DT300H0M0S", "P0Y1M0DT0H0M0S",
           "P0Y0M31DT0H0M0S", "P1Y0M0DT0H0M0S", "P178000000Y0M0DT0H0M0S"],
    "b": ["", "AA==", "AP8=", "AQ==", "/w=="],
    "id": [-5, 0, 9, 10, 2**40],
    "s": ["", "10", "9", "A", "a", "é"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_a_list_is_in_the_order_of_the_source_with_nulls_last(make: Make, name: str) -> None:
    class Parent(Document, source="x.parents"):
        id: int
        rows: tuple[Child, ...] = many(by="up", order_by=name)

    values = ORDERS[name]
    rows = [
        event({**dict.fromkeys(ORDERS), "up": 1, "id": id, name: value})
        for id, value in sorted(enumerate([*values, *([] if name == "id" else [None])]), key=lambda p: p[0] * 7 % 11)
    ]
    if name == "id":
        rows = [event({"up": 1, "id": value}) for value in reversed(values)]
    found = make(Parent, {"x.parents": [event({"id": 1})], "x.rows": rows}, SOURCE).text(1)
    assert found is not None
    order = [row["id"] for row in json.loads(found)["rows"]]
    assert order == (values if name == "id" else list(range(len(values) + 1)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False).map(lambda d: format(d, "f")), max_size=8))
def test_decimals_are_ordered_exactly(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    class Parent(Document, source="x.parents"):
        id: int
        rows: tuple[Child, ...] = many(by="up", order_by="n")

    rows = [event({"up": 1, "id": id, "n": value}) for id, value in enumerate(values)]
    events: dict[str, Records] = {"x.parents": [event({"id": 1})], "x.rows": rows}
    documents = Documents(tmp_path_factory.mktemp("order"), Parent, SOURCE, events)
    found = documents.text(1)
    documents.close()
    assert found is not None
    wanted = sorted(range(len(values)), key=lambda id: (Decimal(values[id]), id))
    assert [row["id"] for row in json.loads(found)["rows"]] == wanted


class Leaf(Document, source="x.leaves"):
    id: int

    def keep(self) -> bool:
        return self.id != 13


class Item(Document, source="x.items"):
    id: int
    gone: bool = hidden()
    leaf: Leaf | None = one(via="leaf_id")
    leaves: tuple[Leaf, ...] = many(by="item_id")

    def keep(self) -> bool:
        return not self.gone and len(self.leaves) < 2


class Whole(Document, source="x.wholes"):
    id: int
    items: tuple[Item, ...] = many(by="whole_id")

    @derived
    def count(self) -> int:
        return len(self.items)


def test_rows_that_their_own_keep_refuses_are_left_out_at_every_depth(make: Make) -> None:
    items = [
        {"id": 1, "whole_id": 1, "gone": False, "leaf_id": 13},
        {"id": 2, "whole_id": 1, "gone": True, "leaf_id": 12},
        {"id": 3, "whole_id": 1, "gone": False, "leaf_id": 12},
        {"id": 4, "whole_id": 1, "gone": False, "leaf_id": None},
    ]
    leaves = [{"id": 12, "item_id": 1}, {"id": 13, "item_id": 1}, {"id": 14, "item_id": 4}, {"id": 15, "item_id": 4}]
    events: dict[str, Records] = {
        "x.wholes": [event({"id": 1})],
        "x.items": [event(row) for row in items],
        "x.leaves": [event(row) for row in leaves],
    }
    found = make(Whole, events, None).text(1)
    assert found is not None
    assert json.loads(found) == {
        "id": 1,
        "items": [{"id": 1, "leaf": None, "leaves": [{"id": 12}]}, {"id": 3, "leaf": {"id": 12}, "leaves": []}],
        "count": 2,
    }
