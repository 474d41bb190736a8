"""Values that the stream never had: the worker reads their rows again from the source, by itself."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from urllib.parse import quote

import pytest

from pipeline.engine.assemble import document_id
from tests.support.project import Project, until

pytestmark = [pytest.mark.stack, pytest.mark.edge_case(3), pytest.mark.edge_case(5)]

LONG = "(SELECT string_agg(md5(n::text || random()), '') FROM generate_series(1, 200) n)"
"""6,400 characters that do not compress: kept out of line, and an update that leaves them alone does not send them."""
KEYS = ("plain", "O'Brien", "50%", "why?", "back\\slash", '{"a": [1]}', "$1 ${x}", "ünï", "gone", "late")
SCHEMA = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.notes (id text, part int, status text NOT NULL, body text, PRIMARY KEY (id, part));
INSERT INTO shop.notes SELECT id, part, 'new', {LONG}
    FROM unnest(ARRAY[{", ".join("$k$" + key + "$k$" for key in KEYS)}]) id, generate_series(1, 2) part;
"""
NOTES = textwrap.dedent("""
    from pipeline import Document, elasticsearch, projection


    class Note(Document, source="shop.notes", key=("id", "part")):
        id: str
        part: int
        status: str
        body: str | None


    notes = projection(Note, to=elasticsearch("ALIAS-notes"))
""")


@pytest.fixture(scope="module")
def notes(new_project: Callable[[str], Project]) -> Iterator[Project]:
    """A connector that has taken no snapshot: the mirror knows only what is changed from now on."""
    project = new_project("it_unknown")
    project.create_with(SCHEMA, ["shop.notes"], {"notes": NOTES}, '[snapshot]\nmode = "no_data"\n')
    project.start_worker(f"{project.name}-notes")
    until(lambda: project.said("notes").get("state") == "running", 60, "the worker runs")
    yield project


def body(project: Project, key: str) -> str:
    with project.connection() as db:
        row = db.execute("SELECT body FROM shop.notes WHERE id = %s AND part = 1", [key]).fetchone()
    assert row is not None
    return str(row[0])


def stored(project: Project, key: str) -> dict[str, object] | None:
    return project.document(quote(document_id((key, 1)), safe=""), "notes")


def change(project: Project, key: str, status: str) -> None:
    with project.connection() as db:
        db.execute("UPDATE shop.notes SET status = %s WHERE id = %s AND part = 1", [status, key])


@pytest.mark.parametrize("key", KEYS[:8])
def test_a_value_that_was_never_sent_is_read_again_whatever_its_key(notes: Project, key: str) -> None:
    change(notes, key, "changed")
    found = until(lambda: stored(notes, key), 30, f"the document of {key!r} appears by itself")
    assert found["status"] == "changed" and found["body"] == body(notes, key)


def test_a_row_that_is_gone_at_the_source_leaves_the_mirror_instead_of_being_asked_for_for_ever(notes: Project) -> None:
    notes.stop_workers()
    change(notes, "gone", "changed")
    # a delete that the stream does not have
    notes.sql(f"ALTER PUBLICATION cdc_{notes.name} DROP TABLE shop.notes", "DELETE FROM shop.notes WHERE id = 'gone'")
    notes.sql(f"ALTER PUBLICATION cdc_{notes.name} ADD TABLE shop.notes")
    notes.start_worker(f"{notes.name}-notes")
    change(notes, "plain", "after")
    until(lambda: (stored(notes, "plain") or {}).get("status") == "after", 60, "the worker goes on")
    until(lambda: notes.status("notes")["refreshing"] == 0, 30, "nothing is asked for any more")
    status = notes.status("notes")
    assert (status["pending"], status["attention"]) == (0, [])
    assert stored(notes, "gone") is None


def test_while_the_source_can_not_be_reached_the_document_is_pending_and_heals_later(notes: Project) -> None:
    notes.stop_workers()
    notes.start_worker(f"{notes.name}-notes", CDC_SOURCE__DSN="postgresql://postgres:hunter2@127.0.0.1:9/shop")
    change(notes, "late", "changed")
    until(lambda: notes.status("notes")["pending"] == 1, 60, "the document is pending")
    assert notes.status("notes")["refreshing"] == 1 and stored(notes, "late") is None
    assert "hunter2" not in notes.log(200)
    change(notes, "plain", "others go on")
    until(lambda: (stored(notes, "plain") or {}).get("status") == "others go on", 30, "the others go on")
    notes.stop_workers()
    notes.start_worker(f"{notes.name}-notes")
    found = until(lambda: stored(notes, "late"), 60, "the document appears once the source is there")
    assert found["status"] == "changed" and found["body"] == body(notes, "late")
    until(lambda: notes.status("notes")["pending"] == 0, 30, "nothing is pending any more")
