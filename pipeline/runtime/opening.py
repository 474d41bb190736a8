"""Before a worker opens its mirror: it is made, nobody else has it, and what was lost is back."""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pipeline.authoring import builds
from pipeline.authoring.builds import Build
from pipeline.authoring.fingerprint import fingerprint
from pipeline.errors import Transient
from pipeline.operations.copying import fill
from pipeline.operations.states import States
from pipeline.operations.status import mirror_file
from pipeline.runtime.copies import copying
from pipeline.runtime.pacing import Backoff
from pipeline.runtime.wiring import Wired
from pipeline.settings import Settings

log = logging.getLogger("cdc.worker")


def locked(lock: Any, owner: str) -> bool:
    """Take the lock of a mirror, and say whose it is; False where another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    lock.truncate(0)
    print(owner, file=lock, flush=True)
    return True


@dataclass(frozen=True, slots=True)
class Opening:
    """Each step says whether to go on: not where the worker is told to stop meanwhile."""

    settings: Settings
    wired: Wired
    id: str
    """The projection's, or that of one of its parts (`orders-v1@2`)."""
    owner: str
    stopping: asyncio.Event
    nap: Callable[[float], Awaitable[None]]

    async def made(self) -> bool:
        """A rebuild makes its mirror while the worker starts; no where it is cancelled meanwhile."""
        projection, waited = self.wired.projection, False
        while not self.stopping.is_set():
            job = builds.read(self.settings, projection.name).job
            if job is None or job.target != Build(version=projection.version, build=projection.build):
                return not waited
            if job.phase not in ("prepare", "copy"):
                return True
            if not waited:
                waited = True
                log.info("%s: waits until the rebuild has made its mirror", self.id)
            await self.nap(0.1)
        return False

    async def own(self, lock: Any) -> bool:
        """The mirror has one writer: a second worker stands by until the first is gone (the kernel frees its lock)."""
        said = False
        while not self.stopping.is_set():
            if locked(lock, self.owner):
                return True
            if not said:
                lock.seek(0)
                log.warning("%s: worker %s holds the mirror; standing by", self.id, lock.read().strip())
                said = True
            await self.nap(0.5)
        return False

    async def filled(self, states: States | None, say: Callable[[str | None], None]) -> bool:
        """A mirror that is lost comes back from its newest state snapshot; where there is none, from Kafka's log, or
        from the source's tables where its connector says so."""
        if states is not None and not await self._restored(states, say):
            return False
        if self._there() or not any(of.snapshot.mode == "copy" for of in self.wired.by_table.values()):
            return True
        return await self._copied(say)

    def _there(self) -> bool:
        return mirror_file(self.settings, self.id).exists()

    async def _copied(self, say: Callable[[str | None], None]) -> bool:
        hands = copying(self.settings, self.wired, log.info, lambda: not self.stopping.is_set())
        backoff, sinks = Backoff(0.5), [sink.name for sink in self.wired.sinks]
        while not self.stopping.is_set():
            try:
                return await fill(self.settings, self.wired.projection, self.id, sinks, hands)
            except Transient as error:
                say(str(error))
                log.warning("%s: %s", self.id, error)
                await self.nap(backoff.delay())
        return False

    async def _restored(self, states: States, say: Callable[[str | None], None]) -> bool:
        if self._there():
            return True
        backoff, code = Backoff(0.5), fingerprint(self.wired.shape)
        while not self.stopping.is_set():
            try:
                found = await asyncio.to_thread(states.restore, self.id, code)
            except Transient as error:  # to begin without it would cost more than to wait
                say(str(error))
                log.warning("%s: %s", self.id, error)
                await self.nap(backoff.delay())
                continue
            say(None)
            if found is not None:
                log.warning("%s: there was no mirror: that of %s UTC is restored", self.id, f"{found.at:%F %T}")
            else:
                log.warning("%s: there is no mirror and no state snapshot: it is filled from the beginning", self.id)
            return True
        return False
