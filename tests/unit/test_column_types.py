"""Columns by their types: which of them meet in a join."""

from __future__ import annotations

import pytest

from pipeline import Document, column, elasticsearch, one, projection
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.shape import shape_of
from pipeline.operations.check_shapes import check_level
from pipeline.operations.findings import Checked


class Code(Document, source="a.codes", key="code"):
    code: int


class Line(Document, source="a.lines"):
    id: int
    of: Code | None = one(via="label")
    label: int = column("id")


def table(name: str, key: str, **types: str) -> Table:
    columns = tuple(Column(name=name, type=type_, nullable=name != key) for name, type_ in types.items())
    return Table(name=name, columns=columns, primary_key=(key,))


@pytest.mark.edge_case(28)
@pytest.mark.parametrize(
    ("ours", "theirs", "warned"),
    [
        ("character(4)", "text", True),
        ("character(4)", "character(4)", False),
        ("character varying(4)", "text", False),
        ("numeric(10,2)", "numeric", True),
        ("timestamp(3) with time zone", "timestamp with time zone", True),
        ("integer", "bigint", False),
        ("uuid", "uuid", False),
    ],
)
def test_columns_that_write_equal_values_in_two_ways_are_a_warning(ours: str, theirs: str, warned: bool) -> None:
    catalog = Catalog.of([table("a.lines", "id", id="bigint", label=ours), table("a.codes", "code", code=theirs)])
    checked = Checked(projection(Line, to=elasticsearch("lines")), catalog)
    check_level(checked, shape_of(Line), catalog.table("a.lines"))
    found = [f.subject for f in checked.findings if f.error == "SpelledApart"]
    assert found == (["Line.of"] if warned else [])
