"""The ASGI app: read models to query over HTTP."""

from __future__ import annotations

from fastapi import FastAPI

from pipeline.authoring.discovery import live
from pipeline.settings import Settings
from pipeline.web.dashboard import router as dashboard


def create_app(settings: Settings, *, public: bool = False) -> FastAPI:
    """The app of the settings' projections. `public`: what needs a key otherwise is answered without one."""
    app = FastAPI(
        title=f"Read models of {settings.project}", openapi_url="/openapi.json", docs_url=None, redoc_url=None
    )
    app.state.settings, app.state.public = settings, public
    app.state.projections = {projection.name: projection for projection in live(settings)}
    app.include_router(dashboard.router(app))
    return app
