"""The flusher: dirty documents to one sink, at the sink's own pace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from pipeline.engine.dirty import Reader, Taken
from pipeline.engine.engine import Engine
from pipeline.engine.ownership import Orphans
from pipeline.errors import Fenced, SinkError, SinkUnavailable, Transient
from pipeline.ports import Applied, Outcome, Rejected, Sink, SinkRecord, Stale, Throttled, Write
from pipeline.runtime.faults import passing
from pipeline.runtime.pacing import Backoff
from pipeline.runtime.tracing import span

log = logging.getLogger("cdc.flusher")
TELL = 0.1
"""Seconds from one checkpoint record to the next while nothing else is to be written: who reads after a write waits for it."""
InThread = Callable[..., Awaitable[Any]]


class Flusher:
    """Writes what is dirty, one bulk after another; a slow or absent sink holds up nothing but its own documents."""

    def __init__(
        self,
        *,
        engine: Engine,
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
        window: float,
        look: Callable[[], Awaitable[None]],
        whole: bool = False,
    ) -> None:
        self._engine, self.reader, self.sink, self.sink_id = engine, reader, sink, sink_id
        self._owner, self._rows, self._rate = owner, min(rows, max(1, int(rate))) if rate else rows, rate
        self._in_engine, self._in_reader, self._may_write = in_engine, in_reader, may_write
        # one more than the sink sends at once: it is assembled or settled while the others are on their way
        self._room = asyncio.Semaphore(1 if whole else in_flight + 1)
        self._whole = whole
        """Each write is all that is dirty: readers see source transactions whole, over several documents too."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._backoff = Backoff()
        self._not_before = 0.0
        self._window, self._look = window, look
        """Seconds after which no request of a replaced worker, nor one from before an outage, is under way."""
        self._look_again: float | None = None
        """When to look whether deleted documents came back."""
        self._orphans = True
        """Whether there may be documents that another mirror wrote and this one does not know of."""
        self._incomplete = True
        """Whether nobody has looked for them yet: until then the read model is at no watermark."""
        self._record: SinkRecord | None = None
        self._saved_at = 0.0
        self.changed = asyncio.Event()
        self.stopping = False
        self.error: str | None = None
        """Why nothing is written now, for status."""
        self.written = {"applied": 0, "stale": 0, "rejected": 0, "throttled": 0, "split": 0}
        self.last_write_at = 0.0

    async def run(self) -> None:
        """Until `stopping`; raises only what nobody foresaw, and Fenced."""
        while not self.stopping:
            self.changed.clear()  # before looking: what changes from here on ends the next pause at once
            if not await self._ready():
                if not (self._engine.folding.unfolded and await self._in_engine(self._engine.continue_fanout)):
                    await self._pause(0.2)
                continue
            if self._incomplete:
                await self._sweep_orphans(last=False)
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
        self.changed.set()  # what changed while it was on its way can be taken now

    _failure: BaseException | None = None

    async def _ready(self) -> bool:
        if self._failure is not None:
            raise self._failure
        if time.monotonic() < self._not_before or not self._may_write() or not self._engine.may_flush:
            return False
        if self._record is None:
            await self._claim()
        # after a claim the mirror may have to catch up first
        return self._record is not None and self._engine.may_flush and self._passed()

    async def _claim(self) -> None:
        """Take ownership of the sink when there is first something to write, so that an absent sink stops no mirror."""
        try:
            at_least = await self._in_engine(self._stored_epoch)
            self._record = await self.sink.claim(self._owner, at_least)
            anew = await self._in_engine(
                self._engine.ownership.claimed, self.sink_id, self._record.epoch, self._record.offsets
            )
        except Transient as error:
            self._away(error)
            return
        log.info("%s: epoch %d claimed", self.sink.name, self._record.epoch)
        if anew:
            log.warning("%s: it may hold what this mirror does not know of: every document again", self.sink.name)
            await self._look()
        self._look_again = time.monotonic() + self._window
        self._succeeded()

    def _stored_epoch(self) -> int:
        return self._engine.mirror.epoch(self.sink_id)

    def _passed(self) -> bool:
        """Documents never go back in time: the mirror has to be past what the sink has acknowledged."""
        assert self._record is not None
        stored = self._engine.durable
        behind = [p for p, offset in self._record.offsets.items() if stored.get(p, 0) < offset]
        if behind:
            self.error = f"waits until the mirror has passed {behind[0]} {self._record.offsets[behind[0]]}"
        elif self.error and self.error.startswith("waits until"):
            self.error = None
        return not behind

    async def _take(self) -> Taken:
        assert self._record is not None
        take = partial(self.reader.take, whole=self._whole)
        taken: Taken = await self._in_reader(take, self.sink_id, self._rows, self._record.epoch)
        self.written["split"] += self._whole and taken.split
        return taken

    async def _write(self, taken: Taken) -> None:
        assert self._record is not None
        outcomes: list[Outcome] | None = None
        passing("writing")
        try:
            with span("write", sink=self.sink.name, documents=len(taken.writes)):
                outcomes = await self._written(taken)
            self._succeeded()
            self._tell(outcomes)
        except SinkError as error:  # away, or missing: what is dirty stays dirty
            self._away(error)
        passing("written")
        if outcomes is not None:
            await self._in_engine(self._engine.settle, taken, outcomes)
            passing("settled")
        await self._in_reader(self.reader.landed, taken)

    async def _written(self, taken: Taken) -> list[Outcome]:
        return await self._sent(taken.writes) if taken.writes else []

    async def _sent(self, writes: Sequence[Write]) -> list[Outcome]:
        assert self._record is not None
        outcomes = list(await self.sink.write(writes, self._record.epoch, self._may_write))
        if any(isinstance(o, Stale) for o in outcomes):
            # one of ours that was through without an answer, or a successor's: then nothing of this is settled
            stored = await self.sink.record()
            if stored is None or (stored.epoch, stored.owner) != (self._record.epoch, self._owner):
                raise Fenced(f"{self.sink.name}: another worker has claimed the sink: this one stops.")
        return outcomes

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
            self._look_again = time.monotonic() + self._window
        self.error = None
        self._backoff.reset()

    async def _idle(self) -> None:
        """Nothing fresh to write: work off a fan-out, tell the sink how far it is, wait for a change."""
        if await self._in_engine(self._engine.continue_fanout):
            return
        more = not self._tasks and await self._publish(min_seconds=TELL)
        if self._look_again is not None and time.monotonic() >= self._look_again:
            await self._look_up_deleted()
        elif self._look_again is None and self._orphans and not self._tasks:
            await self._sweep_orphans(last=True)
        await self._pause(TELL if more else 0.5)

    async def _look_up_deleted(self) -> None:
        """A sink forgets a deleted document's version, after a while or at a restart: then a late write brings it back."""
        since, after, ownership = time.time() - 3 * self._window, 0, self._engine.ownership
        self._look_again = None
        try:
            while True:
                after, keys = await self._in_engine(ownership.tombstones.page, self.sink_id, since, after)
                if not keys:
                    return
                ids = [ownership.tombstones.id(key) for key in keys]
                found = await self.sink.read(ids)
                back = [key for key, id in zip(keys, ids, strict=True) if id in found]
                if back:
                    log.warning("%s: %d deleted documents are there: written again", self.sink.name, len(back))
                    await self._in_engine(ownership.came_back, self.sink_id, back)
        except SinkUnavailable as error:
            self._away(error)
            self._look_again = time.monotonic() + self._window

    async def _sweep_orphans(self, *, last: bool) -> None:
        """Delete what another mirror wrote and this one does not know of: a group, say, that has vanished meanwhile.

        Once before the first watermark, and a `last` time when no request of a replaced worker is under way.
        """
        ownership = self._engine.ownership
        found: Orphans | None = await self._in_engine(ownership.orphans, self.sink_id)
        if found is None:
            return
        try:
            if found.epoch and not await self._swept(found, last):
                return
        except SinkError as error:
            self._away(error)
            return
        self._incomplete = False
        self._orphans = not (last or not found.epoch)

    async def _swept(self, found: Orphans, last: bool) -> bool:
        ids, documents = [], 0
        await self.sink.refresh()
        async for page in self.sink.scan(documents=False):
            own = [i for i in page if self._engine.ownership.owns(i)]
            documents += len(own)
            ids += [i for i in own if page[i].revision >> 40 < found.epoch and i not in found.leave]
        held = len(ids) if self._engine.ownership.too_many(len(ids), documents) else 0
        if ids:
            what = "are too many to go by themselves" if held else "go"
            log.warning(
                "%s: %d of %d documents are of nothing that the mirror knows: they %s",
                self.sink.name,
                len(ids),
                documents,
                what,
            )
        for start in range(0, 0 if held else len(ids), self._rows):
            writes = [Write(id, found.revision, None) for id in ids[start : start + self._rows]]
            if not all(isinstance(o, Applied | Stale) for o in await self._sent(writes)):
                return False
        if last:
            await self._in_engine(self._engine.ownership.swept, self.sink_id, held)
        return True

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.changed.wait(), seconds)
        except TimeoutError:
            pass

    async def _publish(self, min_seconds: float) -> bool:
        """The checkpoint record: offsets acknowledged, and the watermark. Whether there may be more to say."""
        if self._record is None or self._incomplete:
            return False
        if time.monotonic() - self._saved_at < min_seconds:
            return True
        self._saved_at = time.monotonic()
        offsets, watermark = await self._in_engine(self._engine.acknowledged, self.sink_id)
        if not offsets or (offsets == self._record.offsets and watermark == self._record.watermark):
            return False
        self._record.offsets, self._record.watermark = offsets, watermark
        try:
            await self.sink.save(self._record)
            passing("recorded")
        except SinkUnavailable as error:
            self._away(error)
            self._record.offsets = {}  # not known to be saved: say it again
        return True
