"""A read model over two databases of two kinds: each row is right in the end, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from pipeline.client import GTID
from pipeline.settings import Settings, SourceSettings
from pipeline.stack import stack as local_stack
from tests.support.damage import damage, remove
from tests.support.mariadb import Database, database, define
from tests.support.project import Project, until
from tests.support.web import served, settings_of

pytestmark = pytest.mark.stack

ORDERS = """
from decimal import Decimal
from pipeline import Document, elasticsearch, many, one, projection

class Note(Document, source="DB.notes"):
    id: int
    text: str

class Customer(Document, source="DB.customers"):
    name: str
    vip: bool
    notes: tuple[Note, ...] = many(by="customer_id", order_by="id")

class Order(Document, source="shop.orders"):
    id: int
    status: str
    total: Decimal
    customer: Customer | None = one(via="customer_id")

orders = projection(Order, to=elasticsearch("ALIAS-orders"), across_sources=True)
"""
SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id int PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL, total numeric(12,2) NOT NULL);
INSERT INTO shop.orders SELECT n, n % 20 + 1, 'new', n FROM generate_series(1, 60) n;
"""
CRM = (
    "CREATE TABLE DB.customers (id BIGINT UNSIGNED PRIMARY KEY, name VARCHAR(100) NOT NULL, vip BOOLEAN NOT NULL)",
    "CREATE TABLE DB.notes (id INT PRIMARY KEY, customer_id BIGINT UNSIGNED NOT NULL, text TEXT NOT NULL)",
    *(f"INSERT INTO DB.customers VALUES ({n}, 'customer {n}', {n % 2})" for n in range(1, 20)),
    *(f"INSERT INTO DB.notes VALUES ({n}, {n % 19 + 1}, 'note {n}')" for n in range(1, 40)),
)


@pytest.fixture(scope="module")
def both(new_project: Callable[[str], Project], mariadb: str) -> Iterator[tuple[Project, Database]]:
    project = new_project("it_two")
    name = f"{project.name}_m"
    with database(mariadb, name, *CRM) as own:

        def second(project: Project) -> None:
            define(project, own, ["customers", "notes"])
            project.cdc("connector", "apply", name, "--yes")
            project.cdc("tables", "pull")

        project.before_connector = second
        project.create_with(SHOP, ["shop.orders"], {"orders": ORDERS.replace("DB.", f"{name}.")}, pulled=False)
        project.start_run()
        yield project, own
        project.stop_workers()
        project.cdc("connector", "delete", name, "--drop-slot", "--yes")


def wanted(project: Project, own: Database) -> dict[str, Any]:
    """The documents, joined by hand from what each database says by SQL."""
    notes: dict[int, list[Any]] = {}
    for id, customer, text in own.rows("SELECT id, customer_id, text FROM DB.notes ORDER BY id"):
        notes.setdefault(customer, []).append({"id": id, "text": text})
    customers = {
        id: {"name": name, "vip": bool(vip), "notes": notes.get(id, [])}
        for id, name, vip in own.rows("SELECT id, name, vip FROM DB.customers")
    }
    with psycopg.connect(project.dsn) as db:
        orders = db.execute("SELECT id, customer_id, status, total FROM shop.orders").fetchall()
    return {
        str(id): {"id": id, "status": status, "total": str(total), "customer": customers.get(customer)}
        for id, customer, status, total in orders
    }


def documents(project: Project) -> dict[str, Any]:
    index = f"{project.endpoints.elasticsearch}/{project.name}-orders"
    httpx.post(f"{index}/_refresh", timeout=10)
    hits = httpx.post(f"{index}/_search", json={"size": 1000}, timeout=10).json()["hits"]["hits"]
    return {hit["_id"]: {k: v for k, v in hit["_source"].items() if not k.startswith("_")} for hit in hits}


def assert_equal_soon(project: Project, own: Database, what: str) -> None:
    try:
        until(lambda: documents(project) == wanted(project, own), 90, what)
    except AssertionError:
        found, truth = documents(project), wanted(project, own)
        assert found == truth, project.log()


def change(project: Project, own: Database, dice: random.Random, times: int) -> None:
    """Some changes in both, of rows that are joined."""
    for _ in range(times):
        n = dice.randrange(1, 21)
        own.sql(
            f"INSERT INTO DB.customers VALUES ({n}, 'name {dice.random()}', {n % 3}) ON DUPLICATE KEY UPDATE name = VALUES(name), vip = 1 - vip",
            f"DELETE FROM DB.notes WHERE id = {dice.randrange(1, 40)}",
            f"INSERT IGNORE INTO DB.notes VALUES ({dice.randrange(1, 60)}, {n}, 'note {dice.random()}')",
        )
        project.sql(
            f"UPDATE shop.orders SET status = 's{dice.random()}', customer_id = {n} WHERE id = {dice.randrange(1, 61)}",
            f"DELETE FROM shop.orders WHERE id = {dice.randrange(1, 61)}",
            f"INSERT INTO shop.orders VALUES ({dice.randrange(100, 200)}, {n}, 'more', 1) ON CONFLICT DO NOTHING",
        )
        if dice.random() < 0.2:
            own.sql(f"DELETE FROM DB.customers WHERE id = {dice.randrange(1, 21)}")


def test_documents_are_joined_over_two_databases_and_follow_both(both: tuple[Project, Database]) -> None:
    project, own = both
    assert_equal_soon(project, own, "the snapshots of both")
    change(project, own, random.Random(1), 15)
    assert_equal_soon(project, own, "the changes of both")


def test_nothing_is_lost_or_doubled_where_the_worker_and_the_connectors_are_killed(
    both: tuple[Project, Database], stack_settings: Settings
) -> None:
    project, own = both
    dice = random.Random(2)
    change(project, own, dice, 10)
    os.kill(project.said()["pid"], signal.SIGKILL)
    change(project, own, dice, 10)
    local_stack.stop_service(stack_settings, "connect", hard=True)
    change(project, own, dice, 5)
    local_stack.start_service(stack_settings, "connect")
    change(project, own, dice, 5)
    assert_equal_soon(project, own, "what was changed while they were down")


def test_a_connector_that_begins_anew_takes_away_rows_of_its_own_tables_only(both: tuple[Project, Database]) -> None:
    project, own = both
    project.cdc("connector", "delete", own.name, "--drop-slot", "--yes")
    own.sql("DELETE FROM DB.customers WHERE id = 3", "INSERT IGNORE INTO DB.customers VALUES (50, 'new', 0)")
    project.cdc("connector", "apply", own.name, "--yes")
    project.sql("UPDATE shop.orders SET customer_id = 50 WHERE id % 5 = 0")
    assert_equal_soon(project, own, "a new snapshot of one of the two")


def verified(project: Project, *options: str, code: int = 0) -> dict[str, Any]:
    done = project.cdc("verify", f"{project.name}-orders", "--all", *options, "-o", "json", check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}\n{project.log()}"
    found: dict[str, Any] = json.loads(done.stdout)["sinks"][0]
    return found


def test_documents_are_compared_with_both_sources_while_both_go_on_changing(both: tuple[Project, Database]) -> None:
    project, own = both
    dice, done = random.Random(3), threading.Event()

    def load() -> None:
        while not done.is_set():
            change(project, own, dice, 1)

    writer = threading.Thread(target=load)
    writer.start()
    try:
        found = verified(project)
    finally:
        done.set()
        writer.join()
    assert found["missing"] == found["extra"] == found["different"] == 0, found
    found = verified(project)
    assert found["checked"] == len(wanted(project, own)) and found["undecided"] == 0
    assert set(found["position"]) == {project.name, own.name}


def test_what_no_worker_wrote_is_named_and_repaired(both: tuple[Project, Database]) -> None:
    project, own = both
    own.sql("REPLACE INTO DB.customers VALUES (1, 'Ada', 1)")
    project.sql("INSERT INTO shop.orders SELECT n, 1, 'new', 1 FROM generate_series(501, 503) n")
    assert_equal_soon(project, own, "three more orders")
    damage(project, 501, lambda document: document["customer"].update(name="wrong"))
    damage(project, 502, lambda document: document.update(status="wrong"))
    damage(project, 599, lambda document: document.update(id=599))
    remove(project, 503)
    found = verified(project, code=3)
    assert {one["id"]: one["kind"] for one in found["differences"]} == {
        "501": "different", "502": "different", "503": "missing", "599": "extra"
    }  # fmt: skip
    fields = {(one["id"], field["path"]) for one in found["differences"] for field in one["fields"]}
    assert {("501", "customer.name"), ("502", "status")} <= fields
    assert verified(project, "--repair")["repaired"] == 4
    assert documents(project) == wanted(project, own)


def test_each_source_is_waited_for_by_its_connector(both: tuple[Project, Database]) -> None:
    project, own = both
    name = f"{project.name}-orders"
    lsn, sequence = project.sql("UPDATE shop.orders SET status = 'waited'"), own.sql("UPDATE DB.customers SET vip = 1")
    for connector, place in ((project.name, str(lsn)), (own.name, f"0-1-{sequence}")):
        (waited,) = json.loads(
            project.cdc("wait", name, "--lsn", place, "--connector", connector, "--timeout", "60", "-o", "json").stdout
        )
        assert waited["reached"] and waited["connector"] == connector
    assert documents(project) == wanted(project, own)
    both_now = json.loads(project.cdc("wait", name, "--now", "--timeout", "60", "-o", "json").stdout)
    assert {one["connector"] for one in both_now} == {project.name, own.name}
    refused = project.cdc("wait", name, "--lsn", str(lsn), check=False)
    assert refused.returncode == 1 and "say which of them a place is of" in refused.stderr.replace("\n", " ")


async def test_a_service_reads_what_it_wrote_to_either(both: tuple[Project, Database]) -> None:
    project, own = both
    settings = settings_of(project, wait_limit=90)
    settings.sources["mariadb"] = SourceSettings(dsn=SecretStr(own.dsn))
    key = project.sql("INSERT INTO shop.orders VALUES (700, 5, 'new', 7)") and 700
    async with served(settings) as api:
        for n in range(20):
            with own.connection() as db, db.cursor() as cursor:
                cursor.execute(f"UPDATE {own.name}.customers SET name = 'read {n}' WHERE id = 5")
                db.commit()
                cursor.execute(GTID)
                (token,) = cursor.fetchone()
            with psycopg.connect(project.dsn) as db:
                db.execute(f"UPDATE shop.orders SET status = 'read {n}' WHERE id = 700")
                (txid,) = db.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
            after = f"{own.name}:{token},{project.name}:txid:{txid}"
            answer = await api.get(f"/v1/{project.name}-orders/{key}", params={"after": after, "wait": "60"})
            assert answer.status_code == 200, answer.text
            assert (answer.json()["status"], answer.json()["customer"]["name"]) == (f"read {n}", f"read {n}")
            told = answer.headers["x-read-model-watermark"]
            assert {one.partition(":")[0] for one in told.split(",")} == {own.name, project.name}
            again = await api.get(f"/v1/{project.name}-orders/{key}", headers={"x-after": told})
            assert again.status_code == 200 and "x-read-model-as-of" in again.headers
        nameless = await api.get(f"/v1/{project.name}-orders/{key}", params={"after": token})
        assert nameless.status_code == 400 and f"{own.name}:…" in nameless.json()["detail"]


def test_a_rebuild_fills_from_the_mirror_and_from_the_log(both: tuple[Project, Database]) -> None:
    project, own = both
    name = f"{project.name}-orders"
    for origin in ("mirror", "log"):
        change(project, own, random.Random(4), 3)
        told = json.loads(project.cdc("rebuild", name, "--from", origin, "-o", "json").stdout)
        change(project, own, random.Random(5), 3)
        assert_equal_soon(project, own, f"{told['live']}, built from the {origin}")
    refused = project.cdc("rebuild", name, "--from", "source", check=False)
    assert refused.returncode == 1 and "reads the tables of several connectors" in refused.stderr.replace("\n", " ")
    assert verified(project)["checked"] == len(wanted(project, own))


def test_a_row_of_either_source_is_erased(both: tuple[Project, Database]) -> None:
    project, own = both
    own.sql("REPLACE INTO DB.customers VALUES (5, 'to be forgotten', 0)")
    project.sql("INSERT INTO shop.orders VALUES (800, 5, 'new', 1)", "DELETE FROM shop.orders WHERE id = 700")
    assert_equal_soon(project, own, "what is to be erased")
    own.sql("DELETE FROM DB.customers WHERE id = 5")
    for table, key in ((f"{own.name}.customers", "5"), ("shop.orders", "700")):
        done = project.cdc("erase", table, key, "--yes", "-o", "json", check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{project.log()}"
        assert all(place["after"] in (0, None) for place in json.loads(done.stdout)["places"])
    assert "to be forgotten" not in json.dumps(documents(project))


def test_what_two_sources_have_in_common_is_asked_for_by_the_author(both: tuple[Project, Database]) -> None:
    project, _ = both
    name = f"{project.name}-orders"
    found = json.loads(project.cdc("check", "-o", "json").stdout)["findings"]
    assert ("AcrossSources", "hint") in {(finding["error"], finding["level"]) for finding in found}
    (line,) = json.loads(project.cdc("status", name, "-o", "json", check=False).stdout)["projections"]
    assert len(line["sinks"][0]["watermark"]) == 2
    previewed = json.loads(project.cdc("preview", name, "-n", "1").stdout)
    assert previewed == documents(project)[str(previewed["id"])]
    file = project.folder / "projections/orders.py"
    text = file.read_text()
    file.write_text(text.replace(", across_sources=True", ""))
    try:
        found = json.loads(project.cdc("check", "-o", "json", check=False).stdout)["findings"]
        assert [finding["error"] for finding in found if finding["level"] == "error"] == ["SeveralConnectors"]
    finally:
        file.write_text(text)
