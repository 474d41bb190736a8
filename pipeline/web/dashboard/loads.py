"""Loads the pages' models: what is sampled from the sampler, all else by asking."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from fastapi import HTTPException, Query

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
from pipeline.web.dashboard.answers import LOOKS_AROUND, Answer, Answers
from pipeline.web.dashboard.pages import (
    Canary,
    DoctorPage,
    DocumentPage,
    Overview,
    PlanPage,
    ProjectionPage,
    RefusedPage,
    SourcesPage,
    command,
)  # fmt: skip
from pipeline.web.sampling import Look, Sampler
from pipeline.web.versions import Versions


class Dashboard:
    """Loads the pages' models: what is sampled from the sampler, all else by answers."""

    def __init__(self, settings: Settings, sampler: Sampler, versions: Mapping[str, Versions]) -> None:
        self.settings, self.versions = settings, versions
        self.sampler = sampler
        self.answers = Answers()
        self.keys = {name: _key(settings, found) for name, found in sampler.projections.items()}
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
        slots = [line.attention for line in self.sampler.connectors.value or [] if line.attention]
        page.status = page.status.model_copy(update={"attention": slots})
        page.behind = {name: list(course.behind) for name, course in self.sampler.courses.items()}
        page.rates = {name: course.rates() for name, course in self.sampler.courses.items()}
        return page

    async def projection(self, name: str) -> ProjectionPage:
        projection, look = self._projection(name), self.sampler.status
        course, definitions = self.sampler.courses[name], self.sampler.definitions.get(name, {})
        page = ProjectionPage(command=command("status", name), at=_at(look), problem=look.problem, name=name)
        page.status = next((p for p in look.value.projections if p.name == name), None) if look.value else None
        page.behind, page.rates, page.key = list(course.behind), course.rates(), self.keys[name]
        tables = shape_of(projection.shape).columns()
        by_table = {table: of for of in definitions.values() for table in of.tables}
        page.topics = [by_table[table].topic(table) if table in by_table else table for table in tables]
        page.connectors = [line for line in self.sampler.connectors.value or [] if line.name in definitions]

        def files() -> None:
            page.rebuild = rebuild.report(self.settings, projection)
            page.verified = verified.last(self.settings, projection)
            page.canary = self._canary(name)

        answer = await self.answers.ask(("projection", name), page.command, files)
        page.problem = page.problem or answer.problem
        return page

    def _canary(self, name: str) -> Canary | None:
        """Of the version that waits for its cut-over, where reads try it."""
        share, versions = self.settings.web.canary, self.versions.get(name)
        if not share or versions is None or (following := versions.known().get("next")) is None:
            return None
        reads = {outcome: n for (version, outcome), n in versions.reads.items() if version == following}
        return Canary(version=following, share=share, reads=reads, stopped=versions.stopped.get(following))

    async def document(self, name: str, key: Annotated[list[str] | None, Query()] = None) -> DocumentPage:
        projection = self._projection(name)
        given = [part for part in key or [] if part != ""]
        page = DocumentPage(
            command=command("explain", name, *(given or ["KEY"])), name=name, names=self.keys[name], key=given
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

    async def retry(self, form: Mapping[str, str]) -> Answer[str]:
        """Retry a dead letter (`id`) or a document of the quarantine (`key`, as JSON) of a `projection`."""
        projection = self._projection(form.get("projection", ""))
        try:
            number, key = int(form.get("id", 0)), json.loads(form.get("key", "null"))
        except ValueError:
            raise HTTPException(400, "The id is no number, or the key no JSON") from None
        if number:
            said = command("deadletters", "retry", projection.name, number)
            # the worker's answer is waited for a little less than the page is
            patience = self.answers.limit / 2
            done = await self.answers.ask(
                said, said, lambda: refused.retry_dead_letters(self.settings, projection, [number], patience=patience)
            )
            if done.value is None:
                return Answer(None, done.problem)
            left = done.value.left
            return Answer(None, f"{number}: {left[0].reason}") if left else Answer(f"Dead letter {number} is settled.")
        said = command("quarantine", "retry", projection.name, json.dumps(key))
        marked = await self.answers.ask(said, said, lambda: refused.retry_quarantined(self.settings, projection, [key]))
        if marked.value is None:
            return Answer(None, marked.problem)
        return Answer(f"{marked.value} marked to be written again.")

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
        answer = await self.answers.ask("doctor", "cdc doctor", lambda: doctor(self.settings), limit=LOOKS_AROUND)
        page = DoctorPage(command=command("doctor"), problem=answer.problem)
        page.findings = answer.value or page.findings
        return page

    def _declared(self) -> list[Projection[Any]]:
        """The projections as the files say now; imported anew only where one was changed, for a class is never forgotten."""
        now = {path: path.stat().st_mtime_ns for path in self.settings.projections.glob("*.py")}
        if now != self._files:
            self._files, self._found = now, discover(self.settings.projections)
        return self._found


def _at(look: Look[Any]) -> datetime:
    return datetime.fromtimestamp(look.at, UTC) if look.at else datetime.now(UTC)


def _key(settings: Settings, projection: Projection[Any]) -> list[str]:
    """What a document's key is made of, as the worker keys it."""
    shape = shape_of(projection.shape)
    if isinstance(shape, AggregateShape):
        return [group.name for group in shape.groups] or list(shape.key)
    return list(layout_of(settings, projection).root.key)
