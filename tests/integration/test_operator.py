"""What an operator asks: status, explain, doctor; on the real stack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.demo import truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_operator")
    project.create(orders=50)
    project.start_worker()
    project.wait_for(truth.position(project.dsn))
    yield project


def test_explain_tells_the_rows_and_what_the_sink_holds(shop: Project) -> None:
    story = json.loads(shop.cdc("explain", f"{shop.name}-orders", "7", "-o", "json").stdout)
    assert [row["table"] for row in story["rows"]].count("shop.order_lines") == 3
    assert story["document"]["id"] == 7
    assert story["sinks"][0]["equal"] is True and story["sinks"][0]["epoch"] == 1


def test_explain_sees_a_document_that_somebody_changed_in_the_sink(shop: Project) -> None:
    index = f"{shop.endpoints.elasticsearch}/{shop.name}-orders-v1/_doc/8"
    stored = httpx.get(index).json()
    wrong = {**stored["_source"], "status": "wrong"}
    params = {"version": stored["_version"] + 1, "version_type": "external"}
    httpx.put(index, json=wrong, params=params).raise_for_status()
    story = json.loads(shop.cdc("explain", f"{shop.name}-orders", "8", "-o", "json").stdout)
    assert story["sinks"][0]["equal"] is False


@pytest.mark.edge_case(52)
def test_a_wait_says_that_reads_by_id_find_it_and_searches_too_when_asked(shop: Project) -> None:
    """Elasticsearch searches what was there at its last refresh, up to a second or more ago."""
    alias = f"{shop.endpoints.elasticsearch}/{shop.name}-orders"
    httpx.put(f"{alias}/_settings", json={"index.refresh_interval": "-1"}).raise_for_status()
    for n in range(3):
        shop.sql(f"UPDATE shop.orders SET status = 'round {n}' WHERE id = 9")
        shop.cdc("wait", f"{shop.name}-orders", "--now")
        found = shop.document(9)
        assert found is not None and found["status"] == f"round {n}"
        asked = {"query": {"term": {"status": f"round {n}"}}}
        assert httpx.post(f"{alias}/_search", json=asked).json()["hits"]["total"]["value"] == 0
        shop.cdc("wait", f"{shop.name}-orders", "--now", "--searchable")
        assert httpx.post(f"{alias}/_search", json=asked).json()["hits"]["total"]["value"] == 1
    httpx.put(f"{alias}/_settings", json={"index.refresh_interval": None}).raise_for_status()


def test_doctor_finds_nothing_wrong_here_and_names_what_is(shop: Project) -> None:
    done = shop.cdc("doctor", "-o", "json")
    found = {f["subject"]: f for f in json.loads(done.stdout)}
    assert found["wal_level"]["level"] == "ok" and found[f"slot cdc_{shop.name}"]["level"] == "ok"
    assert found[f"connector {shop.name}"]["level"] == "ok" and found[f"topic {shop.name}.shop.orders"]["level"] == "ok"
    shop.sql("ALTER TABLE shop.products REPLICA IDENTITY NOTHING")
    done = shop.cdc("doctor", "-o", "json", check=False)
    shop.sql("ALTER TABLE shop.products REPLICA IDENTITY DEFAULT")
    found = {f["subject"]: f for f in json.loads(done.stdout)}
    assert done.returncode == 4
    assert found["table shop.products"]["fix"] == "ALTER TABLE shop.products REPLICA IDENTITY DEFAULT"


def test_doctor_says_what_cannot_be_reached_without_a_password(shop: Project) -> None:
    shop.settings["CDC_SOURCE__DSN"] = "postgresql://postgres:hunter2@127.0.0.1:9/shop"
    shop.settings["CDC_KAFKA__BOOTSTRAP"] = "127.0.0.1:9"
    shop.settings["CDC_ELASTICSEARCH__URL"] = "http://127.0.0.1:9"
    try:
        done = shop.cdc("doctor", "-o", "json", check=False)
    finally:
        shop.settings.clear()
    assert done.returncode == 4 and "hunter2" not in done.stdout + done.stderr
    assert {f["subject"] for f in json.loads(done.stdout) if f["level"] == "error"} >= {
        "source",
        "kafka",
        "elasticsearch",
    }


def test_status_says_that_a_worker_is_gone(shop: Project) -> None:
    assert shop.status()["state"] == "running" and shop.status()["attention"] == []
    shop.workers[0].kill()
    shop.workers[0].wait()
    until(lambda: shop.status()["state"] == "gone", 15, "status sees it")
    assert shop.cdc("status", f"{shop.name}-orders", check=False).returncode == 4


def test_a_plan_is_shown_kept_and_refused_when_it_is_outdated(shop: Project) -> None:
    plan, file = shop.folder / "plan.json", shop.folder / "projections" / "orders.py"
    assert shop.cdc("plan").returncode == 0, "nothing differs"
    before = file.read_text()
    try:
        file.write_text(before.replace("    status: str\n", "    status: str\n    state: str = column('status')\n"))
        file.write_text(file.read_text().replace("import Document, ", "import Document, column, "))
        refused = shop.cdc("plan", check=False)
        assert refused.returncode == 1 and "raise its version to 2" in refused.stdout + refused.stderr
        file.write_text(file.read_text().replace('-orders"))', '-orders"), version=2)'))
        planned = shop.cdc("plan", "--out", str(plan), "-o", "json", check=False)
        assert planned.returncode == 2
        step = next(s for s in json.loads(planned.stdout)["steps"] if s["action"] == "beside")
        assert step["changes"] == ["+ state text"] and step["documents"] > 0
        file.write_text(file.read_text().replace("column('status')", "column('placed_at')"))
        outdated = shop.cdc("apply", str(plan), "--yes", check=False)
        assert outdated.returncode == 1 and "PlanOutdated" in outdated.stderr
    finally:
        file.write_text(before)
