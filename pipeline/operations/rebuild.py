"""Rebuild: the next build beside the one that readers see, filled, kept current, compared with the source, cut over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pydantic import BaseModel

from pipeline.authoring import builds
from pipeline.authoring.builds import Build, Builds, Job, Kept, Phase
from pipeline.authoring.projection import Projection
from pipeline.errors import OperationError, VerificationFailed
from pipeline.operations.building import building
from pipeline.operations.copying import Copying, fill
from pipeline.operations.from_source import Reading, begin_mirror, read_tables
from pipeline.operations.mirrors import copy_mirror, files_of, owned, parts_of, usable
from pipeline.operations.states import states
from pipeline.operations.status import Building, status
from pipeline.operations.verified import VerifyReport
from pipeline.operations.wait import wait
from pipeline.ports import Sink
from pipeline.settings import Settings

COPY_PATIENCE: Final = 60
"""Seconds until a worker of the new build has to have ended, so that its mirror can be replaced."""
SAY_AFTER: Final = 10.0
"""Seconds without a worker of the new build after which that is said."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What a rebuild is handed."""

    sinks: Callable[[Projection[Any]], list[Sink]]
    verify: Callable[[Projection[Any]], Awaitable[VerifyReport]]
    places: Callable[[], Awaitable[Mapping[str, int]]]
    """Where the source's log is now, by connector."""
    missing_log: Callable[[], Awaitable[str]]
    """Why Kafka's topics can't fill a mirror, or nothing where they can."""
    copying: Callable[[Projection[Any]], Copying | None]
    """How the mirror is filled from the source by copies of its tables; None where they can't be copied."""
    reading: Callable[[Projection[Any]], Reading]
    """How it is filled then: the connector reads the tables while it streams."""
    no_source: str = ""
    """Why a source can't be asked for all its rows, or nothing where it can."""
    say: Callable[[str], None] = lambda text: None
    progress: Callable[[str, int, int], None] = lambda step, done, total: None
    passing: Callable[[str], None] = lambda point: None
    """Where a test kills the process."""


class RebuildReport(BaseModel):
    """How a rebuild stands."""

    projection: str
    live: str | None
    target: str | None = None
    origin: str | None = None
    why: str | None = None
    phase: str | None = None
    building: Building | None = None
    """How far it is."""
    kept: str | None = None
    kept_until: float | None = None
    """Seconds since 1970."""


def report(settings: Settings, projection: Projection[Any]) -> RebuildReport:
    """How the rebuild of this projection stands; needs no service."""
    known = builds.read(settings, projection.name)
    found = RebuildReport(
        projection=projection.name,
        live=(known.live.of(projection) if known.live else projection).id,
        kept=known.kept.build.of(projection).id if known.kept else None,
        kept_until=known.kept.until if known.kept else None,
    )
    if (job := known.job) is None:
        return found
    return found.model_copy(update={
        "target": job.target.of(projection).id, "origin": job.origin, "why": job.why, "phase": job.phase,
        "building": building(settings, projection),
    })  # fmt: skip


async def begin(
    settings: Settings, code: Projection[Any], hands: Hands, *, origin: str, rate: float, cutover: bool, keep: float
) -> Job:
    """Decide what is built and from what, and write it down; goes on with a job that is there. Raises OperationError."""
    known = builds.read(settings, code.name)
    if known.job is not None and known.job.target.version != code.version:
        raise OperationError(
            f"A rebuild of {known.job.target.of(code).id} is under way, and the code is at version {code.version}:"
            f" `cdc rebuild cancel {code.name}` first."
        )
    if known.job is not None:
        hands.say(f"{code.name}: going on with {known.job.target.of(code).id}, at {known.job.phase}")
        return known.job
    live = known.live or Build(version=code.version)
    target = Build(version=code.version) if live.version != code.version else known.next(code.version)
    chosen, why = await _origin(settings, builds.as_begun(settings, live, code), target.of(code), hands, origin)
    job = Job(
        target=target, origin=chosen, why=why, cutover=cutover, rate=rate, keep=keep, started=time.time()
    )  # fmt: skip
    builds.update(settings, code.name, lambda now: now.having(
        live=live, job=job, kept=None, dropping=now.dropping + ((now.kept.build,) if now.kept is not None else ()),
        highest=now.highest | {target.version: max(target.build, now.highest.get(target.version, 1))},
    ))  # fmt: skip
    return job


async def _origin(
    settings: Settings, live: Projection[Any], new: Projection[Any], hands: Hands, asked: str
) -> tuple[str, str]:
    """The cheapest origin that is enough, and why."""
    if asked == "source":
        if hands.no_source:
            raise OperationError(f"{new.id} can't be built from the source: {hands.no_source}. Try --from log.")
        return "source", "asked for"
    no_mirror = usable(settings, live, new)
    if asked == "mirror" and no_mirror:
        raise OperationError(f"{new.id} can't be built from the mirror: {no_mirror}. Try --from log, or --from source.")
    if asked in ("mirror", "auto") and not no_mirror:
        return "mirror", f"the mirror of {live.id} has every row and column"
    no_log = await hands.missing_log()
    if no_log and hands.no_source:
        why = "; ".join(filter(None, (no_mirror, no_log, hands.no_source)))
        raise OperationError(
            f"{new.id} can't be built: {why}."
            " Have the connectors read their tables again, cdc connector apply NAME --anew, and build it from the log."
        )
    if no_log and asked == "log":
        raise OperationError(f"{new.id} can't be built from the log: {no_log}. Try --from source.")
    if no_log:
        return "source", f"neither mirror nor log is enough: {no_mirror}; {no_log}"
    return "log", no_mirror or "asked for, and Kafka's topics hold everything"


async def advance(
    settings: Settings, code: Projection[Any], hands: Hands, *, despite_differences: bool = False
) -> RebuildReport:
    """Do what is left of the job, up to the cut-over where it wants one. Raises VerificationFailed before it."""
    while (job := builds.read(settings, code.name).job) is not None:
        new = job.target.of(code)
        sinks = hands.sinks(new)
        try:
            following = await _step(settings, code, new, job, sinks, hands, despite_differences)
        finally:
            for sink in sinks:
                await sink.close()
        hands.passing(f"rebuild-{job.phase}")
        if following is None:
            break
        builds.update(settings, code.name, lambda now, phase=following: now.at(phase))  # type: ignore[misc]
    return report(settings, code)


async def _step(
    settings: Settings,
    code: Projection[Any],
    new: Projection[Any],
    job: Job,
    sinks: Sequence[Sink],
    hands: Hands,
    despite: bool,
) -> Phase | None:
    """One phase; the one that follows, None at the end."""
    if job.phase == "prepare":
        for sink in sinks:
            await sink.prepare()
            await sink.loading(True)
        return "copy"
    if job.phase == "copy":
        await _filled(settings, code, new, job, [sink.name for sink in sinks], hands)
        return "read" if job.origin == "source" and hands.copying(new) is None else "load"
    if job.phase == "read":
        await read_tables(settings, new, job.read, hands.reading(new), partial(_read, settings, code, hands))
        return "load"
    if job.phase == "load":
        await _load(settings, code, new, sinks, hands)
        return "verify"
    if job.phase == "verify":
        await _verify(code, new, hands, despite)
        return "ready"
    if job.phase == "ready":
        return "switch" if job.cutover else None
    await _current(new, sinks, hands)
    for sink in sinks:
        await sink.switch()
    hands.passing("rebuild-switched")
    builds.update(settings, code.name, lambda now: _switched(now, job))
    return None


async def _filled(
    settings: Settings, code: Projection[Any], new: Projection[Any], job: Job, sinks: Sequence[str], hands: Hands
) -> None:
    """The mirror that the new build's worker begins with; from the log it begins with none."""
    if job.origin == "log":
        return
    seen = builds.read(settings, code.name).live or Build(version=code.version)
    live = builds.as_begun(settings, seen, code)
    copying = hands.copying(new) if job.origin == "source" else None
    ends = await hands.reading(new).ends() if job.origin == "source" and copying is None else {}
    for _ in range(COPY_PATIENCE):
        with ExitStack() as held:
            mine = all(held.enter_context(owned(settings, part)) for part in new.parts)
            if mine and copying is not None:
                for part in new.parts:
                    await fill(settings, new, part, sinks, copying)
            elif mine and job.origin == "source":
                await asyncio.to_thread(begin_mirror, settings, new, ends)
            elif mine:
                await asyncio.to_thread(copy_mirror, settings, live, new, sinks)
            if mine:
                return
        await asyncio.sleep(1)
    raise OperationError(f"A worker of {new.id} runs already: end it, and go on with `cdc rebuild {new.name}`.")


def _read(settings: Settings, code: Projection[Any], hands: Hands, table: str) -> None:
    """The connector has read a table for the job: it need not again."""
    hands.passing("rebuild-table")
    builds.update(settings, code.name, lambda now: now.with_read(table))


async def _load(
    settings: Settings, code: Projection[Any], new: Projection[Any], sinks: Sequence[Sink], hands: Hands
) -> None:
    """Until the worker has written everything and stands where the source is; then the usual settings again."""
    places, began, said = await hands.places(), time.monotonic(), False
    for sink in sinks:
        while not await _reached(sink, places, 1.0):
            own = status(settings, [new]).projections[0]
            if (far := building(settings, code)) is not None:
                hands.progress(far.step, far.done, far.total)
            if own.given_up:
                raise OperationError(f"The worker of {new.id} has stopped: {own.error}")
            if own.pid is None and not said and time.monotonic() - began > SAY_AFTER:
                said = True
                hands.say(
                    f"No worker of {new.id} runs yet: `cdc run` starts it, or `cdc worker {new.name} --build {new.build}`."
                )
        await sink.loading(False)
        await sink.refresh()


async def _verify(code: Projection[Any], new: Projection[Any], hands: Hands, despite: bool) -> None:
    on = f"`cdc rebuild {code.name}`, or with --despite-differences, or `cdc rebuild cancel {code.name}`"
    try:
        found = await hands.verify(new)
    except OperationError as error:
        if not despite:
            raise OperationError(f"{error} {new.id} is not cut over: go on with {on}.") from None
        hands.say(str(error))
        return
    for one in (difference for sink in found.sinks for difference in sink.differences):
        hands.say(f"{one.kind} {one.id} {', '.join(field.path for field in one.fields)}")
    wrong = sum(sink.wrong for sink in found.sinks)
    if wrong and not despite:
        raise VerificationFailed(
            f"{new.id} is not cut over: {wrong} documents are not what the source says. Go on with {on}."
        )


async def _current(new: Projection[Any], sinks: Sequence[Sink], hands: Hands) -> None:
    """Readers must not go back in time: the build has to stand where the source is now."""
    places = await hands.places()
    for sink in sinks:
        if not await _reached(sink, places, 60.0):
            raise OperationError(f"{new.id} is behind the source: see that its worker runs, then cut over again.")
        await sink.refresh()


async def _reached(sink: Sink, places: Mapping[str, int], patience: float) -> bool:
    return all([(await wait(sink, of, place, patience=patience)).reached for of, place in places.items()])


def _switched(now: Builds, job: Job) -> Builds:
    kept = Kept(build=now.live, until=time.time() + job.keep) if now.live is not None else None
    return now.having(live=job.target, job=None, kept=kept)


async def cutover(settings: Settings, code: Projection[Any], hands: Hands) -> RebuildReport:
    """Readers see the new build from now on; raises OperationError where none is ready."""
    known = builds.read(settings, code.name)
    if known.job is None or known.job.phase not in ("ready", "switch"):
        at = f"it is at {known.job.phase}" if known.job is not None else f"start one with `cdc rebuild {code.name}`"
        raise OperationError(f"No build of {code.name} is ready to be cut over: {at}.")
    job = known.job.model_copy(update={"cutover": True})
    builds.update(settings, code.name, lambda now: now.having(job=job))
    return await advance(settings, code, hands)


async def rollback(settings: Settings, code: Projection[Any], hands: Hands, *, keep: float) -> RebuildReport:
    """Readers see the build before again, and the one that they leave is kept; raises OperationError where none is."""
    known = builds.read(settings, code.name)
    if known.kept is None or known.live is None:
        raise OperationError(f"There is no earlier build of {code.name} to go back to.")
    old = builds.as_begun(settings, known.kept.build, code)
    sinks = hands.sinks(old)
    try:
        await _current(old, sinks, hands)
        for sink in sinks:
            await sink.switch()
    finally:
        for sink in sinks:
            await sink.close()
    hands.passing("rollback-switched")
    back, kept = known.kept.build, Kept(build=known.live, until=time.time() + keep)
    builds.update(settings, code.name, lambda now: now.having(live=back, kept=kept))
    return report(settings, code)


def cancel(settings: Settings, code: Projection[Any]) -> Build:
    """Give the job up: its build goes as soon as its worker has ended. Raises OperationError where there is none."""
    known = builds.read(settings, code.name)
    if known.job is None:
        raise OperationError(f"No rebuild of {code.name} is under way.")
    if known.job.phase == "switch":
        raise OperationError(f"{code.name} is being cut over: end that with `cdc cutover {code.name}`, then roll back.")
    target = known.job.target
    builds.update(settings, code.name, lambda now: now.having(job=None, dropping=(*now.dropping, target)))
    return target


async def sweep(
    settings: Settings,
    code: Projection[Any],
    sinks: Callable[[Projection[Any]], list[Sink]],
    forget: Callable[[Projection[Any]], Awaitable[None]],
) -> list[str]:
    """Drop what nobody needs and no worker holds; the ids of what is gone. `forget`: a build's topics, but for documents."""
    known = builds.update(settings, code.name, _without_expired)
    gone: list[str] = []
    for build in known.dropping:
        old = builds.as_begun(settings, build, code)
        if await _dropped(settings, old, sinks(old), forget):
            builds.update(settings, code.name, partial(_without, build))
            gone.append(old.id)
    return gone


def _without_expired(now: Builds) -> Builds:
    if now.kept is None or not builds.expired(now):
        return now
    return now.having(kept=None, dropping=(*now.dropping, now.kept.build))


def _without(build: Build, now: Builds) -> Builds:
    return now.having(dropping=tuple(other for other in now.dropping if other != build))


async def _dropped(
    settings: Settings,
    old: Projection[Any],
    sinks: Sequence[Sink],
    forget: Callable[[Projection[Any]], Awaitable[None]],
) -> bool:
    with ExitStack() as held:
        if not all(held.enter_context(owned(settings, part)) for part in parts_of(settings, old.id)):
            return False
        for sink in sinks:
            try:
                await sink.drop()
            finally:
                await sink.close()
        await forget(old)
        if (saved := states(settings)) is not None:
            for part in parts_of(settings, old.id):
                await asyncio.to_thread(saved.drop, part)
        for part in parts_of(settings, old.id):
            for path in files_of(settings, part):
                path.unlink(missing_ok=True)
    return True
