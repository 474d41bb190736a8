"""The live feed: documents as they change, as server-sent events, from where a reader stands."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response, StreamingResponse

from connectors.sinks import FEEDS
from pipeline.authoring.projection import Projection, Target
from pipeline.errors import QueryRefused
from pipeline.ports import Change, Moved, Told
from pipeline.web.access import Access, Caller
from pipeline.web.asking import shown
from pipeline.web.models import ReadModel
from pipeline.web.problems import Problem
from pipeline.web.read_models import chosen_of, model_of, only
from pipeline.web.selection import Tree, select
from pipeline.web.versions import Versions

STREAM: Final = "text/event-stream"
QUIET: Final = 15.0
"""Seconds after which a reader is told where it stands though nothing has changed, so that nobody on the way hangs up."""
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Feeds:
    """The feeds that are open in this process."""

    def __init__(self, access: Access) -> None:
        self._access, self._own = access, access.settings.web
        self.open = 0
        self.ending = False
        """The process is to end: each feed does within a second, and its reader asks the next process."""

    async def answer(self, model: ReadModel, caller: Caller, chosen: Tree | None, request: Request) -> Response:
        """A response without end; what is wrong is said before it begins."""
        target = feed_target(model.projection)
        if target is None:
            raise Problem(404, "no-feed", f"{model.name} can't be followed: its projection has no target kafka(…).")
        if self.open >= self._own.feeds:
            raise Problem(
                503,
                "too-many-feeds",
                f"{self._own.feeds} feeds are open here, which is all.",
                headers={"retry-after": "5"},
            )
        place, everything = _from(request)
        following = FEEDS[target.kind](target, model.settings).follow(place, everything=everything)
        try:
            first = await anext(following)
        except QueryRefused as error:
            raise Problem(410, "no-such-place", f"{error} Begin anew: from=start.") from None
        return StreamingResponse(self._events(first, following, caller, chosen), media_type=STREAM, headers=HEADERS)

    async def _events(
        self, first: Told, following: AsyncIterator[Told], caller: Caller, chosen: Tree | None
    ) -> AsyncIterator[bytes]:
        said = time.monotonic()
        self.open += 1
        try:
            yield _told(first, chosen)
            async for told in following:
                if self.ending or not self._access.still(caller):
                    return
                if told[1] or time.monotonic() - said > QUIET:
                    said = time.monotonic()
                    yield _told(told, chosen)
        finally:
            self.open -= 1
            await following.aclose()  # type: ignore[attr-defined]


def install(app: FastAPI, models: Mapping[str, Versions], access: Access) -> Feeds:
    """`/v1/NAME/changes`; before the routes of read models, which take what follows a name for a key."""
    feeds = Feeds(access)

    async def changes(request: Request) -> Response:
        _, model, caller, known = model_of(request, models, access)
        fields = shown(known, only(request, "fields", "from").get("fields"))
        return await feeds.answer(model, caller, chosen_of(model, known, fields), request)

    app.add_api_route("/v1/{name}/changes", changes, methods=["GET"], include_in_schema=False)
    return feeds


def feed_target(projection: Projection[Any]) -> Target | None:
    """The first of its targets that can be followed."""
    return next((target for target in projection.to if target.kind in FEEDS), None)


def _from(request: Request) -> tuple[str | None, bool]:
    """The place, and whether everything comes first. A browser that connects again sends the last place by itself."""
    asked = request.headers.get("last-event-id") or request.query_params.get("from", "now")
    return (None, asked == "start") if asked in ("now", "start") else (asked, False)


def _told(told: Told, chosen: Tree | None) -> bytes:
    """Events; where there is none the place alone, which who connects again begins from."""
    place, changes = told
    return b"".join(_event(one, chosen) for one in changes) or b"id: %b\n\n" % place.encode()


def _event(one: Change | Moved, chosen: Tree | None) -> bytes:
    if isinstance(one, Moved):
        return b"event: version\nid: %b\ndata: %b\n\n" % (
            one.place.encode(),
            msgspec.json.encode({"version": one.version}),
        )
    document = b"null" if one.document is None else one.document if chosen is None else select(one.document, chosen)
    id, name = msgspec.json.encode(one.id), b"gone" if one.document is None else b"document"
    return b'event: %b\nid: %b\ndata: {"id":%b,"revision":"%d","document":%b}\n\n' % (
        name, one.place.encode(), id, one.revision, document,
    )  # fmt: skip
