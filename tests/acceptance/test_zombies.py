"""Zombies: a worker that was stopped, replaced, and goes on later; and a second one started by mistake."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = [pytest.mark.stack, pytest.mark.edge_case(38)]

FENCED = 75


@pytest.fixture
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_zombie")
    project.settings |= {"CDC_WORKER__SESSION_TIMEOUT": "6", "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "3"}
    project.create(orders=300)
    yield project
    project.stop_workers()


@pytest.fixture
def load(shop: Project) -> Iterator[Load]:
    load = Load(shop.dsn, rate=40, seconds=300)
    yield load
    load.stop()
    load.join(10)
    assert load.error is None


def test_a_stopped_worker_that_goes_on_after_its_successor_took_over_changes_nothing(shop: Project, load: Load) -> None:
    """The successor has a mirror of its own, as on another machine: it replays, and claims the next epoch."""
    first = shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    load.start()
    shop.wait_for(truth.position(shop.dsn))
    first.send_signal(signal.SIGSTOP)
    second = shop.start_worker(CDC_STATE_DIR=str(shop.folder / "elsewhere"))
    until(lambda: _epoch(shop) == 2, 60, f"the successor claims the sink\n{shop.log()}")
    shop.wait_for(truth.position(shop.dsn))
    first.send_signal(signal.SIGCONT)
    assert first.wait(30) == FENCED, shop.log()
    shop.wait_for(truth.position(shop.dsn))
    load.stop()
    load.join(10)
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert _epoch(shop) == 2, "the zombie must not take the sink back"
    assert second.poll() is None, shop.log()


def test_a_worker_that_comes_back_after_others_wrote_there_writes_every_document_again(
    shop: Project, load: Load
) -> None:
    """What its mirror takes for written was overwritten, perhaps by a successor that was behind it and died."""
    first = shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    load.start()
    shop.wait_for(truth.position(shop.dsn))
    first.send_signal(signal.SIGSTOP)
    second = shop.start_worker(CDC_STATE_DIR=str(shop.folder / "elsewhere"))
    until(lambda: _epoch(shop) == 2, 60, f"the successor claims the sink\n{shop.log()}")
    second.kill()
    second.wait()
    first.send_signal(signal.SIGCONT)
    if first.poll() is None:
        first.send_signal(signal.SIGTERM)
    first.wait(30)
    _put(shop, "1", revision=2 << 40 | 1 << 30, document={"id": 1, "status": "of the successor"})
    shop.start_worker()
    until(lambda: _epoch(shop) >= 3, 60, f"the first takes the sink back\n{shop.log()}")
    load.stop()
    load.join(10)
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()


def test_a_second_worker_on_the_same_state_stands_by_while_the_first_is_stopped(shop: Project, load: Load) -> None:
    """Its mirror belongs to the first for as long as that one lives: no second writer, whoever is awake."""
    first = shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    load.start()
    first.send_signal(signal.SIGSTOP)
    second = shop.start_worker()
    until(lambda: f":{first.pid}:" in shop.log(3) and "standing by" in shop.log(3), 30, "it says who holds the mirror")
    first.send_signal(signal.SIGCONT)
    shop.wait_for(truth.position(shop.dsn))
    first.kill()
    first.wait()
    load.stop()
    load.join(10)
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert second.poll() is None


def test_a_second_worker_on_another_state_stands_by_and_takes_over_when_the_first_ends(
    shop: Project, load: Load
) -> None:
    first = shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    load.start()
    elsewhere = str(shop.folder / "elsewhere")
    second = shop.start_worker(CDC_STATE_DIR=elsewhere)
    until(lambda: f":{first.pid}:" in shop.log(5) and "standing by" in shop.log(5), 30, "it says who reads the topics")
    shop.wait_for(truth.position(shop.dsn))
    shop.settings["CDC_STATE_DIR"] = elsewhere
    until(lambda: shop.status()["state"] == "standby", 10, "status says so")
    assert f":{first.pid}:" in str(shop.status()["attention"])
    assert first.poll() is None and _epoch(shop) == 1, "a newcomer takes nothing away"
    first.terminate()
    assert first.wait(30) == 0
    until(lambda: _epoch(shop) == 2, 60, f"the second takes over\n{shop.log()}")
    load.stop()
    load.join(10)
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert second.poll() is None, shop.log()


def _epoch(shop: Project) -> int:
    found = httpx.get(f"{shop.endpoints.elasticsearch}/cdc-checkpoints/_doc/{shop.name}-orders-v1", timeout=10)
    return int(found.json()["_source"]["epoch"]) if found.status_code == 200 else 0


def _put(shop: Project, key: str, *, revision: int, document: dict[str, object]) -> None:
    """Write as another owner of the sink would."""
    httpx.put(
        f"{shop.endpoints.elasticsearch}/{shop.name}-orders-v1/_doc/{key}",
        params={"version": revision, "version_type": "external"}, json=document, timeout=10,
    ).raise_for_status()  # fmt: skip
