"""A connector made anew, and what the source's log does to positions, on the real stack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pipeline.demo import truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_logs")
    project.create(orders=300)
    project.start_worker()
    project.wait_for(truth.position(project.dsn))
    yield project


def watermark(project: Project) -> dict[str, object]:
    found: dict[str, object] = project.status()["sinks"][0]["watermark"][project.name]
    return found


def make_anew(project: Project, *meanwhile: str) -> str:
    """The connector and its slot go, the source changes, and a new connector begins with a snapshot; the log before."""
    before = str(watermark(project)["log"])
    project.cdc("connector", "delete", project.name, "--drop-slot", "--yes")
    project.sql(*meanwhile)
    project.cdc("connector", "apply", project.name, "--yes")
    return before


@pytest.mark.edge_case(12)
def test_what_went_while_no_connector_was_there_is_swept_after_the_new_snapshot(shop: Project) -> None:
    before = make_anew(
        shop,
        "DELETE FROM shop.orders WHERE id BETWEEN 100 AND 120",
        "INSERT INTO shop.orders VALUES(900, 1, 'new', now(), 0)",
        "UPDATE shop.customers SET name = 'Meanwhile' WHERE id = 3",
        "UPDATE shop.order_lines SET order_id = 900 WHERE order_id = 130 AND line_no = 1",
        "UPDATE shop.orders SET charged = (SELECT sum(quantity * unit_price) FROM shop.order_lines WHERE order_id = id)"
        " WHERE id IN (130, 900)",
    )
    until(lambda: watermark(shop)["log"] != before, 60, "a watermark in the new source log")
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert shop.document(110) is None
    logs = shop.status()["source_logs"]
    assert [log["log"] for log in logs] == [before, watermark(shop)["log"]]
    assert logs[0]["identity"] == logs[1]["identity"]


@pytest.mark.edge_case(12)
def test_a_large_share_waits_for_cdc_sweep(shop: Project) -> None:
    make_anew(shop, "DELETE FROM shop.orders WHERE id BETWEEN 121 AND 290")
    until(lambda: shop.status()["held"], 60, "the sweep is held")
    said = shop.cdc("status", check=False)
    assert said.returncode == 4
    assert "rows of shop.orders are not in the source's new snapshot" in " ".join(said.stderr.split())
    counted = json.loads(shop.cdc("sweep", f"{shop.name}-orders", "--dry-run", "-o", "json").stdout)
    assert counted["rows"]["shop.orders"] == [170, 280] and counted["allowed"] is False
    assert shop.document(200) is not None
    shop.cdc("sweep", f"{shop.name}-orders", "--yes")
    until(lambda: not shop.status()["held"], 30, "the sweep is done")
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()


@pytest.mark.edge_case(14)
def test_a_transaction_written_before_a_snapshot_and_committed_after_it_wins(shop: Project) -> None:
    with psycopg.connect(shop.dsn) as long:
        long.execute("UPDATE shop.orders SET status = 'long' WHERE id = 5")
        shop.sql("UPDATE shop.orders SET status = 'short' WHERE id = 6")
        shop.cdc("backfill", "shop.orders", "--where", "id IN (5, 6)")
    shop.wait_for(truth.position(shop.dsn))
    found = shop.document(5)
    assert found is not None and found["status"] == "long"
    shop.assert_equal()


@pytest.mark.edge_case(15)
def test_rows_of_one_copy_share_a_position_and_all_arrive(shop: Project) -> None:
    with psycopg.connect(shop.dsn) as db:
        db.execute("INSERT INTO shop.orders VALUES(950, 1, 'new', now(), 0)")
        with db.cursor().copy("COPY shop.order_lines FROM STDIN") as copy:
            for line in range(1, 201):
                copy.write_row((950, line, 1, 1, "0.50"))
        db.execute("UPDATE shop.orders SET charged = 100 WHERE id = 950")
    shop.wait_for(truth.position(shop.dsn))
    found = shop.document(950)
    assert found is not None and len(found["lines"]) == 200
    shop.assert_equal()


@pytest.mark.edge_case(13)
def test_a_connector_that_restarts_goes_on_in_its_log(shop: Project) -> None:
    before = watermark(shop)["log"]
    shop.sql("UPDATE shop.orders SET status = 'before' WHERE id = 7")
    shop.cdc("connector", "restart", shop.name, "--yes")
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'after' WHERE id = 7"))
    assert watermark(shop)["log"] == before
    shop.assert_equal()


@pytest.mark.edge_case(12)
def test_a_lost_slot_is_refused_with_what_to_do(shop: Project) -> None:
    slot = f"cdc_{shop.name}"
    shop.cdc("connector", "delete", shop.name, "--yes")
    with psycopg.connect(shop.dsn, autocommit=True) as db:
        db.execute("SELECT pg_drop_replication_slot(%s)", [slot])
    refused = shop.cdc("connector", "apply", shop.name, "--yes", check=False)
    assert refused.returncode == 1 and "no longer has its slot" in " ".join(refused.stderr.split())
    found = json.loads(shop.cdc("doctor", "-o", "json", check=False).stdout)
    assert any(f["subject"] == f"source log of {shop.name}" and f["level"] == "error" for f in found)
    make_anew(shop, "UPDATE shop.orders SET status = 'unseen' WHERE id = 8")
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
