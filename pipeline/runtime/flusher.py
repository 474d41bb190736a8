"""The flusher: dirty documents to one sink, at the sink's own pace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline.engine.dirty import Reader, Taken
from pipeline.engine.engine import Engine
from pipeline.errors import SinkError, SinkUnavailable, Transient
from pipeline.ports import Applied, Outcome, Rejected, Sink, SinkRecord, Stale, Throttled
from pipeline.runtime.faults import passing
from pipeline.runtime.pacing import Backoff

log = logging.getLogger("cdc.flusher")
InThread = Callable[..., Awaitable[Any]]


class Flusher:
    """Writes what is dirty, one bulk after another; a slow or absent sink holds up nothing but its own documents."""

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        reader: Reader,
        sink: Sink,
        sink_id: int,
        owner: str,
        rows: int,
        rate: float,
        in_flight: int,
        in_engine: InThread,
        in_reader: InThread,
        may_write: Callable[[], bool],
    ) -> None:
        self._engine, self._reader, self.sink, self.sink_id = engine, reader, sink, sink_id
        self._owner, self._rows, self._rate = owner, min(rows, max(1, int(rate))) if rate else rows, rate
        self._in_engine, self._in_reader, self._may_write = in_engine, in_reader, may_write
        # one more than the sink sends at once: it is assembled or settled while the others are on their way
        self._room = asyncio.Semaphore(in_flight + 1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._backoff = Backoff()
        self._not_before = 0.0
        self._record: SinkRecord | None = None
        self._saved_at = 0.0
        self.changed = asyncio.Event()
        self.stopping = False
        self.error: str | None = None
        """Why nothing is written now, for status."""
        self.written = {"applied": 0, "stale": 0, "rejected": 0, "throttled": 0}
        self.last_write_at = 0.0

    async def run(self) -> None:
        """Until `stopping`; raises only what nobody foresaw, and Fenced."""
        while not self.stopping:
            if not await self._ready():
                if not (self._engine().folding.unfolded and await self._in_engine(self._engine().continue_fanout)):
                    await self._pause(0.2)
                continue
            await self._room.acquire()
            try:
                taken = await self._take()
            except BaseException:
                self._room.release()
                raise
            if not taken.keys and not taken.refused:
                self._room.release()
                await self._idle()
                continue
            task = asyncio.create_task(self._write(taken), name=f"write-{self.sink.name}")
            self._tasks.add(task)
            task.add_done_callback(self._done)
            await self._publish(min_seconds=1.0)
            if self._rate:
                await asyncio.sleep(len(taken.keys) / self._rate)
        await self._finish()

    async def _finish(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=10)
        if self._record is not None and self.error is None:
            await self._publish(min_seconds=0.0)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()
        if not task.cancelled() and task.exception() is not None:
            self._failure = task.exception()
            self.changed.set()

    _failure: BaseException | None = None

    async def _ready(self) -> bool:
        if self._failure is not None:
            raise self._failure
        if time.monotonic() < self._not_before or not self._may_write() or not self._engine().may_flush:
            return False
        return (self._record is not None or await self._claim()) and self._passed()

    async def _claim(self) -> bool:
        """Take ownership of the sink when there is first something to write, so that an absent sink stops no mirror."""
        try:
            at_least = await self._in_engine(self._stored_epoch)
            self._record = await self.sink.claim(self._owner, at_least)
            await self._in_engine(self._store_epoch, self._record.epoch)
        except Transient as error:
            self._away(error)
            return False
        log.info("%s: epoch %d claimed", self.sink.name, self._record.epoch)
        self._succeeded()
        return True

    def _stored_epoch(self) -> int:
        return self._engine().mirror.epoch(self.sink_id)

    def _store_epoch(self, epoch: int) -> None:
        self._engine().mirror.set_epoch(self.sink_id, epoch)

    def _passed(self) -> bool:
        """Documents never go back in time: the mirror has to be past what the sink has acknowledged."""
        assert self._record is not None
        stored = self._engine().durable
        behind = [p for p, offset in self._record.offsets.items() if stored.get(p, 0) < offset]
        if behind:
            self.error = f"waits until the mirror has passed {behind[0]} {self._record.offsets[behind[0]]}"
        elif self.error and self.error.startswith("waits until"):
            self.error = None
        return not behind

    async def _take(self) -> Taken:
        assert self._record is not None
        taken: Taken = await self._in_reader(self._reader.take, self.sink_id, self._rows, self._record.epoch)
        return taken

    async def _write(self, taken: Taken) -> None:
        assert self._record is not None
        outcomes: list[Outcome] | None = None
        passing("writing")
        try:
            outcomes = list(await self.sink.write(taken.writes, self._record.epoch)) if taken.writes else []
            self._succeeded()
            self._tell(outcomes)
        except SinkError as error:  # away, or missing: what is dirty stays dirty
            self._away(error)
        passing("written")
        if outcomes is not None:
            await self._in_engine(self._engine().settle, taken, outcomes)
            passing("settled")
        await self._in_reader(self._reader.landed, taken)

    def _tell(self, outcomes: list[Outcome]) -> None:
        self.last_write_at = time.time()
        throttled = [o for o in outcomes if isinstance(o, Throttled)]
        for kind, name in ((Applied, "applied"), (Stale, "stale"), (Rejected, "rejected"), (Throttled, "throttled")):
            self.written[name] += sum(isinstance(o, kind) for o in outcomes)
        if throttled:
            self.error = f"throttled: {throttled[0].reason}"
            self._not_before = time.monotonic() + self._backoff.delay(max(o.retry_after for o in throttled))

    def _away(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        if text != self.error:
            log.warning("%s: %s", self.sink.name, text)
        self.error = text
        self._not_before = time.monotonic() + self._backoff.delay()

    def _succeeded(self) -> None:
        if self.error:
            log.info("%s: works again", self.sink.name)
        self.error = None
        self._backoff.reset()

    async def _idle(self) -> None:
        """Nothing fresh to write: work off a fan-out, tell the sink how far it is, wait for a change."""
        if await self._in_engine(self._engine().continue_fanout):
            return
        if not self._tasks:
            await self._publish(min_seconds=0.5)
        await self._pause(0.5)

    async def _pause(self, seconds: float) -> None:
        self.changed.clear()
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            pass

    async def _publish(self, min_seconds: float) -> None:
        """The checkpoint record: offsets acknowledged, and the watermark."""
        if self._record is None or time.monotonic() - self._saved_at < min_seconds:
            return
        self._saved_at = time.monotonic()
        offsets, watermark = await self._in_engine(self._engine().acknowledged, self.sink_id)
        if not offsets or (offsets == self._record.offsets and watermark == self._record.watermark):
            return
        self._record.offsets, self._record.watermark = offsets, watermark
        try:
            await self.sink.save(self._record)
            passing("recorded")
        except SinkUnavailable as error:
            self._away(error)
            self._record.offsets = {}  # not known to be saved: say it again
