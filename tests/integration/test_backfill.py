"""`cdc backfill` with a real Debezium, while the rows that it reads go on changing."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from connectors.sources.notices import end_offsets
from pipeline.addresses import KafkaAddress
from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_backfill")
    project.create(orders=2000, projections=("orders", "customers"), definition="[snapshot]\nchunk_size = 50\n")
    project.start_worker()
    project.start_worker(f"{project.name}-customers")
    position = truth.position(project.dsn)
    project.wait_for(position)
    project.wait_for(position, name="customers")
    yield project


def backfill(shop: Project, *arguments: str, check: bool = True) -> dict[str, Any]:
    done = shop.cdc("backfill", *arguments, "-o", "json", check=check)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.edge_case(11)
def test_rows_that_change_while_they_are_read_again_end_as_in_the_source(shop: Project) -> None:
    for name in ("orders", "order_lines", "products"):
        key = "order_id" if name == "order_lines" else "id"
        column = {"orders": "status = 'wrong'", "order_lines": "quantity = 99", "products": "title = 'wrong'"}[name]
        shop.damage("orders", f'UPDATE "shop.{name}" SET {column} WHERE {key} % 3 = 0')
    load = Load(shop.dsn, rate=40, seconds=300)
    load.start()
    try:
        reports = [backfill(shop, f"shop.{name}") for name in ("orders", "order_lines", "products")]
    finally:
        load.stop()
        load.join(10)
    assert load.error is None
    assert reports[0]["rows"] >= 2000 and reports[0]["chunks"] >= 40, reports
    assert all(
        p == {"projection": f"{shop.name}-orders", "passed": True, "reason": ""} for p in reports[0]["projections"]
    )
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()


@pytest.mark.edge_case(11)
def test_a_hot_row_is_never_set_back_by_a_snapshot_that_was_asked_for_again_and_again(shop: Project) -> None:
    stopping, error = threading.Event(), []

    def write() -> None:
        try:
            with shop.connection() as db:
                while not stopping.is_set():
                    db.execute("UPDATE shop.customers SET name = 'n' || nextval('hot') WHERE id = 1")
                    db.commit()
        except Exception as failed:
            error.append(failed)

    shop.sql("CREATE SEQUENCE hot")
    writer = threading.Thread(target=write)
    writer.start()
    seen: list[int] = []
    try:
        for _ in range(3):
            backfill(shop, "shop.customers", "--where", "id = 1", "--projection", f"{shop.name}-customers")
            found = shop.document(1, "customers")
            assert found is not None
            seen.append(int(str(found["name"]).removeprefix("n")))
    finally:
        stopping.set()
        writer.join(10)
    assert not error and seen == sorted(seen)
    shop.wait_for(truth.position(shop.dsn), name="customers")
    shop.assert_equal("customers", truth.CUSTOMERS)


def test_when_it_ends_the_documents_show_the_rows(shop: Project) -> None:
    shop.damage("customers", """UPDATE "shop.customers" SET email = 'wrong' WHERE id % 2 = 0""")
    report = backfill(shop, "shop.customers", "--where", "name LIKE '%' AND id % 2 = 0")
    assert report["rows"] == 200 and {p["passed"] for p in report["projections"]} == {True}
    shop.assert_equal("customers", truth.CUSTOMERS)


def test_a_condition_that_the_source_refuses_never_reaches_the_connector(shop: Project) -> None:
    for where in ("nonsense = 1", "1/0 = id", "id = 1); DROP TABLE shop.orders; --", "data ? 'key'"):
        done = shop.cdc("backfill", "shop.orders", "--where", where, check=False)
        assert done.returncode == 1 and "condition" in done.stderr, done.stderr
    assert httpx.get(f"{shop.endpoints.connect}/connectors/{shop.name}/status").json()["tasks"][0]["state"] == "RUNNING"
    assert backfill(shop, "shop.orders", "--where", "false")["rows"] == 0


def test_a_table_that_nobody_captures_is_refused(shop: Project) -> None:
    done = shop.cdc("backfill", "shop.other", check=False)
    assert done.returncode == 1 and "No connector captures shop.other; captured are shop.customers" in done.stderr


SLOW = """
CREATE FUNCTION cdc.slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON cdc.signals FOR EACH ROW WHEN (NEW.type = 'snapshot-window-open')
EXECUTE FUNCTION cdc.slow();
"""


def test_ctrl_c_stops_the_connectors_snapshot_and_the_next_one_goes_through(shop: Project) -> None:
    topic = f"{shop.name}.shop.order_lines"
    before = sum(asyncio.run(end_offsets(KafkaAddress(shop.endpoints.kafka), topic)).values())
    shop.sql(SLOW)  # half a second for each of more than a hundred chunks
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "backfill", "shop.order_lines"],
        cwd=shop.folder, env=shop.environment, stderr=subprocess.PIPE,
    )  # fmt: skip
    until(
        lambda: sum(asyncio.run(end_offsets(KafkaAddress(shop.endpoints.kafka), topic)).values()) > before,
        60,
        "rows are coming",
    )
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    shop.sql("DROP FUNCTION cdc.slow() CASCADE")
    assert process.returncode == 130
    report = backfill(shop, "shop.order_lines", "--where", "order_id = 3")
    assert report["rows"] == 3 and report["projections"][0]["passed"]
    sent = sum(asyncio.run(end_offsets(KafkaAddress(shop.endpoints.kafka), topic)).values()) - before
    with shop.connection() as db:
        (every,) = db.execute("SELECT count(*) FROM shop.order_lines").fetchone() or (0,)
    assert 0 < sent < every, "the snapshot went on to its end"


def test_a_projection_whose_worker_does_not_run_is_named(shop: Project) -> None:
    shop.workers[1].terminate()
    shop.workers[1].wait(30)
    until(lambda: shop.status("customers")["state"] == "stopped", 10, "it is stopped")
    report = backfill(shop, "shop.customers", "--where", "id = 2", check=False)
    assert {p["projection"]: p["passed"] for p in report["projections"]} == {
        f"{shop.name}-orders": True,
        f"{shop.name}-customers": False,
    }
    assert "start it" in next(p["reason"] for p in report["projections"] if not p["passed"])
