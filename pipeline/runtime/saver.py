"""The saver: the worker's mirror as a state snapshot, at intervals, beside all else."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeline.errors import Transient
from pipeline.operations.states import State, States

log = logging.getLogger("cdc.saver")


class Saver:
    """Takes a state snapshot every `every` seconds where anything has changed, and keeps `keep` of them."""

    def __init__(
        self,
        *,
        states: States,
        build: str,
        every: float,
        keep: int,
        seq: Callable[[], int],
        may_save: Callable[[], bool],
        stopping: asyncio.Event,
    ) -> None:
        self._states, self._build, self._every, self._keep = states, build, every, keep
        self._seq, self._may_save = seq, may_save
        self._newest: State | None = None
        self._thread = ThreadPoolExecutor(1, "saver")
        self._stopping = stopping
        self.current_at = 0.0
        """When the newest state snapshot was last seen to be the mirror's state (time.time()); 0 before the first."""
        self.error: str | None = None

    async def run(self) -> None:
        """Until `stopping`; a storage that is away is said, and asked again at the next time."""
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), self._every)
            except TimeoutError:
                if self._may_save():
                    await self._save()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _save(self) -> None:
        at = time.time()
        # taking one gives the mirror no new sequence, so that one at rest is saved once
        if self._newest is None or self._newest.seq != self._seq():
            try:
                self._newest = await asyncio.get_running_loop().run_in_executor(self._thread, self._take)
            except Transient as error:
                self.error = str(error)
                log.warning("%s: %s", self._build, error)
                return
            log.info("%s: state saved, %.1f MB", self._build, self._newest.bytes / 1e6)
        self.current_at, self.error = at, None

    def _take(self) -> State:
        state = self._states.take(self._build)
        self._states.prune(self._build, self._keep)
        return state
