"""Health and metrics: they say what the status report says, and readiness falls when a watermark stops."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml
from fastapi import FastAPI

from pipeline.reports.connectors import ConnectorLine
from pipeline.web import health, metrics
from pipeline.web.sampling import Following, Look, taken
from tests.support.project import REPOSITORY
from tests.unit.dashboards import get, looked, made_app, status_of


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return made_app(tmp_path)


def test_a_watermark_that_stands_while_the_source_moves_is_stopped() -> None:
    sink = Following()
    sink.saw("a", 100, now=0)
    sink.saw("a", 100, now=10)
    assert sink.stopped_for(20) == 0  # the source rests
    sink.saw("a", 101, now=20)
    sink.saw("a", 150, now=25)
    assert sink.stopped_for(50) == 30
    sink.saw("b", 150, now=51)
    assert sink.stopped_for(60) == 0


def test_a_source_that_nobody_can_ask_does_not_move() -> None:
    sink = Following()
    sink.saw("a", 100, now=0)
    sink.saw("a", None, now=10)
    assert sink.stopped_for(100) == 0
    sink.saw("a", 101, now=110)
    assert sink.stopped_for(120) == 10


async def test_readiness_follows_the_watermark(app: FastAPI) -> None:
    sampler = looked(app, status_of("orders"), status_of("sales"))
    following = sampler.courses["orders"].sinks["elasticsearch:orders-v1"]

    assert (await get(app, "/readyz?projection=orders")).status_code == 200
    following.left_behind = time.monotonic() - 40
    stopped = await get(app, "/readyz?projection=orders")

    assert stopped.status_code == 503
    assert re.fullmatch(
        r"the watermark of orders has stood for 4\d s while its source moved", stopped.json()["reasons"][0]
    )
    assert (await get(app, "/readyz?projection=orders&within=120")).status_code == 200
    assert (await get(app, "/readyz?projection=sales")).status_code == 200
    assert (await get(app, "/readyz")).status_code == 200


async def test_a_build_that_readers_no_longer_see_holds_up_no_readiness(app: FastAPI) -> None:
    sampler = looked(app, status_of())
    sampler.courses["orders"].sinks["elasticsearch:orders-v1"].left_behind = time.monotonic() - 40
    found = status_of()
    found.sinks[0].name = "elasticsearch:orders-v2"
    looked(app, found)

    assert (await get(app, "/readyz?projection=orders")).status_code == 200


async def test_what_is_not_known_is_not_ready(app: FastAPI) -> None:
    assert (await get(app, "/readyz")).json() == {"ready": False, "reasons": ["the status has not been read yet"]}
    looked(app, status_of("orders", behind=None, state="new"))

    assert (await get(app, "/readyz?projection=orders")).json()["reasons"] == ["orders has no watermark yet: it is new"]
    assert (await get(app, "/readyz?projection=nix")).json()["reasons"] == ["there is no projection nix"]


async def test_a_status_that_can_no_longer_be_read_is_not_ready(app: FastAPI) -> None:
    sampler = looked(app, status_of())
    sampler.status.at -= 60

    assert "cdc status: no answer for 60 s" in (await get(app, "/readyz")).json()["reasons"][0]
    assert (await get(app, "/livez")).status_code == 200


def test_a_look_that_fails_says_so_without_secrets_and_keeps_what_it_saw() -> None:
    given = iter([7])
    look: Look[int] = Look("cdc status", lambda: next(given), 2)

    taken(look)
    assert (look.value, look.problem) == (7, None)
    taken(look)
    assert (look.value, look.problem) == (7, "cdc status failed with StopIteration")


async def test_the_metrics_say_what_the_report_says(app: FastAPI) -> None:
    sampler = looked(app, status_of(state="gone", quarantined=2, attention=["x"]))
    sampler.connectors.value = [
        ConnectorLine(
            name="shop", state="running", tasks=("running",), slot="cdc_shop", kept_bytes=4096, behind_bytes=8
        )
    ]

    lines = (await get(app, "/metrics")).text.splitlines()

    for line in (
        'cdc_projection_running{projection="orders",version="1"} 0.0',
        'cdc_projection_quarantined{projection="orders"} 2.0',
        'cdc_projection_behind_seconds{projection="orders"} 0.4',
        'cdc_sink_writes_total{outcome="applied",projection="orders",sink="elasticsearch:orders-v1"} 1200.0',
        'cdc_connector_running{connector="shop"} 1.0',
        'cdc_connector_slot_kept_bytes{connector="shop",slot="cdc_shop"} 4096.0',
    ):
        assert line in lines


async def test_every_metric_is_written_of_and_every_written_one_is_there(app: FastAPI) -> None:
    looked(app, status_of())
    page = (REPOSITORY / "docs/operations/metrics.md").read_text()
    written = {
        name: (says, tuple(re.findall(r"`(\w+)`", labels)))
        for name, labels, says in re.findall(r"^\| `(cdc_\w+)` \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    }
    served = set(re.findall(r"^# TYPE (\w+)", (await get(app, "/metrics")).text, re.MULTILINE))

    assert {name: (says.strip(), labels) for name, (says, labels) in written.items()} == metrics.METRICS
    assert served == metrics.METRICS.keys()


def test_alerts_and_charts_ask_for_metrics_that_there_are() -> None:
    for file in ("deploy/prometheus/alerts.yml", "deploy/grafana/cdc.json"):
        asked = set(re.findall(r"\bcdc_\w+", (REPOSITORY / file).read_text()))

        assert asked
        assert asked <= metrics.METRICS.keys(), file


def test_the_patience_of_the_docs_is_the_codes() -> None:
    assert f"{health.PATIENCE:.0f} s" in (REPOSITORY / "docs/operations/health.md").read_text()


def test_every_alert_is_written_of() -> None:
    rules = yaml.safe_load((REPOSITORY / "deploy/prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    page = (REPOSITORY / "docs/operations/alerts.md").read_text()

    assert [rule["alert"] for rule in rules] == re.findall(r"^## (\w+)$", page, re.MULTILINE)


def test_the_pod_of_the_example_is_asked_what_the_app_answers(app: FastAPI) -> None:
    pod, _ = yaml.safe_load_all((REPOSITORY / "deploy/kubernetes/cdc.yaml").read_text())
    web = pod["spec"]["template"]["spec"]["containers"][1]
    paths = {web[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}

    assert all(app.url_path_for(path.strip("/")) == path for path in paths)
