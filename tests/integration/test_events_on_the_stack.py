"""An outbox on the real stack: each order's saga in Elasticsearch is the fold of what the shop told, and the tags follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.demo import shop, truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def told(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_events")
    project.create(orders=200, projections=("order_saga", "tags"), more=True)
    project.start_worker(f"{project.name}-order_saga")
    project.start_worker(f"{project.name}-tags")
    yield project


def both(told: Project, seconds: float = 60) -> None:
    at = truth.position(told.dsn)
    for name, query in (("order_saga", truth.SAGAS), ("tags", truth.TAGS)):
        told.wait_for(at, seconds=seconds, name=name)
        told.assert_equal(name, query)


def test_the_first_load_folds_what_the_outbox_holds(told: Project) -> None:
    both(told)
    assert told.compare("order_saga", truth.SAGAS).documents == 200
    saga = told.document("3", "order_saga")
    assert saga is not None and saga["steps"][0] == "placed"


@pytest.mark.edge_case(38)
def test_a_worker_killed_under_load_folds_nothing_twice(told: Project) -> None:
    load = shop.Load(told.dsn, 30, 8, tells=True)
    load.start()
    for _ in range(2):
        done = load.done
        until(lambda done=done: load.done > done + 40 or not load.running, 60, "the load goes on")
        told.workers[-1].kill()
        told.workers[-1].wait()
        told.workers[0].kill()
        told.workers[0].wait()
        told.workers.clear()
        told.start_worker(f"{told.name}-order_saga")
        told.start_worker(f"{told.name}-tags")
    load.join(60)
    assert load.error is None and {"order", "change", "delete", "tag"} <= load.by_kind.keys()
    both(told, seconds=120)


def test_a_payload_that_does_not_fit_waits_and_the_stream_goes_on(told: Project) -> None:
    told.sql(f"{shop.TELL}VALUES('order', 3, 'OrderRefused', '{{\"why\": 1}}')")
    told.wait_for(
        told.sql(f"{shop.TELL}VALUES('order', 900003, 'OrderPlaced', '{{\"total\": 1.20}}')"), name="order_saga"
    )
    saga = told.document("900003", "order_saga")
    assert saga is not None and saga["total"] == "1.20"
    listed = told.cdc("quarantine", "list", "-o", "json").stdout
    assert "the payload is no OrderRefused" in listed
    told.sql("""UPDATE shop.outbox SET payload = '{"reason": "none"}' WHERE payload ? 'why'""")
    both(told)


def test_verify_folds_anew_and_leaves_alone_what_the_outbox_has_no_more(told: Project) -> None:
    name = f"{told.name}-order_saga"
    path = f"{told.endpoints.elasticsearch}/{name}-v1/_doc/"
    stored = httpx.get(path + "4").json()
    params = {"version": stored["_version"], "version_type": "external_gte"}
    httpx.put(path + "4", json=stored["_source"] | {"status": "wrong"}, params=params).raise_for_status()
    told.wait_for(
        told.sql("DELETE FROM shop.outbox WHERE aggregate_id = 5 AND type = 'OrderPlaced'"), name="order_saga"
    )
    done = told.cdc("verify", name, "--all", "-o", "json", check=False)
    found = json.loads(done.stdout)["sinks"][0]
    assert [(one["id"], one["kind"]) for one in found["differences"]] == [("4", "different")]
    assert found["unbuildable"] == 1

    healed = json.loads(told.cdc("verify", name, "--all", "--repair", "-o", "json").stdout)["sinks"][0]
    assert healed["repaired"] == 1


def test_an_outbox_that_is_emptied_leaves_every_saga_and_a_truncate_too(told: Project) -> None:
    before = dict(truth.documents(told.endpoints.elasticsearch, f"{told.name}-order_saga"))
    told.sql("DELETE FROM shop.outbox WHERE id % 2 = 0")
    told.sql("TRUNCATE shop.outbox")
    insert = f"{shop.TELL}VALUES('order', 3, 'OrderCompensated', '{{\"amount\": 1}}')"
    told.wait_for(told.sql(insert, "DELETE FROM shop.outbox"), name="order_saga")
    after = dict(truth.documents(told.endpoints.elasticsearch, f"{told.name}-order_saga"))
    verified = json.loads(told.cdc("verify", f"{told.name}-order_saga", "--all", "-o", "json").stdout)["sinks"][0]
    assert (verified["checked"], verified["extra"], verified["different"]) == (0, 0, 0)
    saga = after.pop("3")
    assert saga["status"] == "compensated" and saga["steps"] == [*before.pop("3")["steps"], "compensated"]
    assert after == before


def test_a_rebuild_has_the_events_that_the_outbox_has_no_more(told: Project) -> None:
    name = f"{told.name}-order_saga"
    before = dict(truth.documents(told.endpoints.elasticsearch, name))
    told.stop_workers()
    told.start_run()
    done = told.cdc("rebuild", name, "-o", "json")
    assert json.loads(done.stdout)["live"] == f"{name}-v1.2"
    after = dict(truth.documents(told.endpoints.elasticsearch, name))
    assert len(before) > 200
    assert {id: {**document, "_epoch": 0} for id, document in after.items()} == {
        id: {**document, "_epoch": 0} for id, document in before.items()
    }
