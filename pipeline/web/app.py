"""The ASGI app: read models to query over HTTP, and the dashboard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig

from pipeline.authoring.discovery import live
from pipeline.settings import Settings
from pipeline.web import feeds, openapi, problems, read_models
from pipeline.web.access import Access, Limits
from pipeline.web.dashboard import router as dashboard
from pipeline.web.models import open_models
from pipeline.web.versions import Versions


def create_app(settings: Settings, *, public: bool = False, hosts: frozenset[str] | None = None) -> FastAPI:
    """The app of the settings' projections. `public`: what needs a key otherwise is answered without one.

    `hosts`: by which names it may be asked; by any where it is None.

    `state` has `settings`, `projections` by name, `models` (those that can be read), their `versions`, `feeds` and `access`.
    """
    projections = live(settings)
    models, access = open_models(settings, projections), Access(settings, public)
    versions = {name: Versions(model) for name, model in models.items()}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for one in versions.values():
            await one.close()

    # its spans are of requests alone, and its metrics and logs would be a second set of both
    telemetry = TelemetryConfig(metrics=False, logs=False, operation_spans=False, auto_configure=False)
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, telemetry=telemetry)
    app.state.settings, app.state.access, app.state.models, app.state.versions = settings, access, models, versions
    app.state.projections = {projection.name: projection for projection in projections}
    problems.install(app)
    openapi.install(app, models, access)
    app.state.feeds = feeds.install(app, versions, access)
    read_models.install(app, versions, access)
    app.include_router(dashboard.router(app))
    app.add_middleware(Limits, settings=settings, hosts=hosts)
    return app
