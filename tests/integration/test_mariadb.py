"""MariaDB as a source on the real stack: snapshot, stream, transactions, kills, verify."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

import httpx
import pytest

from pipeline.client import GTID
from pipeline.operations.wait import token_of
from tests.support.mariadb import Database, database, define
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

TABLES = (
    "CREATE TABLE DB.customers (id BIGINT UNSIGNED AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL, vip BOOLEAN NOT NULL)",
    "CREATE TABLE DB.orders (id INT PRIMARY KEY, customer_id BIGINT UNSIGNED NOT NULL, total DECIMAL(12,2) NOT NULL,"
    " at TIMESTAMP(3) NOT NULL, KEY by_customer (customer_id))",
    "CREATE TABLE DB.order_lines (order_id INT, line_no INT, amount DECIMAL(12,2) NOT NULL, note TEXT, PRIMARY KEY (order_id, line_no))",
    "INSERT INTO DB.customers SELECT seq, CONCAT('customer ', seq), seq % 2 FROM DB.numbers LIMIT 20",
)
ORDERS = """
from datetime import datetime
from decimal import Decimal
from pipeline import Document, derived, elasticsearch, many, one, projection

class Customer(Document, source="DB.customers"):
    name: str
    vip: bool

class Line(Document, source="DB.order_lines", key=("order_id", "line_no")):
    line_no: int
    amount: Decimal
    note: str | None

class Order(Document, source="DB.orders"):
    id: int
    total: Decimal
    at: datetime
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", order_by="line_no")

orders = projection(Order, to=elasticsearch("ALIAS-orders"))
"""


@dataclass
class Shop:
    project: Project
    own: Database

    def wait(self, sequence: int, *, seconds: int = 90) -> None:
        self.project.cdc("wait", f"{self.project.name}-orders", "--lsn", str(sequence), "--timeout", str(seconds))

    def verify(self) -> dict[str, int]:
        found = json.loads(
            self.project.cdc("verify", f"{self.project.name}-orders", "--all", "-o", "json", check=False).stdout
        )
        return {name: found["sinks"][0][name] for name in ("checked", "missing", "extra", "different")}


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project], mariadb: str) -> Iterator[Shop]:
    project = new_project("it_mdb")
    name = f"{project.name}_m"
    numbers = "CREATE TABLE DB.numbers AS SELECT seq FROM seq_1_to_20"
    with database(mariadb, name, numbers, *TABLES) as own:
        own.sql(
            "INSERT INTO DB.orders SELECT seq, seq, seq * 2, '2026-01-01 10:00:00.5' FROM DB.numbers",
            "INSERT INTO DB.order_lines SELECT seq, 1, seq, NULL FROM DB.numbers",
            "INSERT INTO DB.order_lines SELECT seq, 2, seq, 'ü' FROM DB.numbers",
        )

        def second(project: Project) -> None:
            define(project, own, ["customers", "orders", "order_lines"])
            project.cdc("connector", "apply", name, "--yes")
            project.cdc("tables", "pull")
            assert project.cdc("check").returncode == 0

        project.before_connector = second
        project.create_with(
            "CREATE SCHEMA shop; CREATE TABLE shop.stores (id int PRIMARY KEY, city text NOT NULL);",
            ["shop.stores"], {"orders": ORDERS.replace("DB.", f"{name}.")}, pulled=False,
        )  # fmt: skip
        project.start_run()
        yield Shop(project, own)
        project.stop_workers()
        project.cdc("connector", "delete", name, "--drop-slot", "--yes")


def test_the_snapshot_and_the_stream_make_documents_and_they_are_verified(shop: Shop) -> None:
    shop.wait(shop.own.sql("UPDATE DB.customers SET name = 'Ada', vip = 2 WHERE id = 7"))
    assert (shop.project.document(7) or {}) | {"_epoch": 1} == {
        "_epoch": 1, "id": 7, "total": "14.00", "at": "2026-01-01T10:00:00.5Z", "customer": {"name": "Ada", "vip": True},
        "lines": [{"line_no": 1, "amount": "7.00", "note": None}, {"line_no": 2, "amount": "7.00", "note": "ü"}],
    }  # fmt: skip
    assert shop.verify() == {"checked": 20, "missing": 0, "extra": 0, "different": 0}


def test_no_document_shows_half_a_transaction_and_deletes_keys_and_truncates_are_followed(shop: Shop) -> None:
    own, project = shop.own, shop.project
    seen: list[bool] = []
    for n in range(30):
        amount = n + 100
        own.sql(
            f"UPDATE DB.order_lines SET amount = {amount} WHERE order_id = 3",
            f"UPDATE DB.orders SET total = {amount * 2} WHERE id = 3",
        )
        found = project.document(3) or {}
        seen.append(Decimal(found["total"]) == sum(Decimal(line["amount"]) for line in found["lines"]))
    assert all(seen)
    own.sql("DELETE FROM DB.orders WHERE id = 4", "UPDATE DB.orders SET id = 104 WHERE id = 5")
    shop.wait(own.sql("UPDATE DB.order_lines SET order_id = 104 WHERE order_id = 5"))
    assert project.document(4) is None and project.document(5) is None
    assert len((project.document(104) or {})["lines"]) == 2
    own.sql("TRUNCATE DB.order_lines")
    shop.wait(own.sql("INSERT INTO DB.order_lines VALUES (6, 9, 1.5, 'after it')"))
    assert [line["line_no"] for line in (project.document(6) or {})["lines"]] == [9]
    assert (project.document(7) or {})["lines"] == []
    assert shop.verify() == {"checked": 19, "missing": 0, "extra": 0, "different": 0}
    assert project.status()["released_incomplete"] == 0


def test_verify_finds_what_differs_and_repair_mends_it_from_the_mirror(shop: Shop) -> None:
    project = shop.project
    shop.wait(shop.own.sql("UPDATE DB.customers SET name = 'Bo' WHERE id = 8"))
    index = f"{project.endpoints.elasticsearch}/{project.name}-orders-v1"
    before = httpx.get(f"{index}/_doc/8").json()
    httpx.put(
        f"{index}/_doc/8", params={"version": before["_version"], "version_type": "external_gte", "refresh": "true"},
        json=before["_source"] | {"total": "0.00"},
    ).raise_for_status()  # fmt: skip
    assert shop.verify() == {"checked": 19, "missing": 0, "extra": 0, "different": 1}
    project.cdc("verify", f"{project.name}-orders", "--all", "--repair")
    assert shop.verify() == {"checked": 19, "missing": 0, "extra": 0, "different": 0}


def test_a_statement_about_other_tables_that_the_connector_can_not_parse_does_not_stop_it(shop: Shop) -> None:
    shop.own.sql("CREATE TABLE DB.orders_elsewhere (id INT PRIMARY KEY, ip INET6)")
    shop.wait(shop.own.sql("ALTER TABLE DB.orders ADD more INT", "UPDATE DB.orders SET total = 3 WHERE id = 13"))
    assert (shop.project.document(13) or {})["total"] == "3.00"


def test_a_token_is_the_gtid_of_what_was_written(shop: Shop) -> None:
    with shop.own.connection() as db, db.cursor() as cursor:
        cursor.execute(f"UPDATE {shop.own.name}.customers SET name = 'Cy' WHERE id = 9")
        db.commit()
        cursor.execute(GTID)
        token = cursor.fetchone()[0]
    place = token_of(token).lsn
    assert place is not None
    shop.wait(place)
    assert (shop.project.document(9) or {})["customer"]["name"] == "Cy"
    shop.project.cdc("wait", f"{shop.project.name}-orders", "--lsn", token.removeprefix("gtid:"))
    # a statement that has no END: the heartbeat comes after it
    shop.own.sql("CREATE TABLE DB.later (id INT PRIMARY KEY)")
    shop.project.cdc("wait", f"{shop.project.name}-orders", "--now", "--timeout", "60")


def test_what_is_not_there_for_mariadb_is_refused_by_name(shop: Shop) -> None:
    name, project = shop.own.name, shop.project
    for arguments, said in (
        (("backfill", f"{name}.orders"), "Postgres sources only"),
        (("wait", f"{project.name}-orders", "--txid", "7"), "GTID"),
    ):
        done = project.cdc(*arguments, check=False)
        assert done.returncode == 1 and said in done.stderr, done.stderr


def test_commands_know_the_second_kind_of_source(shop: Shop) -> None:
    name, project = shop.own.name, shop.project
    columns = json.loads(project.cdc("tables", "show", f"{name}.customers", "-o", "json").stdout)["columns"]
    assert [column["type"] for column in columns] == ["bigint(20) unsigned", "varchar(100)", "tinyint(1)"]
    assert json.loads(project.cdc("preview", f"{project.name}-orders", "7").stdout)["id"] == 7
    lines = json.loads(project.cdc("connector", "list", "-o", "json").stdout)
    assert {line["name"]: (line["state"], line["slot"]) for line in lines}[name] == ("running", None)
    grants = project.cdc("connector", "grants", name).stdout
    assert "REPLICATION SLAVE" in grants and f"GRANT SELECT ON `{name}`.`orders` TO 'debezium'@'%';" in grants
    doctor = {found["subject"]: found for found in json.loads(project.cdc("doctor", "-o", "json", check=False).stdout)}
    assert doctor[f"source of {name}"]["level"] == doctor[f"source log of {name}"]["level"] == "ok", doctor
    assert project.cdc("status", check=False).returncode == 0


def test_kept_history_is_held_against_the_mirror_and_a_rebuild_reads_it_again(shop: Shop) -> None:
    name = f"{shop.project.name}-orders"
    held = json.loads(shop.project.cdc("replay", name, "--since", "1h", "--dry-run", "-o", "json").stdout)
    assert held["wrong"] == 0 and held["equal"] > 0, held
    before = shop.project.document(7)
    shop.project.cdc("rebuild", name, "--from", "log")
    after = shop.project.document(7)
    assert before is not None and after is not None
    assert after["customer"] == before["customer"]
    assert shop.verify() == {"checked": 19, "missing": 0, "extra": 0, "different": 0}


def test_tables_are_added_by_a_new_beginning_only(shop: Shop) -> None:
    name, project = shop.own.name, shop.project
    file = project.folder / "connectors/debezium" / f"{name}.toml"
    text = file.read_text()
    file.write_text(text.replace(f'"{name}.orders"', f'"{name}.numbers", "{name}.orders"'))
    shop.own.sql("ALTER TABLE DB.numbers ADD PRIMARY KEY (seq)")
    try:
        done = project.cdc("connector", "apply", name, "--yes", check=False)
        assert done.returncode == 1 and "--anew" in done.stderr
    finally:
        file.write_text(text)


def test_a_connector_that_begins_anew_brings_what_it_missed_and_takes_away_what_is_gone(shop: Shop) -> None:
    name, own, project = shop.own.name, shop.own, shop.project
    project.cdc("connector", "delete", name, "--drop-slot", "--yes")
    own.sql("DELETE FROM DB.orders WHERE id = 10", "UPDATE DB.orders SET total = 1 WHERE id = 11")
    project.cdc("connector", "apply", name, "--yes")
    shop.wait(own.sql("UPDATE DB.orders SET total = 2 WHERE id = 12"))
    until(lambda: project.document(10) is None, 60, "the sweep")
    assert [(project.document(id) or {})["total"] for id in (11, 12)] == ["1.00", "2.00"]
    assert shop.verify() == {"checked": 18, "missing": 0, "extra": 0, "different": 0}
