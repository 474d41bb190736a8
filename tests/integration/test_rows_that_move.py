"""Several workers, and rows whose owner is in other columns than their key: children, groups and events on the stack."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

PROJECTIONS = Path(__file__).parents[2] / "projections"
HELP = """
from pipeline import Aggregate, Document, count, elasticsearch, group, many, projection, total


class Note(Document, source="help.notes"):
    id: int
    body: str


class Ticket(Document, source="help.tickets"):
    id: int
    title: str
    team: str | None
    notes: tuple[Note, ...] = many(by="ticket_id", order_by="id")

    @property
    def written(self) -> int:
        return sum(len(note.body) for note in self.notes)


class OfTeam(Aggregate, of=Ticket):
    team: str | None = group()
    tickets: int = count()
    written: int = total("written")


tickets = projection(Ticket, to=elasticsearch("ALIAS-tickets"), workers=2)
teams = projection(OfTeam, to=elasticsearch("ALIAS-teams"), workers=2)
"""
SCHEMA = """
CREATE SCHEMA help;
CREATE TABLE help.tickets(id int PRIMARY KEY, title text NOT NULL, team text);
CREATE TABLE help.notes(id int PRIMARY KEY, ticket_id int, body text NOT NULL);
ALTER TABLE help.notes ALTER body SET STORAGE EXTERNAL;
INSERT INTO help.tickets SELECT n, 'ticket ' || n, CASE WHEN n % 9 > 0 THEN 'team ' || n % 9 END FROM generate_series(1, 200) n;
INSERT INTO help.notes SELECT n, n % 200 + 1, repeat('x', n % 7) FROM generate_series(1, 600) n;
"""
MOVES = (
    "UPDATE help.notes SET ticket_id = CASE WHEN id % 5 > 0 THEN ticket_id * 7 % 200 + 1 END WHERE id % 3 = 0",
    "UPDATE help.notes SET body = body || '!' WHERE id % 7 = 0",
    "UPDATE help.tickets SET team = CASE WHEN id % 4 > 0 THEN 'team ' || id * 5 % 11 END WHERE id % 2 = 0",
)


def _mirrored(project: Project, name: str, table: str) -> list[set[int]]:
    """By partition the keys of the rows that its mirror has."""
    found = []
    for part in (0, 1):
        path = project.folder / ".cdc" / "mirrors" / f"{project.name}-{name}-v1@{part}.db"
        with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as db:
            found.append({key for (key,) in db.execute(f'SELECT id FROM "{table}"')})
    return found


def _verified(project: Project, name: str, *more: str, status: int = 0) -> dict[str, Any]:
    """What `cdc verify` says of all documents once the sink is where the source is now."""
    project.cdc("wait", f"{project.name}-{name}", "--now", "--timeout", "90")
    done = project.cdc("verify", f"{project.name}-{name}", "--all", "-o", "json", *more, check=False)
    assert done.returncode == status, f"{done.stdout}{done.stderr}\n{project.log()}"
    found: dict[str, Any] = json.loads(done.stdout)["sinks"][0]
    return found


def test_children_with_keys_of_their_own_and_groups_are_shared_out_and_move(
    new_project: Callable[[str], Project],
) -> None:
    project = new_project("it_moves")
    project.create_with(SCHEMA, ("help.tickets", "help.notes"), {"help": HELP})
    hints = [f["message"] for f in json.loads(project.cdc("check", "-o", "json").stdout)["findings"]]
    assert any("Updates of help.notes are told to all 2 partitions" in hint for hint in hints), hints
    project.start_run()

    def right() -> None:
        assert (_verified(project, "tickets")["checked"], _verified(project, "teams")["missing"]) == (200, 0)
        with project.connection() as db:
            notes = {key for (key,) in db.execute("SELECT id FROM help.notes").fetchall()}
        here, there = _mirrored(project, "tickets", "help.notes")
        assert here and there and not here & there, "each note is one partition's"
        assert here | there == notes
        here, there = _mirrored(project, "teams", "help.tickets")
        assert here and there and not here & there, "and each ticket"

    right()
    # a long body that did not change is not in the update that moves it: its new owner reads the row again
    project.sql(*MOVES, "INSERT INTO help.notes VALUES(1000, 1, repeat('long', 3000))")
    for ticket in (2, 3, 4, 5):
        project.sql(f"UPDATE help.notes SET ticket_id = {ticket} WHERE id = 1000")
        project.cdc("wait", f"{project.name}-tickets", "--now", "--timeout", "90")
    until(lambda: "1000" in str(project.document(5, "tickets")), 60, lambda: f"it has come\n{project.log()}")
    project.sql("DELETE FROM help.notes WHERE id % 11 = 0", "DELETE FROM help.tickets WHERE id = 200")
    project.sql("INSERT INTO help.tickets VALUES(200, 'again', 'team 1')")
    right()
    project.sql("ALTER TABLE help.notes REPLICA IDENTITY FULL", "ALTER TABLE help.tickets REPLICA IDENTITY FULL")
    project.sql(*MOVES)
    right()

    # a row that one partition missed to lose, one that the other missed to get
    (here, there) = _mirrored(project, "tickets", "help.notes")
    (lost, kept) = min(here), min(there)
    project.damage("tickets", f'DELETE FROM "help.notes" WHERE id = {lost}', part="@0")
    project.damage("tickets", f"""UPDATE "help.notes" SET ticket_id = 1 - ticket_id, body = 'stale' WHERE id = {kept}""", part="@1")  # fmt: skip
    project.sql("UPDATE help.tickets SET title = title || '.'")
    assert _verified(project, "tickets", status=3)["different"] == 2
    assert _verified(project, "tickets", "--repair")["repaired"] == 2
    groups = _mirrored(project, "teams", "help.tickets")
    for part, keys in enumerate(groups):
        project.damage(
            "teams",
            f"""UPDATE "help.tickets" SET team = 'team of nobody' WHERE id = {min(keys)}""",
            "INSERT INTO touched(k0, seq, since, low) SELECT"
            f" {min(keys)}, value, value, 0 FROM meta WHERE name = 'seq'",
            part=f"@{part}",
        )
    project.sql("UPDATE help.notes SET body = body || '?'")
    assert _verified(project, "teams", status=3)["extra"] >= 1
    _verified(project, "teams", "--repair")
    right()
    told = project.cdc("replay", f"{project.name}-tickets", "--since", "1d", "--dry-run", "-o", "json")
    assert json.loads(told.stdout)["wrong"] == 0
    story = json.loads(project.cdc("explain", f"{project.name}-teams", "team 1", "-o", "json").stdout)
    assert story["sinks"][0]["equal"], story


def test_groups_and_events_of_two_workers_are_exact_when_one_is_killed(new_project: Callable[[str], Project]) -> None:
    project = new_project("it_moves_shop")
    texts = {
        name: (PROJECTIONS / f"{name}.py").read_text().replace(f'elasticsearch("{name}")', f'elasticsearch("{name}"), workers=2')
        for name in ("sales", "order_saga")
    }  # fmt: skip
    project.settings |= {"CDC_WORKER__SESSION_TIMEOUT": "10", "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "5"}
    project.create(orders=300, projections=(), own=texts, more=True)
    project.start_run()
    wanted = (("sales", truth.SALES), ("order_saga", truth.SAGAS))
    for name, _ in wanted:
        project.cdc("wait", f"{project.name}-{name}", "--now", "--timeout", "90")
    load = Load(project.dsn, rate=60, seconds=300, tells=True)
    load.start()
    for name, _ in wanted:
        project.kill_the_owner(1, name)
    _end(project, load)
    for name, query in wanted:
        project.cdc("wait", f"{project.name}-{name}", "--now", "--timeout", "90")
        project.assert_equal(name, query)
        project.cdc("verify", f"{project.name}-{name}", "--all")

    # few groups, and each transaction changes one: to compare them it has to be slow
    load = Load(project.dsn, rate=0.5, seconds=300, seed=2, tells=True)
    load.start()
    # the next version begins with what the partitions have, and goes through an exchange of its own
    project.stop_workers()
    project.write_projection("sales", texts["sales"].replace('"sales"', f'"{project.name}-sales"').replace("workers=2", "workers=2, version=2"))  # fmt: skip
    project.cdc("apply", "--yes")
    project.start_run()
    built = project.cdc("rebuild", f"{project.name}-sales")
    assert "built from the mirror" in built.stderr
    _end(project, load)
    for name, query in wanted:
        project.cdc("wait", f"{project.name}-{name}", "--now", "--timeout", "90")
        project.assert_equal(name, query)


def _end(project: Project, load: Load) -> None:
    load.stop()
    load.join(10)
    assert load.error is None
