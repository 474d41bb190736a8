"""Source tables that change while read models are kept: columns come, go and get other names and types."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.demo import truth
from pipeline.runtime.worker import EXIT_STOP_AND_SAY
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

SCHEMA = "CREATE SCHEMA life; CREATE TABLE life.things(id bigint PRIMARY KEY, a text, b integer)"
TEXT = '''
"""Things."""
from pipeline import Document, elasticsearch, projection

class Thing(Document, source="life.things"):
    id: int
    {field}

{name} = projection(Thing, to=elasticsearch("ALIAS-{name}"))
'''


@pytest.fixture(scope="module")
def life(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_life")
    fields = {"has_a": "a: str | None", "has_b": "b: int | None"}
    project.create_with(
        SCHEMA, ("life.things",), {name: TEXT.format(field=field, name=name) for name, field in fields.items()}
    )
    for name in fields:
        project.start_worker(f"{project.name}-{name}")
    project.sql("INSERT INTO life.things VALUES(1, 'one', 1), (2, 'two', 2)")
    for name in fields:
        project.wait_for(truth.position(project.dsn), name=name)
    yield project


@pytest.mark.edge_case(31)
def test_a_column_that_nobody_reads_comes_unnoticed(life: Project) -> None:
    position = life.sql(
        "ALTER TABLE life.things ADD COLUMN c integer DEFAULT 5", "UPDATE life.things SET a = 'two and c' WHERE id = 2"
    )
    life.wait_for(position, name="has_a")
    found = life.document(2, "has_a")
    assert found is not None and found["a"] == "two and c"


@pytest.mark.edge_case(32)
def test_a_renamed_column_stops_its_projection_alone_and_says_so(life: Project) -> None:
    position = life.sql(
        "ALTER TABLE life.things RENAME COLUMN b TO renamed", "UPDATE life.things SET a = 'renamed' WHERE id = 1"
    )
    has_b = life.workers[1]
    assert until(lambda: has_b.poll(), 60, "the worker that reads b stops") == EXIT_STOP_AND_SAY
    assert "SchemaChanged" in life.log() and "'b'" in life.log()
    status = life.status("has_b")
    assert "SchemaChanged" in str(status), status
    found = life.document(1, "has_b")
    assert found is not None and found["b"] == 1, "what was known stays"
    life.wait_for(position, name="has_a")
    found = life.document(1, "has_a")
    assert found is not None and found["a"] == "renamed", "the other projection goes on"
