"""An app whose sampler has seen what a test says; nobody is asked."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from pipeline.operations.status import Building, ProjectionStatus, SinkStatus, StatusReport
from pipeline.settings import ElasticsearchSettings, Settings
from pipeline.web.app import create_app
from pipeline.web.sampling import Sampler
from tests.support.project import REPOSITORY


def status_of(name: str = "orders", **changes: Any) -> ProjectionStatus:
    sink = SinkStatus(
        name=f"elasticsearch:{name}-v1", dirty=3, pending=0, quarantined=0, behind=0.4, error=None,
        watermark={"shop": {"lsn": 0x1_0000_00FF, "txid": 7, "ts_ms": 0, "log": "1/1"}}, written={"applied": 1200, "stale": 2},
    )  # fmt: skip
    whole: dict[str, Any] = {
        "name": name, "version": 1, "state": "running", "documents": 20_000, "behind": 0.4, "dirty": 3, "fanouts": 0, "staged": 0,
        "pending": 0, "refreshing": 0, "quarantined": 0, "dead_letters": 0, "released_incomplete": 0, "pid": 1, "error": None,
        "sinks": [sink], "attention": [],
    }  # fmt: skip
    return ProjectionStatus(**(whole | changes))


def made_app(tmp_path: Path, *, public: bool = True) -> FastAPI:
    """The repository's own projections, looked at by nobody yet."""
    settings = Settings(
        state_dir=tmp_path,
        projections=REPOSITORY / "projections",
        connectors=REPOSITORY / "connectors/debezium",
        catalog=REPOSITORY / "projections/catalog.lock.json",
        elasticsearch=ElasticsearchSettings(url="http://127.0.0.1:9"),
    )
    return create_app(settings, public=public)


def looked(app: FastAPI, *projections: ProjectionStatus, building: tuple[Building, ...] = ()) -> Sampler:
    """As if the sampler had just seen this, and before it as much."""
    sampler: Sampler = app.state.sampler
    report = StatusReport(projections=list(projections), building=list(building))
    sampler.status.value, sampler.status.at = report, time.time()
    for found in projections:
        sampler.note(found, 0)
        more = found.model_copy(update={"changes": found.changes + 50})
        sampler.note(more, 2)
    return sampler


async def get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        return await client.get(path)
