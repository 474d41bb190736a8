"""The query API of a project on the real stack, and what its documents have to be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg

from pipeline.demo import truth
from pipeline.settings import Settings
from pipeline.web.app import create_app
from tests.support.project import Project


def settings_of(shop: Project, **web: Any) -> Settings:
    up, folder = shop.endpoints, shop.folder
    return Settings.model_validate(
        {
            "project": shop.name.replace("_", "-"), "state_dir": folder / ".cdc", "projections": folder / "projections",
            "connectors": folder / "connectors/debezium", "catalog": folder / "projections/catalog.lock.json",
            "kafka": {"bootstrap": up.kafka}, "connect": {"url": up.connect}, "elasticsearch": {"url": up.elasticsearch},
            "source": {"dsn": shop.dsn}, "postgres": {"dsn": shop.dsn}, "web": web,
        }
    )  # fmt: skip


@asynccontextmanager
async def served(settings: Settings, *, public: bool = True, key: str = "") -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, public=public)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client,
    ):
        yield client


def expected(shop: Project) -> dict[str, Any]:
    with psycopg.connect(shop.dsn) as db:
        return dict(db.execute(truth.ORDERS.encode()).fetchall())


def whole(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-read-model-as-of"].endswith("Z") and answer.headers["x-read-model-watermark"].startswith(
        "lsn:"
    )
    return answer.json()
