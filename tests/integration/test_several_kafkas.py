"""Two Kafka clusters, each with its Connect, in one project: each projection reads that of its connector."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest

from pipeline.settings import Settings
from pipeline.stack import connect, kafka, processes
from pipeline.stack.site import Site, make_site
from tests.support.project import Project, until
from tests.support.topics import everything_in

pytestmark = pytest.mark.stack

TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.stores (id int PRIMARY KEY, city text NOT NULL);
CREATE TABLE shop.staff (id int PRIMARY KEY, store_id int NOT NULL, name text NOT NULL);
INSERT INTO shop.stores SELECT i, 'city ' || i FROM generate_series(1, 20) i;
INSERT INTO shop.staff SELECT i, i, 'name ' || i FROM generate_series(1, 20) i;
"""
MODELS = """
from pipeline import Document, elasticsearch, one, projection

class Store(Document, source="shop.stores"):
    id: int
    city: str

class Person(Document, source="shop.staff"):
    id: int
    name: str

stores = projection(Store, to=elasticsearch("ALIAS-stores"))
staff = projection(Person, to=elasticsearch("ALIAS-staff"), workers=2)
"""
JOINED = """
from pipeline import Document, elasticsearch, one, projection
from .stores import Store

class Placed(Document, source="shop.staff"):
    id: int
    store: Store | None = one(via="store_id")

placed = projection(Placed, to=elasticsearch("ALIAS-placed"), across_sources=True)
"""
QUERIES = {
    "stores": "SELECT id::text, jsonb_build_object('id', id, 'city', city) FROM shop.stores",
    "staff": "SELECT id::text, jsonb_build_object('id', id, 'name', name) FROM shop.staff",
}


@pytest.fixture(scope="module")
def west(stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A second Kafka and its Connect."""
    folder = tmp_path_factory.mktemp("west")
    folder.chmod(0o755)
    up = stack_settings.endpoints()
    assert up is not None
    site = make_site(Settings.model_validate({"state_dir": folder, "source": {"dsn": up.postgres}}))
    try:
        processes.spawn(kafka.prepare(site), site.user, site.log(kafka.NAME), site.pidfile(kafka.NAME))
        until(lambda: kafka.answers(site), 90, "the second Kafka is up")
        processes.spawn(connect.prepare(site), site.user, site.log(connect.NAME), site.pidfile(connect.NAME))
        until(lambda: connect.answers(site), 120, "its Connect is up")
        yield site
    finally:
        for name in (connect.NAME, kafka.NAME):
            processes.stop(site.pidfile(name))


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project], west: Site) -> Iterator[Project]:
    project = new_project("it_west")
    own = f"{project.name}_w"
    project.settings |= {
        "CDC_KAFKAS__WEST__BOOTSTRAP": kafka.address(west),
        "CDC_CONNECTS__WEST__URL": connect.address(west),
    }
    secret = re.sub(r"\{file:[^:]*", f"{{file:{connect.secrets_file(west.settings)}", project.password)

    def second(project: Project) -> None:
        (project.folder / "connectors/debezium" / f"{own}.toml").write_text(
            f'name = "{own}"\nkafka = "west"\ntables = ["shop.staff"]\n[database]\ndbname = "{project.name}"\npassword = "{secret}"\n'
        )
        project.cdc("connector", "apply", own, "--yes")

    project.before_connector = second
    project.create_with(TABLES, ["shop.stores"], {"stores": MODELS})
    for name, number in (("stores", 1), ("staff", 1), ("staff", 2)):
        project.start_worker(f"{project.name}-{name}", number=number)
    yield project
    project.stop_workers()
    project.cdc("connector", "delete", own, "--drop-slot", "--yes")


def waited(shop: Project, name: str) -> None:
    shop.cdc("wait", f"{shop.name}-{name}", "--now", "--timeout", "90")
    shop.assert_equal(name, QUERIES[name])


def test_each_projection_reads_the_cluster_of_its_connector(shop: Project, west: Site) -> None:
    for name in QUERIES:
        waited(shop, name)
    shop.sql(
        "UPDATE shop.stores SET city = 'moved' WHERE id = 3", "UPDATE shop.staff SET name = 'renamed' WHERE id = 4"
    )
    for name in QUERIES:
        waited(shop, name)
        found = json.loads(shop.cdc("verify", f"{shop.name}-{name}", "--all", "-o", "json").stdout)["sinks"][0]
        assert (found["checked"], found["different"]) == (20, 0)
    east, there = everything_in(shop.endpoints.kafka, shop.name), everything_in(kafka.address(west), shop.name)
    assert b"moved" in east and b"renamed" not in east
    assert b"renamed" in there and b"moved" not in there


def test_backfill_connectors_and_doctor_ask_the_right_one(shop: Project) -> None:
    shop.cdc("backfill", "shop.staff", "--wait")
    waited(shop, "staff")
    lines = {line["name"]: line for line in json.loads(shop.cdc("connector", "list", "-o", "json").stdout)}
    assert {lines[name]["state"] for name in (shop.name, f"{shop.name}_w")} == {"running"}
    findings = json.loads(shop.cdc("doctor", "-o", "json", check=False).stdout)
    ours = [f for f in findings if shop.name in f["subject"] and f["level"] == "error"]
    assert not ours, ours


def test_tables_of_two_clusters_are_in_no_projection_together(shop: Project) -> None:
    path = shop.folder / "projections/placed.py"
    shop.write_projection("placed", JOINED.replace("ALIAS", shop.name))
    try:
        found = json.loads(shop.cdc("check", "-o", "json", check=False).stdout)["findings"]
        assert [f["error"] for f in found if f["level"] == "error"] == ["SeveralKafkas"]
        assert shop.start_worker(f"{shop.name}-placed").wait(60) == 78
        assert "several Kafka clusters" in shop.log()
    finally:
        path.unlink()


def test_a_cluster_without_an_address_is_named(shop: Project) -> None:
    at = shop.settings.pop("CDC_CONNECTS__WEST__URL")
    try:
        refused = shop.cdc("connector", "status", f"{shop.name}_w", check=False)
        assert refused.returncode and "set connects.west.url in cdc.toml" in refused.stderr.replace("\n", " ")
    finally:
        shop.settings["CDC_CONNECTS__WEST__URL"] = at
