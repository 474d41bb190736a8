"""Zombies: a worker that was stopped, replaced, and goes on later; and a second one started elsewhere by mistake."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_zombie")
    project.settings["CDC_WORKER__SESSION_TIMEOUT"] = "6"
    project.create(orders=300)
    yield project


@pytest.mark.edge_case(38)
def test_a_stopped_worker_that_goes_on_after_its_successor_changes_nothing(shop: Project) -> None:
    """The successor has a mirror of its own, as on another machine: it replays, and claims the next epoch."""
    first = shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    load = Load(shop.dsn, rate=40, seconds=120)
    load.start()
    shop.wait_for(truth.position(shop.dsn))
    first.send_signal(signal.SIGSTOP)
    elsewhere = str(shop.folder / "elsewhere")
    shop.start_worker(CDC_STATE_DIR=elsewhere)
    until(lambda: _epoch(shop) == 2, 60, f"the successor claims the sink\n{shop.log()}")
    shop.wait_for(truth.position(shop.dsn))
    first.send_signal(signal.SIGCONT)
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'late' WHERE id = 1"))
    load.stop()
    load.join(10)
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert _epoch(shop) == 2, "the zombie must not take the sink back"
    shop.stop_workers()


def _epoch(shop: Project) -> int:
    found = httpx.get(f"{shop.endpoints.elasticsearch}/cdc-checkpoints/_doc/{shop.name}-orders-v1", timeout=10)
    return int(found.json()["_source"]["epoch"]) if found.status_code == 200 else 0
