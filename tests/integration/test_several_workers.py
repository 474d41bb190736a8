"""A read model moves from one worker to two and back, and what a number of workers can't do is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

ORDERS = (Path(__file__).parents[2] / "projections" / "orders.py").read_text()
TARGET = 'to=elasticsearch("orders")'


def _code(project: Project, more: str) -> None:
    text = ORDERS.replace(TARGET, f'to=elasticsearch("{project.name}-orders"){more}')
    project.write_projection("orders", text)


def _new_code(project: Project, more: str) -> None:
    """As it is deployed: `cdc apply`, and `cdc run` anew."""
    project.stop_workers()
    _code(project, more)
    project.cdc("apply", "--yes")
    project.start_run()


def _seen(project: Project) -> list[str]:
    return list(httpx.get(f"{project.endpoints.elasticsearch}/_alias/{project.name}-orders").json())


def _records(project: Project) -> list[str]:
    """Which parts have a checkpoint record."""
    url = f"{project.endpoints.elasticsearch}/cdc-checkpoints"
    httpx.post(f"{url}/_refresh")
    hits = httpx.post(f"{url}/_search", json={"size": 1000, "_source": False}).json()["hits"]["hits"]
    return sorted(hit["_id"] for hit in hits if hit["_id"].startswith(f"{project.name}-orders-"))


def _right(project: Project) -> None:
    project.cdc("wait", f"{project.name}-orders", "--now", "--timeout", "90")
    project.assert_equal()


def test_a_live_read_model_gets_two_workers_by_a_rebuild_and_one_again(new_project: Callable[[str], Project]) -> None:
    project = new_project("it_several")
    project.create(orders=300)
    name = f"{project.name}-orders"
    project.start_run()
    project.wait_for(truth.position(project.dsn), seconds=120)
    load = Load(project.dsn, rate=20, seconds=300)
    load.start()

    _code(project, ", workers=2")
    refused = project.start_worker(number=1)
    assert refused.wait(60) == 78, "the number of workers is part of the version"
    assert "raise `version`" in project.log()

    _new_code(project, ", workers=2, version=2")
    project.cdc("rebuild", name)
    assert _seen(project) == [f"{name}-v2"], "verified, and cut over"
    found: dict[str, Any] = json.loads(project.cdc("status", name, "-o", "json", check=False).stdout)["projections"][0]
    assert (found["version"], len(found["partitions"])) == (2, 2)

    for command in (("erase", "shop.customers", "999999", "--yes"), ("sweep", name, "--dry-run")):
        said = project.cdc(*command, check=False)
        assert said.returncode != 0
        assert "2 workers" in said.stdout + said.stderr, command

    _new_code(project, ", version=3")
    project.cdc("rebuild", name, "--keep", "0.001")
    assert _seen(project) == [f"{name}-v3"]
    load.stop()
    load.join(10)
    assert load.error is None
    _right(project)
    until(lambda: f"{name}-v2@0" not in _records(project), 120, f"the build of two workers goes\n{project.log()}")
    assert f"{name}-v2@1" not in _records(project)
