"""One project over two databases: each with its connector, its read models, and verified against its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pipeline.authoring.discovery import discover
from pipeline.demo import truth
from pipeline.settings import Settings
from pipeline.web.sampling import Sampler, taken
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id bigint PRIMARY KEY, status text NOT NULL);
INSERT INTO shop.orders SELECT n, 'new' FROM generate_series(1, 30) n;
"""
CRM = """
CREATE SCHEMA crm;
CREATE TABLE crm.people (id bigint PRIMARY KEY, name text NOT NULL);
INSERT INTO crm.people SELECT n, 'person ' || n FROM generate_series(1, 20) n;
"""
ORDERS = """
from pipeline import Document, elasticsearch, projection

class Order(Document, source="shop.orders"):
    id: int
    status: str

orders = projection(Order, to=elasticsearch("ALIAS-orders"))
"""
PEOPLE = """
from pipeline import Document, elasticsearch, projection

class Person(Document, source="crm.people"):
    id: int
    name: str

people = projection(Person, to=elasticsearch("ALIAS-people"))
"""
BOTH = """
from pipeline import Document, elasticsearch, one, projection

class Person(Document, source="crm.people"):
    name: str

class Order(Document, source="shop.orders"):
    id: int
    person: Person | None = one(via="id")

both = projection(Order, to=elasticsearch("ALIAS-both"))
"""


@pytest.fixture(scope="module")
def project(new_project: Callable[[str], Project]) -> Iterator[Project]:
    made = new_project("it_src")
    crm = make_conninfo(made.endpoints.postgres, dbname=f"{made.name}_crm")
    made.settings["CDC_SOURCES__CRM__DSN"] = crm
    with psycopg.connect(made.endpoints.postgres, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {made.name}_crm".encode())
    with psycopg.connect(crm) as db:
        db.execute(CRM.encode())

    def second(project: Project) -> None:
        definition = project.folder / "connectors/debezium" / f"{project.name}_crm.toml"
        definition.write_text(
            f'name = "{project.name}_crm"\nsource = "crm"\ntables = ["crm.people"]\n[database]\npassword = "{project.password}"\n'
        )
        project.cdc("connector", "apply", f"{project.name}_crm", "--yes")
        project.cdc("tables", "pull")

    made.before_connector = second
    made.create_with(SHOP, ["shop.orders"], {"orders": ORDERS, "people": PEOPLE}, pulled=False)
    made.start_run()
    yield made
    made.stop_workers()
    made.cdc("connector", "delete", f"{made.name}_crm", "--drop-slot", "--yes")
    with psycopg.connect(made.endpoints.postgres, autocommit=True) as db:
        db.execute(f"DROP DATABASE {made.name}_crm WITH (FORCE)".encode())


def test_each_read_model_is_kept_and_verified_by_its_own_source(project: Project) -> None:
    crm = project.settings["CDC_SOURCES__CRM__DSN"]
    with psycopg.connect(crm) as db:
        db.execute("UPDATE crm.people SET name = 'Ada' WHERE id = 7")
    project.sql("UPDATE shop.orders SET status = 'paid' WHERE id = 9")
    for name in ("orders", "people"):
        project.cdc("wait", f"{project.name}-{name}", "--now", "--timeout", "90")
        verified = json.loads(project.cdc("verify", f"{project.name}-{name}", "--all", "-o", "json").stdout)
        (sink,) = verified["sinks"]
        assert (sink["checked"], sink["different"]) == ({"orders": 30, "people": 20}[name], 0)
    assert (project.document(7, "people") or {})["name"] == "Ada"
    assert (project.document(9) or {})["status"] == "paid"
    assert truth.position(crm)


def test_commands_ask_the_source_that_the_connector_reads(project: Project) -> None:
    tables = json.loads(project.cdc("tables", "list", "-o", "json").stdout)["tables"]
    assert {"shop.orders", "crm.people"} <= set(tables)
    assert json.loads(project.cdc("preview", f"{project.name}-people", "3").stdout)["name"] == "person 3"
    project.cdc("backfill", "crm.people", "--where", "id < 5")
    doctor = json.loads(project.cdc("doctor", "-o", "json", check=False).stdout)
    said = {finding["subject"]: finding["level"] for finding in doctor}
    assert said["table crm.people"] == said["table shop.orders"] == "ok", doctor


def test_the_tables_of_one_source_say_nothing_of_the_others(project: Project) -> None:
    before = project.cdc("tables", "list", "-o", "json").stdout
    project.cdc("tables", "pull", "--from", project.settings["CDC_SOURCES__CRM__DSN"])
    assert project.cdc("tables", "list", "-o", "json").stdout == before


def test_a_source_that_is_away_hides_no_other_from_the_dashboard(project: Project) -> None:
    settings = Settings.model_validate(
        {
            "projections": project.folder / "projections", "connectors": project.folder / "connectors/debezium",
            "source": {"dsn": project.dsn}, "sources": {"crm": {"dsn": "postgresql://nobody@127.0.0.1:9/none"}},
        }
    )  # fmt: skip
    sampler = Sampler(settings, {found.name: found for found in discover(settings.projections)})
    taken(sampler.sources)
    assert sampler.sources.error is None
    assert sampler.position(f"{project.name}-orders") and sampler.position(f"{project.name}-people") is None


def test_tables_of_two_sources_are_not_joined(project: Project) -> None:
    project.write_projection("both", BOTH.replace("ALIAS", project.name))
    try:
        done = project.cdc("check", "-o", "json", check=False)
        assert done.returncode == 3
        found = [finding["error"] for finding in json.loads(done.stdout)["findings"]]
        assert found == ["SeveralConnectors"]
    finally:
        (project.folder / "projections/both.py").unlink()


def test_a_source_that_is_not_set_is_named(project: Project) -> None:
    other = project.settings.pop("CDC_SOURCES__CRM__DSN")
    try:
        done = project.cdc("connector", "show", f"{project.name}_crm", check=False)
        assert done.returncode == 1 and "set sources.crm.dsn" in done.stderr
    finally:
        project.settings["CDC_SOURCES__CRM__DSN"] = other
    until(lambda: project.document(7, "people"), 10, "it goes on")
