"""The dashboard's paths: each page, its `.json` twin of the same model, signing in, and the buttons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

from pipeline.settings import Settings
from pipeline.web import health
from pipeline.web.dashboard import render
from pipeline.web.dashboard.loads import Dashboard
from pipeline.web.dashboard.pages import Page
from pipeline.web.dashboard.sessions import OPERATE, Sessions, Visitor, form_of, same_origin
from pipeline.web.problems import Problem
from pipeline.web.sampling import Sampler

Load = Callable[..., Awaitable[Page]]


def router(app: FastAPI) -> APIRouter:
    """Pages, health and metrics of an app that has `state.settings`, `.projections` and `.access`; they sample while it runs."""
    settings: Settings = app.state.settings
    sampler = Sampler(settings, app.state.projections)
    dashboard, sessions = Dashboard(settings, sampler, app.state.versions), Sessions(app.state.access)
    app.state.sampler = sampler

    @asynccontextmanager
    async def sampling(_: FastAPI) -> AsyncIterator[None]:
        await sampler.first()
        running = asyncio.create_task(sampler.run(), name="sampler")
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            dashboard.answers.close()

    paths = APIRouter(lifespan=sampling, include_in_schema=False)
    named = "/projections/{name}"
    # each twin before its page, whose path would take the name with the ending
    for path, twin, template, load in (
        ("/", "/status.json", "overview", dashboard.overview),
        (f"{named}/document", f"{named}/document.json", "document", dashboard.document),
        (named, f"{named}.json", "projection", dashboard.projection),
        ("/refused", "/refused.json", "refused", dashboard.refused),
        ("/sources", "/sources.json", "sources", dashboard.sources),
        ("/plan", "/plan.json", "plan", dashboard.plan),
        ("/doctor", "/doctor.json", "doctor", dashboard.doctor),
    ):
        _both(paths, path, twin, f"{template}.html", load, settings, sessions)
    _actions(paths, dashboard, sessions, settings)

    @paths.get("/static/{name}")
    async def file(name: str) -> Response:
        return render.file(name)

    paths.include_router(health.router(sampler, app.state.versions))
    return paths


def _both(
    paths: APIRouter, path: str, twin: str, template: str, load: Load, settings: Settings, sessions: Sessions
) -> None:
    loaded: Any = Depends(load)

    def may(request: Request) -> Visitor:
        return sessions.visitor(request)

    def may_or_signs_in(request: Request) -> Visitor:
        try:
            return sessions.visitor(request)
        except Problem as problem:
            if problem.status != 401:
                raise
            raise HTTPException(303, "Sign in", headers={"location": "/login"}) from None

    allowed: Any = Depends(may)
    visits: Any = Depends(may_or_signs_in)

    # who asks comes first: nothing is loaded for somebody who may not see it
    async def json(visitor: Visitor = allowed, page: Page = loaded) -> Response:
        headers = {"cache-control": "no-store"}
        return Response(page.model_dump_json(indent=2), headers=headers, media_type="application/json")

    async def html(request: Request, visitor: Visitor = visits, page: Page = loaded) -> Response:
        given = {name: quote(value, safe="") for name, value in request.path_params.items()}
        other = twin.format(**given) + (f"?{request.url.query}" if request.url.query else "")
        return render.page(template, page, visitor, twin=other, project=settings.project, path=request.url.path)

    paths.add_api_route(twin, json, methods=["GET"])
    paths.add_api_route(path, html, methods=["GET"])


def _actions(paths: APIRouter, dashboard: Dashboard, sessions: Sessions, settings: Settings) -> None:
    """Signing in and out, and the retry of what was refused; each is a form, and works without a script."""

    @paths.get("/login")
    async def login() -> Response:
        return render.html("login.html", project=settings.project, wrong=False)

    @paths.post("/login")
    async def sign_in(request: Request) -> Response:
        same_origin(request)
        answer = RedirectResponse("/", 303)
        key = (await form_of(request)).get("key", "").strip()
        if sessions.sign_in(key, answer, secure=request.url.scheme == "https"):
            return answer
        return render.html("login.html", 401, project=settings.project, wrong=True)

    @paths.post("/logout")
    async def sign_out(request: Request) -> Response:
        sessions.check(request, await form_of(request))
        answer = RedirectResponse("/login", 303)
        sessions.sign_out(request, answer)
        return answer

    @paths.post("/refused")
    async def retry(request: Request) -> Response:
        form = await form_of(request)
        sessions.check(request, form)
        visitor = sessions.visitor(request, OPERATE)
        said = await dashboard.retry(form)
        page = await dashboard.refused()
        page.done, page.problem = said.value, said.problem or page.problem
        return render.page(
            "refused.html", page, visitor, twin="/refused.json", project=settings.project, path="/refused"
        )
