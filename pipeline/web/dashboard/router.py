"""The dashboard's paths: each page, and its `.json` twin of the same model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.discovery import discover
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.operations import rebuild, refused, verified
from pipeline.operations.layouts import layout_of
from pipeline.reports.doctor import doctor
from pipeline.reports.explain import explain
from pipeline.reports.plan import plan
from pipeline.settings import Settings
from pipeline.web import health
from pipeline.web.dashboard import render
from pipeline.web.dashboard.answers import Answers
from pipeline.web.dashboard.pages import (
    DoctorPage,
    DocumentPage,
    Overview,
    Page,
    PlanPage,
    ProjectionPage,
    RefusedPage,
    SourcesPage,
    command,
)  # fmt: skip
from pipeline.web.sampling import Look, Sampler

Load = Callable[..., Awaitable[Page]]


class Dashboard:
    """Loads the pages' models: what is sampled from the sampler, all else by answers."""

    def __init__(self, settings: Settings, sampler: Sampler) -> None:
        self.settings = settings
        self.sampler = sampler
        self.answers = Answers()
        self._files: dict[Path, int] = {}
        self._found: list[Projection[Any]] = []

    def _projection(self, name: str) -> Projection[Any]:
        if name not in self.sampler.projections:
            raise HTTPException(404, f"There is no projection {name}: see cdc status.")
        return self.sampler.seen(name)

    async def overview(self) -> Overview:
        look = self.sampler.status
        page = Overview(command=command("status"), at=_at(look), problem=look.problem)
        page.status = look.value or page.status
        page.behind = {name: list(course.behind) for name, course in self.sampler.courses.items()}
        return page

    async def projection(self, name: str) -> ProjectionPage:
        projection, look = self._projection(name), self.sampler.status
        course, definition = self.sampler.courses[name], self.sampler.definitions.get(name)
        page = ProjectionPage(command=command("status", name), at=_at(look), problem=look.problem, name=name)
        page.status = next((p for p in look.value.projections if p.name == name), None) if look.value else None
        page.behind, page.rates = list(course.behind), course.rates()
        tables = shape_of(projection.shape).columns()
        page.topics = [definition.topic(table) if definition else table for table in tables]
        lines = self.sampler.connectors.value or []
        page.connector = next((line for line in lines if definition and line.name == definition.name), None)

        def files() -> None:
            page.key = self._key(projection)
            page.rebuild = rebuild.report(self.settings, projection)
            page.verified = verified.last(self.settings, projection)

        answer = await self.answers.ask(("projection", name), page.command, files)
        page.problem = page.problem or answer.problem
        return page

    async def document(self, name: str, key: Annotated[list[str] | None, Query()] = None) -> DocumentPage:
        projection = self._projection(name)
        given = [part for part in key or [] if part != ""]
        page = DocumentPage(
            command=command("explain", name, *(given or ["KEY"])), name=name, names=self._key(projection), key=given
        )
        if given:
            answer = await self.answers.ask(
                (name, *given), page.command, lambda: explain(self.settings, projection, given)
            )
            page.story, page.problem = answer.value, answer.problem
        return page

    async def refused(self) -> RefusedPage:
        page = RefusedPage(command=command("deadletters", "list"))
        projections = [self.sampler.seen(name) for name in self.sampler.projections]

        def files() -> RefusedPage:
            page.dead_letters = [d for p in projections for d in refused.dead_letters(self.settings, p)]
            page.quarantined = [q for p in projections for q in refused.quarantined(self.settings, p)]
            return page

        answer = await self.answers.ask("refused", page.command, files)
        return answer.value or page.model_copy(update={"problem": answer.problem})

    async def sources(self) -> SourcesPage:
        look, positions = self.sampler.connectors, self.sampler.sources
        return SourcesPage(
            command=command("connector", "list"), at=_at(look), problem=look.problem or positions.problem,
            connectors=look.value or [], positions=positions.value or {},
        )  # fmt: skip

    async def plan(self) -> PlanPage:
        answer = await self.answers.ask("plan", "cdc plan", lambda: plan(self.settings, self._declared()))
        return PlanPage(command=command("plan"), plan=answer.value, problem=answer.problem)

    async def doctor(self) -> DoctorPage:
        answer = await self.answers.ask("doctor", "cdc doctor", lambda: doctor(self.settings))
        page = DoctorPage(command=command("doctor"), problem=answer.problem)
        page.findings = answer.value or page.findings
        return page

    def _declared(self) -> list[Projection[Any]]:
        """The projections as the files say now; imported anew only where one was changed, for a class is never forgotten."""
        now = {path: path.stat().st_mtime_ns for path in self.settings.projections.glob("*.py")}
        if now != self._files:
            self._files, self._found = now, discover(self.settings.projections)
        return self._found

    def _key(self, projection: Projection[Any]) -> list[str]:
        """What a document's key is made of, as the worker keys it."""
        shape = shape_of(projection.shape)
        if isinstance(shape, AggregateShape):
            return [group.name for group in shape.groups] or list(shape.key)
        return list(layout_of(self.settings, projection).root.key)


def _at(look: Look[Any]) -> datetime:
    return datetime.fromtimestamp(look.at, UTC) if look.at else datetime.now(UTC)


def router(app: FastAPI) -> APIRouter:
    """Pages, health and metrics of an app that has `state.settings` and `state.projections`; they sample while it runs."""
    settings: Settings = app.state.settings
    sampler = Sampler(settings, app.state.projections)
    dashboard = Dashboard(settings, sampler)
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
    _both(paths, "/", "/status.json", "overview.html", dashboard.overview, settings)
    _both(
        paths,
        "/projections/{name}/document",
        "/projections/{name}/document.json",
        "document.html",
        dashboard.document,
        settings,
    )
    # the twin first: the page's path would take its name with the ending
    _both(paths, "/projections/{name}", "/projections/{name}.json", "projection.html", dashboard.projection, settings)
    for name, load in (
        ("refused", dashboard.refused),
        ("sources", dashboard.sources),
        ("plan", dashboard.plan),
        ("doctor", dashboard.doctor),
    ):
        _both(paths, f"/{name}", f"/{name}.json", f"{name}.html", load, settings)

    @paths.get("/static/{name}")
    async def file(name: str) -> Response:
        return render.file(name)

    paths.include_router(health.router(sampler))
    return paths


def _both(paths: APIRouter, path: str, twin: str, template: str, load: Load, settings: Settings) -> None:
    loaded: Any = Depends(load)

    async def json(page: Page = loaded) -> Response:
        return Response(
            page.model_dump_json(indent=2), headers={"cache-control": "no-store"}, media_type="application/json"
        )

    async def html(request: Request, page: Page = loaded) -> Response:
        named = {name: quote(value, safe="") for name, value in request.path_params.items()}
        other = twin.format(**named) + (f"?{request.url.query}" if request.url.query else "")
        return render.html(template, page=page, twin=other, project=settings.project, path=request.url.path)

    paths.add_api_route(twin, json, methods=["GET"])
    paths.add_api_route(path, html, methods=["GET"])
