"""A network between the worker and Elasticsearch that is slow, silent, or cuts connections, under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until
from tests.support.proxy import Mood, Proxy, proxied

pytestmark = pytest.mark.stack
MEMORY_BOUND = 400_000_000


@pytest.fixture(scope="module")
def network(new_project: Callable[[str], Project]) -> Iterator[tuple[Project, Proxy]]:
    project = new_project("it_net")
    project.create(orders=300)
    there = urlsplit(project.endpoints.elasticsearch)
    assert there.hostname is not None and there.port is not None
    with proxied(there.hostname, there.port) as proxy:
        project.start_worker(
            CDC_ELASTICSEARCH__URL=f"http://127.0.0.1:{proxy.port}", CDC_ELASTICSEARCH__REQUEST_TIMEOUT="4"
        )
        project.wait_for(truth.position(project.dsn))
        yield project, proxy
        proxy.mood = "pass"
        project.stop_workers()


@pytest.mark.edge_case(38, 49)
@pytest.mark.parametrize("mood", ["silent", "refuse", "cut", "slow", "busy"])
def test_nothing_is_lost_and_the_cause_is_visible(network: tuple[Project, Proxy], mood: Mood) -> None:
    shop, proxy = network
    load = Load(shop.dsn, rate=30, seconds=120, seed=len(mood))
    load.start()
    try:
        cuts, applied = proxy.cuts, shop.said()["applied"]
        proxy.mood = mood
        if mood in ("silent", "refuse"):
            said = until(lambda: shop.sink().get("error"), 60, "the worker says why nothing is written")
            assert "SinkUnavailable" in str(said)
            assert any("SinkUnavailable" in line for line in shop.status()["attention"])
        elif mood == "busy":
            until(lambda: "429" in str(shop.sink().get("error")), 60, "the worker says that it is to wait")
            assert proxy.refused
        elif mood == "cut":
            until(lambda: proxy.cuts > cuts + 10, 60, "connections were cut")
        until(lambda: shop.said()["applied"] > applied + 100, 60, "changes still flow into the mirror")
    finally:
        proxy.mood = "pass"
        load.stop()
        load.join(10)
    assert load.error is None
    shop.wait_for(truth.position(shop.dsn), seconds=90)
    shop.assert_equal()
    assert shop.workers[0].poll() is None, "the same worker went on"
    assert shop.said()["peak_memory"] < MEMORY_BOUND
    until(lambda: not shop.sink().get("error"), 10, "nothing is complained of any more")
