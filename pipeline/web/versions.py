"""Which version of a read model a request reads: the one that readers see, another that it names, or in the canary the next."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Final

import msgspec

from pipeline.authoring import builds
from pipeline.errors import CdcError, SinkError
from pipeline.operations.wait import Token, passed_by
from pipeline.ports import Found
from pipeline.web.models import ReadModel, Seen
from pipeline.web.problems import Problem

log: Final = logging.getLogger("cdc.web")
HEADER: Final = "X-Read-Model-Version"
BUILDS_KNOWN: Final = 1.0
"""Seconds until the builds are read again."""
PATIENCE: Final = 1.0
"""Seconds that the next version may take for a read; the answer is the live one's then."""
COMPARED: Final = 200
"""Reads of each version after which their times are compared, and then whenever as many have come again."""
AS_GOOD: Final = 0.005
"""Seconds within which the slowest reads of the next version may take longer, whatever the factor."""
LOOKS, PAUSE = 10, 0.5

Documents = Mapping[str, Found]


@dataclass
class Times:
    """How long the last reads of the two versions took, in seconds."""

    live: deque[float] = field(default_factory=lambda: deque(maxlen=COMPARED))
    next: deque[float] = field(default_factory=lambda: deque(maxlen=COMPARED))
    reads: int = 0

    def slower(self, factor: float) -> str:
        """Why the next version is too slow; nothing where it is not, or where that can't be told now."""
        self.reads += 1
        if self.reads % COMPARED:
            return ""
        live, following = (quantiles(times, n=20)[-1] for times in (self.live, self.next))
        if following <= max(live * factor, live + AS_GOOD):
            return ""
        return f"its p95 is {following * 1000:.0f} ms, that of the live version {live * 1000:.0f} ms"


@dataclass
class Versions:
    """Those of one read model, and its canary: `web.canary` is the share of keys that are read from the next version."""

    model: ReadModel
    reads: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Reads in the canary by version and outcome: same, different, unavailable."""
    stopped: dict[str, str] = field(default_factory=dict)
    """Why a version is in the canary no more."""
    _times: dict[str, Times] = field(default_factory=dict)
    _builds: tuple[float, dict[str, str]] | None = None
    _looking: asyncio.Task[None] | None = None

    def known(self) -> dict[str, str]:
        """`{"next": "shop-orders-v1.2"}`: the build that waits for its cut-over, and `previous`, kept for a rollback."""
        if self._builds is None or time.monotonic() - self._builds[0] > BUILDS_KNOWN:
            own, projection = builds.read(self.model.settings, self.model.name), self.model.projection
            found: dict[str, builds.Build] = {}
            if own.job is not None and own.job.phase == "ready":
                found["next"] = own.job.target
            if own.kept is not None:
                found["previous"] = own.kept.build
            named = {which: self.model.reader.version(build.of(projection).id) for which, build in found.items()}
            self._builds = time.monotonic(), named
        return self._builds[1]

    def named(self, which: str | None) -> str | None:
        """The version that a request names; None: the one that readers see. Raises Problem."""
        if which is None or which == "live":
            return None
        known = self.known()
        if which in known.values():
            return which
        if which not in known:
            there = ", ".join(f"{name} ({version})" for name, version in known.items())
            raise Problem(
                409, "no-such-version", f"{self.model.name} has no version {which[:100]!r} now, beside live: {there or 'none'}."
            )  # fmt: skip
        return known[which]

    async def get(
        self, tokens: Sequence[Token], patience: float, ids: Sequence[str], which: str | None
    ) -> tuple[Seen, Documents]:
        """Documents by key, of the version that the request names or else of the one that readers see.

        In the canary both are read; the next version answers where it is past the tokens too, and says the same of the
        fields that both have.
        """
        version = self.named(which)
        following = self._tried(ids) if which is None else None
        if following is None:
            return await self.model.read(tokens, patience, self._read(ids), search=False, version=version)
        times = self._times.setdefault(following, Times())
        live = await self.model.read(tokens, patience, self._read(ids, times.live), search=False)
        try:
            async with asyncio.timeout(PATIENCE):
                seen, found = await self.model.read(
                    tokens, 0, self._read(ids, times.next), search=False, version=following
                )
        except (SinkError, Problem, TimeoutError):  # a problem: it is not past the tokens
            self.reads[following, "unavailable"] += 1
            return live
        if reason := times.slower(self.model.settings.web.canary_slower):
            self._stop(following, reason)
        if same(live[1], found):
            self.reads[following, "same"] += 1
            return seen, found
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(following, ids))
        return live

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        await self.model.close()

    def _tried(self, ids: Sequence[str]) -> str | None:
        """The next version, where it is in the canary and these keys are of its share: the same ones every time."""
        share = self.model.settings.web.canary
        if not share or zlib.crc32("\0".join(ids).encode()) >= share * (1 << 32):
            return None
        try:
            following = self.known().get("next")
        except CdcError:  # what operators are told; readers have the live version
            return None
        return following if following not in self.stopped else None

    def _read(self, ids: Sequence[str], times: deque[float] | None = None) -> Callable[[str], Awaitable[Documents]]:
        async def read(version: str) -> Documents:
            began = time.perf_counter()
            found = await self.model.reader.get(version, ids)
            if times is not None:
                times.append(time.perf_counter() - began)
            return found

        return read

    async def _look(self, following: str, ids: Sequence[str]) -> None:
        """Each version has its own worker, so one may be ahead: they differ where both rest, and the next has come as far."""
        last: tuple[Seen, Documents, Documents] | None = None
        for _ in range(LOOKS):
            try:
                seen, live = await self.model.read((), 0, self._read(ids), search=False)
                ahead, found = await self.model.read((), 0, self._read(ids), search=False, version=following)
            except SinkError:
                return
            if same(live, found):
                return
            if last is not None and last[1:] == (live, found) and _as_far(ahead.marks, last[0].marks):
                self.reads[following, "different"] += 1
                self._stop(following, f"it differs: {', '.join(ids[:10])}")
                return
            last = seen, live, found
            await asyncio.sleep(PAUSE)

    def _stop(self, version: str, reason: str) -> None:
        self.stopped[version] = reason
        log.warning("%s: %s is read in the canary no more: %s", self.model.name, version, reason)


def same(live: Documents, following: Documents) -> bool:
    """Whether both say the same of the fields that both have; a version may have others too."""
    return live.keys() == following.keys() and all(
        live[id].document == following[id].document or _same(live[id].document, following[id].document) for id in live
    )


def _same(live: bytes, following: bytes) -> bool:
    one, other = _fields(live), _fields(following)
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _fields(document: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in msgspec.json.decode(document, type=dict[str, msgspec.Raw]).items():
        try:
            found[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:  # a number that Python has none for
            found[name] = bytes(value)
    return found


def _as_far(marks: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(passed_by(marks.get(of), int(mark["lsn"]), str(mark.get("log", ""))) for of, mark in others.items())
