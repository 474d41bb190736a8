"""Health as progress: `/livez`, `/readyz` and `/metrics`; none of them has data of a document, and none needs a key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from pipeline.web import metrics
from pipeline.web.sampling import Sampler
from pipeline.web.versions import Versions

PATIENCE: Final = 30.0
"""Seconds that a watermark may stand while its source moves."""


class Ready(BaseModel):
    """Whether reads of a projection, or of all, are to be sent here; `reasons` says why not."""

    ready: bool
    reasons: list[str] = []


def ready(sampler: Sampler, name: str | None, within: float = PATIENCE) -> Ready:
    """`name` None: whether this process can tell at all."""
    reasons = [problem] if (problem := sampler.status.problem) is not None else []
    report = sampler.status.value
    if report is None:
        reasons = reasons or ["the status has not been read yet"]
    elif name is not None:
        found = next((p for p in report.projections if p.name == name), None)
        if found is None:
            reasons.append(f"there is no projection {name}")
        elif found.behind is None:
            reasons.append(f"{name} has no watermark yet: it is {found.state}")
        stopped = sampler.stopped().get(name, 0.0)
        if stopped > within:
            reasons.append(f"the watermark of {name} has stood for {stopped:.0f} s while its source moved")
    return Ready(ready=not reasons, reasons=reasons)


def router(sampler: Sampler, versions: Mapping[str, Versions]) -> APIRouter:
    """The three paths."""
    paths = APIRouter(tags=["health"])

    @paths.get("/livez")
    async def livez() -> Response:
        """The process answers."""
        return Response("ok\n", media_type="text/plain")

    @paths.get("/readyz", responses={503: {"model": Ready, "description": "Not ready; `reasons` says why."}})
    async def readyz(
        response: Response,
        projection: Annotated[str | None, Query(max_length=200)] = None,
        within: Annotated[float, Query(gt=0, le=86_400)] = PATIENCE,
    ) -> Ready:
        """Fails when the projection's watermark has stood for `within` seconds while its source moved."""
        found = ready(sampler, projection, within)
        response.status_code = 200 if found.ready else 503
        return found

    @paths.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics_() -> Response:
        """What `cdc status` and `cdc connector list` say, and the canary, for Prometheus."""
        return Response(metrics.text(sampler, versions), media_type="text/plain; version=0.0.4; charset=utf-8")

    return paths
