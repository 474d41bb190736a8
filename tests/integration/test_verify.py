"""`cdc verify` on the real stack: it finds what is wrong, all of it, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import psycopg
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.damage import damage, remove
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_verify")
    project.create(projections=("orders", "customers"))
    project.start_worker()
    project.start_worker(f"{project.name}-customers")
    project.wait_for(truth.position(project.dsn))
    project.wait_for(truth.position(project.dsn), name="customers")
    yield project


def verified(shop: Project, *options: str, name: str = "orders", code: int = 0) -> dict[str, Any]:
    done = shop.cdc("verify", f"{shop.name}-{name}", *options, "-o", "json", check=False)
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}\n{shop.log()}"
    found: dict[str, Any] = json.loads(done.stdout)["sinks"][0]
    return found


def test_a_right_read_model_is_found_right(shop: Project) -> None:
    found = verified(shop, "--all")
    assert found["checked"] == 200 and found["missing"] == found["extra"] == found["different"] == 0
    customers = verified(shop, "--all", name="customers")
    assert customers["checked"] == 40


def test_documents_that_were_changed_deleted_or_added_are_named_and_repaired(shop: Project) -> None:
    damage(shop, 5, lambda document: document.update(status="wrong"))
    damage(shop, 6, lambda document: document["lines"][1]["product"].update(title="wrong"))
    damage(shop, 7, lambda document: document.update(total="0.00"))
    damage(shop, 8, lambda document: document["lines"].pop())
    damage(shop, 9, lambda document: document.pop("placed_at"))
    for key in (10, 11, 12):
        remove(shop, key)
    for key in (5001, 5002):
        damage(shop, key, lambda document: None)

    found = verified(shop, "--all", code=3)

    kinds = {one["id"]: one["kind"] for one in found["differences"]}
    assert kinds == {
        **dict.fromkeys(("5", "6", "7", "8", "9"), "different"),
        **dict.fromkeys(("10", "11", "12"), "missing"),
        **dict.fromkeys(("5001", "5002"), "extra"),
    }
    fields = {(one["id"], field["path"]): field for one in found["differences"] for field in one["fields"]}
    assert fields["5", "status"]["document"] == "wrong" and fields["5", "status"]["source"] != "wrong"
    assert fields["6", "lines[1].product.title"]["document"] == "wrong"
    assert set(fields) >= {("7", "total"), ("8", "lines"), ("9", "placed_at")}
    assert "10 documents of" in shop.cdc("status", f"{shop.name}-orders", check=False).stderr

    healed = verified(shop, "--all", "--repair")
    assert healed["repaired"] == 10
    shop.assert_equal()
    assert verified(shop, "--all")["compared_again"] == 0
    assert "documents of" not in shop.cdc("status", f"{shop.name}-orders", check=False).stderr


def test_a_document_that_the_author_keeps_out_is_extra_where_it_is(shop: Project) -> None:
    shop.wait_for(shop.sql("UPDATE shop.customers SET deleted_at = now() WHERE id = 3"), name="customers")
    assert verified(shop, "--all", name="customers")["checked"] == 39
    damage(shop, 3, lambda document: document.update(name="back"), "customers")
    found = verified(shop, "--all", name="customers", code=3)
    assert [(one["id"], one["kind"]) for one in found["differences"]] == [("3", "extra")]
    assert verified(shop, "--all", "--repair", name="customers")["repaired"] == 1
    shop.assert_equal("customers", truth.CUSTOMERS)


def test_an_extra_document_whose_id_is_no_key_at_all_is_found(shop: Project) -> None:
    index = f"{shop.endpoints.elasticsearch}/{shop.name}-orders-v1/_doc/odd%20one"
    httpx.put(index, json={"id": 1}, params={"version": 1, "version_type": "external"}).raise_for_status()
    found = verified(shop, "--all", code=3)
    assert [(one["id"], one["kind"]) for one in found["differences"]] == [("odd one", "extra")]
    assert verified(shop, "--all", "--repair")["repaired"] == 1


def test_samples_of_all_parts_together_are_all(shop: Project) -> None:
    damage(shop, 20, lambda document: document.update(status="wrong"))
    report = [
        json.loads(shop.cdc("verify", f"{shop.name}-orders", "--sample", "50%", "-o", "json", check=False).stdout)
    ]
    assert report[0]["share"] == 0.5 and 60 < report[0]["sinks"][0]["checked"] < 140
    assert verified(shop, "--all", "--repair")["repaired"] == 1


def test_under_load_nothing_is_called_wrong(shop: Project) -> None:
    load = Load(shop.dsn, rate=50, seconds=60)
    load.start()
    try:
        for _ in range(3):
            found = verified(shop, "--all", "--timeout", "120")
            assert found["checked"] >= 150
    finally:
        load.stop()
        load.join(30)
    assert load.error is None and load.done > 100


def test_a_mirror_that_was_made_wrong_is_healed(shop: Project) -> None:
    # a change under way would undo the damage, and a document that has the newest revision would not be written again
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'last' WHERE id = (SELECT min(id) FROM shop.orders)"))
    db = apsw.Connection(str(shop.folder / ".cdc" / "mirrors" / f"{shop.name}-orders-v1.db"))
    db.set_busy_timeout(10_000)
    ids = [id for (id,) in db.execute('SELECT id FROM "shop.orders" ORDER BY id LIMIT 5 OFFSET 60')]
    for statement in (
        f"""UPDATE "shop.orders" SET status = 'wrong' WHERE id = {ids[0]}""",
        f"""DELETE FROM "shop.order_lines" WHERE order_id = {ids[1]}""",
        f"""DELETE FROM "shop.orders" WHERE id = {ids[2]}""",
        """INSERT INTO "shop.orders"(id, status, placed_at, charged, customer_id)
           VALUES(777777, 'ghost', '2026-01-01T00:00:00.000000Z', '1.00', 1)""",
        f"""INSERT INTO "shop.order_lines"(order_id, line_no, quantity, unit_price, product_id)
            VALUES({ids[3]}, 99, 1, '1.00', 1)""",
    ):
        db.execute(statement)
    db.execute(
        "INSERT INTO dirty(sink, k0, seq, since, low) SELECT 1, value, seq, seq, 1 FROM json_each(?),"
        " (SELECT value AS seq FROM meta WHERE name = 'seq') WHERE true ON CONFLICT DO NOTHING",
        (json.dumps([*ids, 777777]),),
    )
    db.close()
    shop.wait_for(truth.position(shop.dsn))

    found = verified(shop, "--all", code=3)
    assert {one["id"]: one["kind"] for one in found["differences"]} == {
        str(ids[0]): "different", str(ids[1]): "different", str(ids[2]): "missing", "777777": "extra",
        str(ids[3]): "different",
    }  # fmt: skip

    assert verified(shop, "--all", "--repair")["repaired"] == 5
    shop.assert_equal()


def test_a_transaction_that_stays_open_is_named(shop: Project) -> None:
    with psycopg.connect(shop.dsn) as db:
        db.execute("UPDATE shop.products SET stock = 1 WHERE id = 1")
        done = shop.cdc("verify", f"{shop.name}-orders", "--timeout", "2", check=False)
        db.rollback()
    assert done.returncode == 1 and "transaction open" in done.stderr


@pytest.mark.edge_case(53)
def test_wait_ends_when_the_read_model_has_what_was_committed(shop: Project) -> None:
    name = f"{shop.name}-orders"
    with psycopg.connect(shop.dsn) as db:
        row = db.execute(
            "INSERT INTO shop.orders VALUES(9000, 1, 'waited', now(), 0) RETURNING pg_current_xact_id()::text"
        ).fetchone()
        assert row is not None
        early = shop.cdc("wait", name, "--txid", row[0], check=False)
        assert early.returncode == 1 and "in progress" in early.stderr
    shop.cdc("wait", name, "--txid", row[0])
    order = shop.document(9000)
    assert order is not None and order["status"] == "waited"
    shop.sql("UPDATE shop.orders SET status = 'now' WHERE id = 9000")
    shop.cdc("wait", name, "--now")
    order = shop.document(9000)
    assert order is not None and order["status"] == "now"


@pytest.mark.edge_case(53)
def test_wait_tells_by_its_exit_code_that_time_ran_out(shop: Project) -> None:
    done = shop.cdc("wait", f"{shop.name}-orders", "--lsn", "FFFF/0", "--timeout", "0.3", "-o", "json", check=False)
    assert done.returncode == 4
    (waited,) = json.loads(done.stdout)
    assert waited["reached"] is False and waited["watermark"] > 0
    assert shop.cdc("wait", f"{shop.name}-orders", "--lsn", "0/1").returncode == 0


def test_no_more_documents_a_second_are_compared_than_the_rate_says(shop: Project) -> None:
    found = verified(shop, "--all", "--rate", "100")
    assert found["checked"] >= 200 and found["seconds"] >= found["checked"] / 100


def test_continuous_mode_looks_at_part_after_part_and_tells_status_what_it_finds(shop: Project) -> None:
    wrong = {"20", "21", "22", "23", "24", "25"}
    for key in wrong:
        damage(shop, key, lambda document: document.update(status="wrong"))
    path = shop.folder / "continuous.json"
    with path.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "verify", f"{shop.name}-orders", "--continuous", "--sample", "25%",
             "--every", "0", "--show", "99", "-o", "json"],
            cwd=shop.folder, env=shop.environment, stdout=out,
        )  # fmt: skip
    try:
        until(lambda: len(samples(path)) >= 4, 90, "four samples")
        four = samples(path)[:4]
        assert {report["share"] for report in four} == {0.25}
        assert sum(report["sinks"][0]["checked"] for report in four) >= 200
        assert sorted(one["id"] for report in four for one in report["sinks"][0]["differences"]) == sorted(wrong)
        told = "documents of 25% were not what the source says"
        until(lambda: told in shop.cdc("status", f"{shop.name}-orders", check=False).stderr, 60, "status tells")
        healed = verified(shop, "--all", "--repair")
        assert healed["repaired"] == len(wrong) and process.poll() is None
        known = len(samples(path))
        until(lambda: len(samples(path)) >= known + 5, 90, "another round")
        assert [report["sinks"][0]["different"] for report in samples(path)[known + 1 :][:4]] == [0, 0, 0, 0]
    finally:
        process.terminate()
        process.wait(30)


def test_verify_says_where_the_watermark_stands_when_no_worker_runs(shop: Project) -> None:
    shop.stop_workers()
    done = shop.cdc("verify", f"{shop.name}-orders", "--timeout", "1", check=False)
    assert done.returncode == 1 and "the watermark stands at" in done.stderr


def samples(path: Path) -> list[dict[str, Any]]:
    """The reports that were written so far."""
    text, found, at = path.read_text(), [], 0
    while (at := text.find("{", at)) >= 0:
        try:
            report, at = json.JSONDecoder().raw_decode(text, at)
        except ValueError:
            break  # it is just being written
        found.append(report)
    return found
