"""Source tables that change while read models are kept: columns come, go and get other names and types."""

from __future__ import annotations

import json
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

    life.stop_workers()
    run = life.start_run()
    until(lambda: "has_b-v1 has given up" in life.log(), 60, f"one gives up\n{life.log()}")
    life.wait_for(life.sql("UPDATE life.things SET a = 'after' WHERE id = 1"), name="has_a")
    assert run.poll() is None, "the supervisor goes on with the other"
    assert "has given up, and starting it again would not help: SchemaChanged" in life.status("has_b")["attention"][0]
    life.stop_workers()
    assert life.start_run(f"{life.name}-has_b").wait(60) == EXIT_STOP_AND_SAY
    assert "has_b-v1: SchemaChanged" in life.log(1)


PARTED = """
CREATE SCHEMA life;
CREATE TABLE life.things(id bigint, at date, a text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE life.things_2025 PARTITION OF life.things FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO life.things VALUES(1, '2025-03-01', 'one'), (2, '2025-03-01', 'two');
"""


@pytest.fixture(scope="module")
def parted(new_project: Callable[[str], Project]) -> Iterator[Project]:
    """Keyed by the partition's column, too, as Postgres wants it."""
    project = new_project("it_parted")
    text = TEXT.format(field="at: date\n    a: str | None", name="things").replace(
        "from pipeline", "from datetime import date\n\nfrom pipeline"
    )
    project.create_with(PARTED, ("life.things",), {"things": text})
    project.start_worker(f"{project.name}-things")
    project.wait_for(truth.position(project.dsn), name="things")
    yield project


def differences(project: Project) -> dict[str, int]:
    done = project.cdc("verify", f"{project.name}-things", "--all", "-o", "json", check=False)
    found = json.loads(done.stdout)["sinks"][0]
    return {kind: found[kind] for kind in ("missing", "extra", "different")}


@pytest.mark.edge_case(33)
def test_a_partitioned_table_is_one_table_whatever_its_partitions_do(parted: Project) -> None:
    position = parted.sql(
        "CREATE TABLE life.things_2026 PARTITION OF life.things FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "INSERT INTO life.things VALUES(3, '2026-05-01', 'in the new partition')",
        "UPDATE life.things SET at = '2026-06-01', a = 'moved' WHERE id = 2",
    )
    parted.wait_for(position, name="things")
    assert differences(parted) == {"missing": 0, "extra": 0, "different": 0}


@pytest.mark.edge_case(33)
def test_what_leaves_or_comes_with_a_partition_makes_no_events_and_is_found_and_mended_by_verify(
    parted: Project,
) -> None:
    parted.sql("ALTER TABLE life.things DETACH PARTITION life.things_2026")
    parted.sql(
        "CREATE TABLE life.other(LIKE life.things INCLUDING ALL)",
        "INSERT INTO life.other VALUES(9, '2027-01-01', 'came along')",
        "ALTER TABLE life.things ATTACH PARTITION life.other FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')",
    )
    assert differences(parted) == {"missing": 1, "extra": 2, "different": 0}
    done = parted.cdc("verify", f"{parted.name}-things", "--all", "--repair", "-o", "json")
    assert json.loads(done.stdout)["sinks"][0]["repaired"] == 3
    assert differences(parted) == {"missing": 0, "extra": 0, "different": 0}


@pytest.mark.edge_case(33)
def test_a_renamed_table_is_named_by_check_and_by_doctor_for_its_events_come_no_more(
    new_project: Callable[[str], Project],
) -> None:
    project = new_project("it_moved")
    text = TEXT.format(field="a: str | None", name="things")
    project.create_with(SCHEMA, ("life.things",), {"things": text})
    project.sql("ALTER TABLE life.things RENAME TO renamed")
    checked = project.cdc("check", check=False)
    assert checked.returncode == 3 and "life.things" in checked.stderr + checked.stdout
    doctor = project.cdc("doctor", "-o", "json", check=False)
    found = {one["subject"]: one for one in json.loads(doctor.stdout)}
    assert found["table life.things"]["level"] == "error", found
