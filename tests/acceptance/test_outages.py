"""Services that go away under load: nothing is lost, the cause is visible, and it goes on by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from pipeline.settings import Settings
from pipeline.stack import stack as local_stack
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_outage")
    project.create(orders=300)
    project.start_worker()
    project.wait_for(truth.position(project.dsn))
    yield project


@pytest.fixture
def load(shop: Project) -> Iterator[Load]:
    load = Load(shop.dsn, rate=40, seconds=300)
    load.start()
    yield load
    load.stop()
    load.join(10)
    assert load.error is None


def finish(shop: Project, load: Load, seconds: float = 90) -> None:
    load.stop()
    load.join(10)
    shop.wait_for(truth.position(shop.dsn), seconds=seconds)
    shop.assert_equal()


@pytest.mark.edge_case(49)
def test_elasticsearch_away_under_load_costs_a_set_of_keys(shop: Project, load: Load, stack_settings: Settings) -> None:
    local_stack.stop_service(stack_settings, "elasticsearch", hard=True)
    said = until(lambda: shop.sink().get("error"), 30, "the worker says why nothing is written")
    assert "SinkUnavailable" in said
    applied = shop.said()["applied"]
    until(lambda: shop.said()["applied"] > applied + 100, 60, "changes still flow into the mirror")
    assert any("SinkUnavailable" in line for line in shop.status()["attention"])
    local_stack.start_service(stack_settings, "elasticsearch")
    finish(shop, load)
    assert shop.workers[0].poll() is None, "the same worker went on"


@pytest.mark.edge_case(49)
def test_a_read_only_block_is_waited_out(shop: Project, load: Load) -> None:
    index = f"{shop.endpoints.elasticsearch}/{shop.name}-orders-v1/_settings"
    httpx.put(index, json={"index.blocks.write": True}).raise_for_status()
    until(lambda: "throttled" in str(shop.sink().get("error")), 30, "the worker says that it is throttled")
    httpx.put(index, json={"index.blocks.write": None}).raise_for_status()
    finish(shop, load)
    assert shop.status()["quarantined"] == 0


def test_kafka_killed_under_load_comes_back(shop: Project, load: Load, stack_settings: Settings) -> None:
    local_stack.stop_service(stack_settings, "kafka", hard=True)
    local_stack.start_service(stack_settings, "kafka")
    if shop.workers[-1].poll() is not None:  # a supervisor would have started it again
        shop.start_worker()
    finish(shop, load)
