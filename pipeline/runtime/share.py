"""One partition of a projection in exchange mode: its mirror, its engine and its flushers, while a member has it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from typing import Any, Final

import faust
from faust.types import TP

from pipeline.errors import CheckpointError, Fenced
from pipeline.operations.status import mirror_file
from pipeline.runtime import wiring
from pipeline.runtime.batches import Batch
from pipeline.runtime.membership import Membership
from pipeline.runtime.opening import Opening, locked
from pipeline.runtime.telemetry import StatusFile
from pipeline.runtime.worker import Worker
from pipeline.settings import Settings

log = logging.getLogger("cdc.share")
KILL_AFTER: Final = 10.0
"""Seconds after which a process of this machine that keeps a mirror, though the group gave it to us, is ended."""

Ends = Callable[[], Awaitable[dict[TP, int]]]
"""Where the source's topics end now."""


class Seat(Membership):
    """The membership as one partition sees it: it is complete as far as the source's topics are, not the exchange's."""

    def __init__(self, sources: Ends, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._sources = sources
        self._ends: dict[TP, int] = {}

    async def ends(self) -> dict[str, int]:
        self._ends = await self._sources()
        return {f"{tp.topic}/{tp.partition}": end for tp, end in self._ends.items()}

    def at_the_end(self) -> bool:
        """As of the last look at the ends."""
        return all(self._next(tp) >= end for tp, end in self._ends.items())

    def _next(self, tp: TP) -> int:
        return self._engine.next_offset(f"{tp.topic}/{tp.partition}")

    async def _perhaps_catch_up(self, cut: dict[str, int], starts: Mapping[TP, int]) -> None:
        cut = await self.ends()
        await super()._perhaps_catch_up(cut, await self._in_engine(self._nexts))

    async def _check_topics(self, starts: Mapping[TP, int]) -> None:
        await self.ends()
        await super()._check_topics({**starts, **await self._in_engine(self._nexts)})

    def _nexts(self) -> dict[TP, int]:
        return {tp: self._next(tp) for tp in self._ends}


class Share(Worker):
    """What a worker does for all documents, for those of one partition; the member runs Faust, and feeds it."""

    membership: Seat

    def __init__(
        self, settings: Settings, wired: wiring.Wired, partition: TP, app: faust.App, sources: Ends, seat_lost: float
    ) -> None:
        super().__init__(settings, wired)
        self.app, self._partition, self._sources, self._silence = app, partition, sources, seat_lost
        self.id = wired.projection.parts[partition.partition]
        inputs = replace(
            wired.inputs, exchange=f"{partition.topic}/{partition.partition}", partitions=wired.projection.workers
        )
        self.wired = replace(wired, inputs=inputs, sinks=[])
        wiring.open_sinks(settings, self.wired, self.id)
        self._lock: TextIOWrapper | None = None
        self._taking = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Its mirror is this machine's, that of the newest state snapshot, a new one that reads the log, or one of copied tables."""
        path = mirror_file(self.settings, self.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.status = StatusFile(self.settings, self.id)
        self._lock = path.with_suffix(".lock").open("a+")
        await self._own(self._lock)
        opening = Opening(self.settings, self.wired, self.id, self.owner, self.stopping, self._nap)
        try:
            if not await opening.filled(self.states, self._begins):
                raise asyncio.CancelledError
        except asyncio.CancelledError:
            self.stopping.set()  # a copy goes on in its thread
            raise
        await self.in_engine(self._open, str(path))
        self.membership = Seat(
            self._sources, name=self.id, engine=self.engine, in_engine=self.in_engine, stopping=self.stopping,
            fatal=self.fatal, silence=self._silence,
        )  # fmt: skip
        self.membership.app = self.app

    async def begin(self) -> None:
        """Write documents, once it is known from where on it reads; no more than that when it does already."""
        if self._tasks:
            return
        await self._open_flushers()
        work: list[Any] = [flusher.run() for flusher in self.flushers]
        work += [self._watch(), self._refresher().run()]
        if self.states is not None:
            self.saver = self._saver(self.states)
            work.append(self.saver.run())
        self._tasks = [asyncio.create_task(self._guarded(each), name=self.id) for each in work]
        log.info("%s: open", self.id)

    async def close(self, state: str = "stopped") -> None:
        """This member ends, or another has it from now on (`moved`)."""
        self.stopping.set()
        for flusher in self.flushers:
            flusher.stopping = True
            flusher.changed.set()
        async with self._taking:
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=5)
                for task in late:
                    task.cancel()
            for thread, flusher in zip(self._reader_threads, self.flushers, strict=True):
                await self._in(thread, flusher.reader.close)
                thread.shutdown(wait=False)
            await self._close(state)
            self._engine_thread.shutdown(wait=False)
        if self._lock is not None:
            self._lock.close()
        log.info("%s: closed", self.id)

    async def take(self, batch: Batch) -> None:
        async with self._taking:
            if not self.stopping.is_set():
                await super().take(batch)

    def _feed(self, batch: Batch) -> None:
        assert self.engine.inlet is not None
        self.engine.inlet.receive(batch.records)

    def fatal(self, error: BaseException) -> None:
        if isinstance(error, Fenced) and self.stopping.is_set():
            log.info("%s: %s", self.id, error)  # its successor is at work while it is closed
            return
        super().fatal(error)

    async def _own(self, lock: TextIOWrapper) -> None:
        """The group says that the mirror is ours; a process that keeps it, stopped or stuck, has lost it, and is ended."""
        waited = 0.0
        while not locked(lock, self.owner):
            lock.seek(0)
            holder = lock.read().strip()
            node, _, rest = holder.partition(":")
            if waited >= KILL_AFTER and node == os.uname().nodename:
                log.warning("%s: worker %s keeps the mirror, which is not its any more: killed", self.id, holder)
                with suppress(ProcessLookupError, ValueError):
                    os.kill(int(rest.partition(":")[0]), signal.SIGKILL)
            if waited >= 3 * KILL_AFTER:
                raise CheckpointError(f"{self.id}: worker {holder} keeps the mirror: end it.")
            await self._nap(0.2)
            waited += 0.2


__all__ = ["Share"]
