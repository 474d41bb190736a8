"""One worker: one projection version, one Faust app, one consumer group, one mirror."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import faust

from pipeline.authoring.fingerprint import fingerprint
from pipeline.engine.dirty import Reader
from pipeline.engine.engine import Engine, Progress
from pipeline.engine.mirror import Mirror
from pipeline.engine.revision import RENEW_AT
from pipeline.engine.withholding import apply_rules
from pipeline.errors import (
    CdcError,
    CheckpointError,
    Fenced,
    LogTruncated,
    PositionWentBack,
    SchemaChanged,
    Transient,
)
from pipeline.operations.states import States, states
from pipeline.operations.status import mirror_file
from pipeline.runtime import apps, wiring
from pipeline.runtime.assignors import OldestTakesAll
from pipeline.runtime.batches import Batch, batch_topic, install
from pipeline.runtime.faults import passing
from pipeline.runtime.flusher import Flusher
from pipeline.runtime.membership import Membership
from pipeline.runtime.opening import Opening
from pipeline.runtime.pacing import Backoff
from pipeline.runtime.refresher import Refresher
from pipeline.runtime.saver import Saver
from pipeline.runtime.schemas import Schemas
from pipeline.runtime.telemetry import StatusFile
from pipeline.runtime.topics import assure_topics, ensure_topics
from pipeline.runtime.tracing import span
from pipeline.settings import Settings

log = logging.getLogger("cdc.worker")
T = TypeVar("T")

EXIT_UNFORESEEN: Final = 70
EXIT_FENCED: Final = 75
EXIT_STOP_AND_SAY: Final = 78
"""Restarting would not help: somebody has to decide."""


class Worker:
    """Decode → mirror → dirty → flush → checkpoint."""

    def __init__(self, settings: Settings, wired: wiring.Wired) -> None:
        self.settings, self.wired = settings, wired
        self.kafka = settings.kafka_address(wired.kafka)
        self.id = wired.projection.id
        self.owner = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.stopping = asyncio.Event()
        self._engine_thread = ThreadPoolExecutor(1, "engine")
        self._reader_threads: list[ThreadPoolExecutor] = []
        self.flushers: list[Flusher] = []
        self.mirror: Mirror
        self.engine: Engine
        self.app: faust.App
        self.membership: Membership
        self.totals = Progress()
        self.states = states(settings, passing)
        self.saver: Saver | None = None
        self.schemas = Schemas(self.id, wired.registries, self.stopping, self._nap)

    # ---- life ---------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; leaves nothing half done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        path = mirror_file(self.settings, self.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.status = StatusFile(self.settings, self.id)
        opening = Opening(self.settings, self.wired, self.id, self.owner, self.stopping, self._nap)
        if not await opening.made():
            return 0
        with path.with_suffix(".lock").open("a+") as lock:
            if not await opening.own(lock) or not await opening.filled(self.states, self._begins):
                return 0
            await self.in_engine(self._open, str(path))
            try:
                await self._work()
            finally:
                await self._close()
        return 0

    def _begins(self, error: str | None) -> None:
        """What holds it up before it works."""
        self.status.error = error
        self.status.write(self, "running")

    def _open(self, path: str) -> None:
        self.mirror = Mirror(path, self.wired.layout, owner=self.owner, fingerprint=fingerprint(self.wired.shape))
        with self.mirror.checkpoint():
            self.sink_ids = [self.mirror.sink_id(sink.name) for sink in self.wired.sinks]
        worker = self.settings.worker
        self.engine = Engine(
            self.mirror, self.wired.inputs, consistency=worker.consistency,
            staged_bytes=worker.staged_bytes, sweep_limit=worker.sweep_limit, missing_columns=worker.missing_columns,
        )  # fmt: skip
        self.engine.refreshing.begin_anew()

    async def _work(self) -> None:
        await self._until_kafka()
        self.membership = Membership(
            name=self.id, engine=self.engine, in_engine=self.in_engine, stopping=self.stopping, fatal=self.fatal,
            silence=self.settings.worker.session_timeout - self.settings.elasticsearch.request_timeout,
        )  # fmt: skip
        self.app = self.membership.app = self._faust()
        await self._open_flushers()
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        self.app.finalize()
        await apps.start(self.app, self.stopping)
        tasks = [asyncio.create_task(self._guarded(f.run()), name=f.sink.name) for f in self.flushers]
        tasks += [asyncio.create_task(self._guarded(self._watch()), name="watch")]
        tasks += [asyncio.create_task(self._guarded(self._refresher().run()), name="refresh")]
        if self.states is not None:
            self.saver = self._saver(self.states)
            tasks += [asyncio.create_task(self._guarded(self.saver.run()), name="saver")]
        crash = asyncio.create_task(self._crashed(), name="crash")
        await asyncio.wait({crash, asyncio.create_task(self.stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
        self.stopping.set()
        await apps.stop(self.app, self.id)
        for flusher in self.flushers:
            flusher.stopping = True
            flusher.changed.set()
        await asyncio.wait(tasks, timeout=15)
        crash.cancel()

    async def _crashed(self) -> None:
        """Faust swallows what goes wrong in its own tasks; then this process has to end."""
        while not self.stopping.is_set():
            if self.app.crashed or self.app.should_stop:
                self.fatal(self.app.crash_reason or RuntimeError("Faust stopped"))
            await self._nap(0.5)

    async def _until_kafka(self) -> None:
        backoff, by_table = Backoff(0.5), self.wired.by_table
        while not self.stopping.is_set():
            try:
                for own in {of.name: of for of in by_table.values()}.values():
                    topics = {own.topic(table): own.partitions for table, of in by_table.items() if of.name == own.name}
                    await ensure_topics(self.kafka, own, topics | {own.transaction_topic: 1})
                await assure_topics(self.kafka, self.wired.inputs.foreign)
                self.status.error = None
                return
            except Transient as error:
                log.warning("%s: %s", self.id, error)
                self._begins(str(error))
                await self._nap(backoff.delay())

    async def _open_flushers(self) -> None:
        window = self.settings.worker.session_timeout + self.settings.elasticsearch.request_timeout
        for sink, number, rules in zip(self.wired.sinks, self.sink_ids, self.wired.rules, strict=True):
            await self.in_engine(apply_rules, self.mirror, number, rules)
            thread = ThreadPoolExecutor(1, f"reader-{number}")
            self._reader_threads.append(thread)
            reader: Reader = await self._in(thread, self.engine.reader, rules)
            self.flushers.append(
                Flusher(
                    engine=self.engine, reader=reader, sink=sink, sink_id=number, owner=self.owner,
                    rate=self.settings.worker.flush_rate, **wiring.pace(self.settings, sink),
                    in_engine=self.in_engine, in_reader=lambda f, *a, t=thread: self._in(t, f, *a),
                    may_write=self.membership.may_write, window=window, look=self._new_cut,
                )
            )  # fmt: skip

    def _refresher(self) -> Refresher:
        return Refresher(
            engine=lambda: self.engine,
            in_engine=self.in_engine,
            definition=self.wired.asked_of,
            settings=self.settings,
            may_ask=lambda: bool(self.membership.partitions) and self.engine.catching_up is None,
            applied=lambda: self._add(Progress()),
            stopping=self.stopping,
        )

    def _saver(self, states: States) -> Saver:
        return Saver(
            states=states, build=self.id, every=self.settings.state.every, keep=self.settings.state.keep,
            seq=lambda: self.mirror.seq,
            may_save=lambda: bool(self.membership.partitions) and self.engine.catching_up is None,
            stopping=self.stopping,
        )  # fmt: skip

    async def _close(self, state: str = "stopped") -> None:
        self.status.write(self, state)
        for sink in self.wired.sinks:
            await sink.close()
        await self.in_engine(self.mirror.close)

    async def _nap(self, seconds: float) -> None:
        """Sleep, but not through the stop."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            pass

    # ---- threads ------------------------------------------------------------------------------------------

    async def in_engine(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run in the one thread that writes the mirror."""
        return await self._in(self._engine_thread, function, *arguments)

    async def _in(self, thread: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, function, *arguments)

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fatal(error)

    def fatal(self, error: BaseException) -> None:
        """Nobody foresaw it, or somebody else owns this now: end without a checkpoint. The mirror has what counts."""
        code = (
            EXIT_STOP_AND_SAY if isinstance(error, LogTruncated | PositionWentBack | SchemaChanged) else EXIT_UNFORESEEN
        )
        code = EXIT_FENCED if isinstance(error, Fenced) else code
        known = isinstance(error, CdcError)
        log.critical("%s: %s: %s", self.id, type(error).__name__, error, exc_info=None if known else error)
        self.status.error, self.status.given_up = f"{type(error).__name__}: {error}", code == EXIT_STOP_AND_SAY
        self.status.write(self, "failed")
        logging.shutdown()
        os._exit(code)

    # ---- Faust --------------------------------------------------------------------------------------------

    def _faust(self) -> faust.App:
        OldestTakesAll.who = self.owner
        app = apps.faust_app(self.settings, self.wired.projection, self.kafka, self.id, "faust")
        install(app, self.membership)
        inputs = self.wired.inputs
        topics = [*inputs.topics, *inputs.transactions]

        async def project(stream: Any) -> None:
            await self._guarded(self._consume(stream))

        app.agent(batch_topic(app, topics), name="project")(project)
        return app

    # ---- the loop -----------------------------------------------------------------------------------------

    async def _consume(self, stream: Any) -> None:
        """Faust's agent: every poll into the gate, what is whole into the mirror, and wake the flushers."""
        async for event in stream.noack().events():
            await self.take(event.value)

    async def take(self, batch: Batch) -> None:
        """One poll, unless a rebalance came in between."""
        if batch.stale() or not await self.schemas.known(batch):
            return
        with span("receive", partition=batch.partition, records=sum(len(run) for _, run in batch.runs)):
            self._add(await self.in_engine(self._receive, batch))
        if self.engine.wants_cut:
            await self._new_cut()

    def _receive(self, batch: Batch) -> Progress:
        if batch.stale():
            return Progress()
        passing("received")
        self._feed(batch)
        progress = self.engine.step()
        passing("checkpointed")
        return progress

    def _feed(self, batch: Batch) -> None:
        for label, records in batch.runs:
            self.engine.receive(batch.partition, records, label)

    async def _new_cut(self) -> None:
        """What is in Kafka by now has to be read before documents are written."""
        ends = await self.membership.ends()
        if not ends:
            return  # a rebalance: the assignment says where the log ends
        await self.in_engine(self.engine.catch_up, ends)
        self._add(await self.in_engine(self.engine.step))

    def _add(self, progress: Progress) -> None:
        totals = self.totals
        totals.applied += progress.applied
        totals.transactions += progress.transactions
        totals.newest_ms = max(totals.newest_ms, progress.newest_ms)
        for flusher in self.flushers:
            flusher.changed.set()

    def _overdue(self, now: float) -> str | None:
        after, engine = self.settings.worker.incomplete_after, self.engine
        return engine.overdue(now, after) if engine.catching_up is None else None

    async def _give_up_overdue(self) -> None:
        now, given_up = asyncio.get_running_loop().time(), ""
        while stuck := await self.in_engine(self._overdue, now):
            if stuck == given_up or not self.membership.at_the_end():
                return
            log.warning("%s: transaction %s did not complete: released as it is", self.id, stuck)
            self._add(await self.in_engine(self.engine.give_up, stuck))
            given_up = stuck

    async def _watch(self) -> None:
        """Once a second: status, and what does not complete in time."""
        beats = 0
        while not self.stopping.is_set():
            self.status.error = self.membership.complaint() or self.schemas.waits
            self.status.write(self, "running")
            await self._give_up_overdue()
            beats += 1
            if self.mirror.seq >= RENEW_AT:
                raise CheckpointError(f"{self.id}: the sequence is used up; the next start begins it anew.")
            if await self.in_engine(partial(self.engine.beginnings.sweep_held, mark=self.engine.loaded)):
                self._add(Progress())
            if beats % 60 == 0:
                await self.in_engine(self.engine.prune)
            await self._nap(1.0)
