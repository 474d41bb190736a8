"""What the web process knows without asking anew: reports sampled by itself, and how they moved."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from connectors.sources import kinds
from connectors.sources.debezium import ConnectorDefinition
from pipeline.authoring import builds
from pipeline.authoring.projection import Projection
from pipeline.errors import CdcError
from pipeline.operations.building import with_builds
from pipeline.operations.status import ProjectionStatus, SinkStatus, StatusReport
from pipeline.reports.connectors import ConnectorLine, connectors
from pipeline.runtime.wiring import connectors_of
from pipeline.settings import Settings

STATUS_EVERY: Final = 2.0
SOURCES_EVERY: Final = 5.0
CONNECTORS_EVERY: Final = 10.0
"""Seconds between two looks."""
KEPT: Final = 120
"""Samples of freshness that are kept, in memory: four minutes."""
LATE: Final = 10.0
"""Seconds beyond its turn after which a look counts as unanswered."""

Report = TypeVar("Report")
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Look(Generic[Report]):
    """A report that is taken again and again, each time in a thread, and what it said last."""

    name: str
    take: Callable[[], Report]
    every: float
    value: Report | None = None
    at: float = 0.0
    """When that was, in seconds since 1970; 0 before the first."""
    error: str | None = None
    started: float = field(default_factory=time.time)

    @property
    def problem(self) -> str | None:
        """Why the value is missing or old; None where it is as it should be."""
        if self.error is not None:
            return self.error
        silent = time.time() - (self.at or self.started)
        return f"{self.name}: no answer for {silent:.0f} s" if silent > self.every + LATE else None


@dataclass(slots=True)
class Following:
    """Whether the watermark of one sink follows its source."""

    watermark: object = None
    source: object = None
    """Where the source was when the watermark was first seen here."""
    left_behind: float | None = None
    """When the source was first seen elsewhere, in seconds of the monotonic clock."""

    def saw(self, watermark: object, source: object, now: float) -> None:
        if watermark != self.watermark or self.source is None:
            self.watermark, self.source, self.left_behind = watermark, source, None
        elif source is not None and source != self.source and self.left_behind is None:
            self.left_behind = now

    def stopped_for(self, now: float) -> float:
        """Seconds that the watermark has stood while the source moved; 0 where it follows, or the source rests."""
        return 0.0 if self.left_behind is None else now - self.left_behind


@dataclass(slots=True)
class Course:
    """How one projection moved since this process began."""

    behind: deque[float | None] = field(default_factory=lambda: deque(maxlen=KEPT))
    counted: deque[tuple[float, dict[str, int]]] = field(default_factory=lambda: deque(maxlen=6))
    sinks: dict[str, Following] = field(default_factory=dict)

    def rates(self) -> dict[str, float]:
        """A second, over the last samples: `changes` and `transactions` taken in, and documents written by sink name."""
        if len(self.counted) < 2:
            return {}
        (then, before), (now, last) = self.counted[0], self.counted[-1]
        # a worker that was started again counts from nothing
        return {k: round(max(0, n - before.get(k, n)) / max(0.001, now - then), 1) for k, n in last.items()}


class Sampler:
    """Looks at the projections, the sources and the connectors; a page asks nobody but this.

    Each look has a thread of its own, so that a source that does not answer holds up no other.
    """

    def __init__(self, settings: Settings, projections: Mapping[str, Projection[Any]]) -> None:
        self.settings = settings
        self.projections = projections
        self.courses = {name: Course() for name in projections}
        self.definitions = _definitions(settings, projections)
        self.status: Look[StatusReport] = Look("cdc status", self._status, STATUS_EVERY)
        self.sources: Look[dict[str, int]] = Look("the position of the source", self._positions, SOURCES_EVERY)
        self.connectors: Look[list[ConnectorLine]] = Look(
            "cdc connector list", lambda: connectors(settings), CONNECTORS_EVERY
        )
        self._pool = ThreadPoolExecutor(max_workers=3, thread_name_prefix="look")

    async def first(self) -> None:
        """The first look at the status, which needs no service: no page is without one."""
        await asyncio.get_running_loop().run_in_executor(self._pool, taken, self.status)
        self._note()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat(self.status, self._note))
                group.create_task(self._repeat(self.sources))
                group.create_task(self._repeat(self.connectors))
        finally:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _repeat(self, look: Look[Any], then: Callable[[], None] = lambda: None) -> None:
        while True:
            await asyncio.get_running_loop().run_in_executor(self._pool, taken, look)
            then()
            await asyncio.sleep(look.every)

    def seen(self, name: str) -> Projection[Any]:
        """The projection as the build that readers see now."""
        return builds.seen(self.settings, self.projections[name])

    def _status(self) -> StatusReport:
        return with_builds(self.settings, [self.seen(name) for name in self.projections])

    def _positions(self) -> dict[str, int]:
        found: dict[str, int] = {}
        problem: CdcError | None = None
        for name, definition in {name: d for own in self.definitions.values() for name, d in own.items()}.items():
            try:
                found[name] = kinds.position(definition.dsn_in(self.settings))
            except CdcError as error:  # one source that is away hides no other
                problem = error
        if problem is not None and not found:
            raise problem
        return found

    def _note(self) -> None:
        if self.status.error is None and self.status.value is not None:
            for found in self.status.value.projections:
                self.note(found, time.monotonic())

    def note(self, found: ProjectionStatus, now: float) -> None:
        """Take one sample into the projection's course."""
        course = self.courses[found.name]
        course.behind.append(found.behind)
        written = {sink.name: sink.written.get("applied", 0) for sink in found.sinks}
        course.counted.append((now, {"changes": found.changes, "transactions": found.transactions, **written}))
        # after a cut-over the sinks are others, and nobody follows for those before
        course.sinks = {sink.name: course.sinks.get(sink.name, Following()) for sink in found.sinks}
        for sink in found.sinks:
            course.sinks[sink.name].saw(_mark(sink), self.position(found.name), now)

    def stopped(self) -> dict[str, float]:
        """Seconds that each projection's watermark has stood, in any of its sinks, while the source moved."""
        now = time.monotonic()
        return {
            name: max((sink.stopped_for(now) for sink in course.sinks.values()), default=0.0)
            for name, course in self.courses.items()
        }

    def position(self, name: str) -> tuple[int, ...] | None:
        """Where the sources of a projection are, as last seen; None where that is not known."""
        own = self.definitions.get(name, {})
        known = (self.sources.value if self.sources.problem is None else None) or {}
        found = tuple(known[connector] for connector in own if connector in known)
        return found if found and len(found) == len(own) else None


def taken(look: Look[Any]) -> None:
    """Take the report; whatever it raises is what it said."""
    try:
        value = look.take()
    except CdcError as error:
        look.error = f"{type(error).__name__}: {error}"
    except Exception as error:  # a client's: its words may hold a DSN
        log.warning("%s failed: %s", look.name, type(error).__name__)
        look.error = f"{look.name} failed with {type(error).__name__}"
    else:
        look.value, look.at, look.error = value, time.time(), None


def _mark(sink: SinkStatus) -> tuple[tuple[str, Any, Any], ...]:
    return tuple(sorted((c, mark.get("log"), mark.get("lsn")) for c, mark in sink.watermark.items()))


def _definitions(
    settings: Settings, projections: Mapping[str, Projection[Any]]
) -> dict[str, dict[str, ConnectorDefinition]]:
    """The connectors of each projection, by name."""
    found = {}
    for name, projection in projections.items():
        try:
            found[name] = connectors_of(settings, projection)
        except CdcError as error:  # no connector captures its tables: the plan says so
            log.warning("%s", error)
    return found
