"""One projection, three sinks, and the link to one of them cut under load: the other two go on, and it catches up."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until
from tests.support.proxy import Mood, proxied
from tests.support.web import expected

pytestmark = pytest.mark.stack


def reached(shop: Project, kind: str) -> int:
    """Up to where a sink is complete."""
    sink = next(s for s in shop.status()["sinks"] if s["name"].startswith(kind))
    lsn: int = sink["watermark"].get(shop.name, {}).get("lsn", -1)
    return lsn


def others_at(shop: Project, lsn: int) -> None:
    until(lambda: min(reached(shop, "redis"), reached(shop, "kafka")) >= lsn, 60, f"Redis and Kafka at {lsn}")


@pytest.mark.edge_case(38, 49)
def test_a_cut_or_silent_link_to_one_sink_holds_up_no_other(new_project: Callable[[str], Project]) -> None:
    shop = new_project("it_link")
    shop.create(orders=150, also=f'redis("{shop.name}:orders"), kafka("{shop.name}.orders")')
    there = urlsplit(shop.endpoints.elasticsearch)
    assert there.hostname is not None and there.port is not None
    with proxied(there.hostname, there.port) as proxy:
        at = {"CDC_ELASTICSEARCH__URL": f"http://127.0.0.1:{proxy.port}", "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "4"}
        shop.start_worker(**at)
        shop.wait_for(truth.position(shop.dsn))
        moods: tuple[Mood, ...] = ("refuse", "silent")
        for mood in moods:
            proxy.mood = mood
            load = Load(shop.dsn, rate=30, seconds=120, seed=len(mood))
            load.start()
            begun = reached(shop, "elasticsearch")
            until(lambda: "SinkUnavailable" in str(shop.sink().get("error")), 60, "the worker says that it is away")
            load.stop()
            load.join(10)
            assert load.error is None
            lsn = truth.position(shop.dsn)
            others_at(shop, lsn)
            right = expected(shop)
            assert dict(truth.in_redis(shop.endpoints.redis, f"{shop.name}:orders")) == right
            assert truth.in_kafka(shop.endpoints.kafka, f"{shop.name}.orders") == right
            assert reached(shop, "elasticsearch") < lsn and not shop.compare().none, "what it lacks is on this side"
            assert begun <= reached(shop, "elasticsearch")
            proxy.mood = "pass"
            shop.wait_for(lsn)
            shop.assert_equal()
        assert shop.workers[0].poll() is None, "the same worker went on"
