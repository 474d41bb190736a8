"""JSON columns typed by a pydantic model: checked on both roads, mapped by the model, kept as they came."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from connectors.sinks.elasticsearch import mapping
from pipeline import Document, derived, elasticsearch, many, projection
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.documents import Text
from pipeline.authoring.shape import shape_of
from pipeline.errors import BadShape, ScenarioError, UnsupportedValue
from pipeline.operations.differences import fields_of
from pipeline.operations.expected import Expectation, Unbuildable
from pipeline.testing import Scenario
from tests.support.documents import SOURCE, Make, event


class City(BaseModel):
    zip: str
    name: Annotated[str, Text()] = ""


class Address(BaseModel):
    city: City
    since: datetime | None = None
    rate: Decimal = Decimal(0)
    tags: list[str] = []
    post_box: int | None = Field(default=None, alias="postBox")
    free: dict[str, Any] = {}
    above: Address | None = None


class Row(Document, source="x.rows"):
    id: int
    j: Address | None


class Lists(Document, source="x.rows"):
    id: int
    j: list[City]


GOOD = {"city": {"zip": "0815", "more": 1}, "rate": 1.10, "postBox": 7}


def test_a_value_that_the_model_takes_is_written_as_it_came(make: Make) -> None:
    text = json.dumps(GOOD).replace("1.1", "1.10")
    found = make(Row, {"x.rows": [event({"id": 1, "j": text}), event({"id": 2, "j": None})]}, SOURCE)

    assert found.text(1) == '{"id":1,"j":{"city":{"zip":"0815","more":1},"rate":1.10,"postBox":7}}'
    assert found.text(2) == '{"id":2,"j":null}'


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"city": {}}, r"Row\.j: .* is no Address of Python \(city\.zip: Field required"),
        ({"city": {"zip": "1"}, "rate": "x"}, r"rate: Input should be a valid decimal"),
        ([], r"mend the row, or the model"),
        ("text", r"Row\.j"),
    ],
)
def test_a_value_that_the_model_refuses_hurts_its_document_alone(make: Make, value: Any, said: str) -> None:
    rows = [event({"id": 1, "j": json.dumps(value)}), event({"id": 2, "j": json.dumps(GOOD)})]
    found = make(Row, {"x.rows": rows}, SOURCE)

    assert found.text(2) is not None
    with pytest.raises(UnsupportedValue, match=said):
        found.text(1)


def test_each_item_of_a_list_is_checked_and_null_is_no_list(make: Make) -> None:
    values = [[{"zip": "1"}, {"zip": "2"}], [{"zip": "1"}, {}], None]
    rows = [event({"id": n, "j": json.dumps(value)}) for n, value in enumerate(values)]
    found = make(Lists, {"x.rows": rows}, SOURCE)

    assert found.text(0) == '{"id":0,"j":[{"zip":"1"},{"zip":"2"}]}'
    with pytest.raises(UnsupportedValue, match=r"zip: Field required"):
        found.text(1)
    with pytest.raises(UnsupportedValue, match=r"Lists\.j is null, and the field may not be"):
        found.text(2)


def test_a_row_below_is_checked_as_well(make: Make) -> None:
    class Above(Document, source="x.rows"):
        id: int
        below: tuple[Row, ...] = many(by="up")

    rows = [event({"id": 1, "up": None, "j": None}), event({"id": 2, "up": 1, "j": '{"city": 5}'})]
    with pytest.raises(UnsupportedValue, match=r"Row\.j"):
        make(Above, {"x.rows": rows}, SOURCE).text(1)


def test_the_mapping_and_the_fields_of_a_plan_are_the_models() -> None:
    keyword = {"type": "keyword", "ignore_above": 8191}
    city = {
        "type": "object",
        "dynamic": False,
        "properties": {"zip": keyword, "name": {"type": "text", "analyzer": "standard"}},
    }
    made = mapping(shape_of(Row), {})["properties"]["j"]

    assert (made["type"], made["dynamic"]) == ("object", False)
    assert made["properties"] == {
        "city": city,
        "since": {"type": "date", "format": "strict_date_optional_time", "ignore_malformed": True},
        "rate": {"type": "double", "ignore_malformed": True},
        "tags": keyword,
        "postBox": {"type": "long", "ignore_malformed": True},
        "free": {"type": "object", "enabled": False},
        "above": {"type": "object", "enabled": False},
    }
    assert mapping(shape_of(Lists), {})["properties"]["j"] == city
    assert fields_of(shape_of(Row)) == {
        "id": "int", "j.city.zip": "text", "j.city.name": "text", "j.since": "datetime", "j.rate": "decimal",
        "j.tags": "text[]", "j.postBox": "int", "j.free": "json", "j.above": "json",
    }  # fmt: skip


def test_verify_expects_the_json_as_it_came_and_no_document_where_the_model_refuses() -> None:
    class Derived(Row, source="x.rows"):
        @derived
        def zip(self) -> str | None:
            return self.j.city.zip if self.j else None

    expectation = Expectation(shape_of(Derived), SOURCE)
    stored = {"id": 1, "j": GOOD, "zip": "0815"}

    assert expectation.document({"id": 1, "j": json.dumps(GOOD)}) == expectation.stored(stored)
    assert Expectation(shape_of(Lists), SOURCE).document({"id": 1, "j": '[{"zip": "1", "more": 2}]'}) == {
        "id": 1, "j": [{"zip": "1", "more": 2}],
    }  # fmt: skip
    with pytest.raises(Unbuildable, match="zip"):
        expectation.document({"id": 1, "j": '{"city": {}}'})


def test_a_document_in_a_column_without_a_relation_says_what_to_write() -> None:
    class Forgotten(Document, source="x.rows"):
        id: int
        other: Row

    with pytest.raises(BadShape, match=r"Forgotten\.other shows Row and does not say which rows; write = one\(via=…\)"):
        shape_of(Forgotten)


def test_a_scenario_shows_the_model_and_says_why_a_document_waits() -> None:
    columns = (Column(name="id", type="bigint", nullable=False), Column(name="j", type="jsonb"))
    catalog = Catalog.of([Table(name="x.rows", primary_key=("id",), columns=columns)])
    story = Scenario(projection(Row, to=elasticsearch("rows")), catalog=catalog)
    story.insert("x.rows", id=1, j=GOOD)
    found = story.document(1).j
    assert found is not None
    assert (found.city.zip, found.rate, found.post_box) == ("0815", Decimal("1.1"), 7)

    story.update("x.rows", 1, j={"city": None})
    with pytest.raises(ScenarioError, match=r"could not be built: .*city: Input should be a valid dictionary"):
        story.document(1)
    story.update("x.rows", 1, j=GOOD)
    assert story.document(1).j == found
    story.assert_converges()
