"""One worker of several: it sends on what it reads of the source's topics, and keeps the partitions that it is given."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import faust
from faust.types import TP

from pipeline.engine.exchange import FRAME_ROOM, Router
from pipeline.errors import CdcError, DefinitionError, Fenced, LogTruncated, PositionWentBack, SchemaChanged, Transient
from pipeline.operations.in_parts import exchange_topic
from pipeline.operations.mirrors import read_up_to
from pipeline.runtime import apps, wiring
from pipeline.runtime.assignors import HomeFirst
from pipeline.runtime.batches import Batch, batch_topic, install
from pipeline.runtime.opening import Opening
from pipeline.runtime.pacing import Backoff
from pipeline.runtime.sender import Sender
from pipeline.runtime.share import Share
from pipeline.runtime.telemetry import StatusFile
from pipeline.runtime.topics import ensure_topics
from pipeline.runtime.worker import EXIT_FENCED, EXIT_STOP_AND_SAY, EXIT_UNFORESEEN
from pipeline.settings import Settings

log = logging.getLogger("cdc.member")


class Member:
    """Two Faust agents in one group: *exchange* and *assemble*. Implements `batches.Positions`.

    A partition's engine outlives a rebalance that leaves it here; one that goes is closed, and its successor claims the sink.
    """

    def __init__(self, settings: Settings, wired: wiring.Wired, number: int) -> None:
        self.settings, self.wired, self.number = settings, wired, number
        self.kafka = settings.kafka_address(wired.kafka)
        self.projection, self.id = wired.projection, wired.projection.id
        self.topic = exchange_topic(settings, self.projection)
        self.stopping = asyncio.Event()
        self.shares: dict[TP, Share] = {}
        self._assigning = asyncio.Lock()
        self._assignments: set[asyncio.Task[Mapping[TP, int]]] = set()
        self._wanted: set[TP] = set()
        """What the group has this one read, as of its last word."""
        self.status = StatusFile(settings, f"{self.id}#{number}")
        self.sender = Sender(
            self.kafka, Router(wired.layout, wired.inputs, self.projection.workers), self.topic,
            wired.definition.max_message_bytes, self.fatal,
        )  # fmt: skip
        self.app: faust.App

    # ---- life ---------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; leaves nothing half done."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        opening = Opening(self.settings, self.wired, self.id, "", self.stopping, self._nap)
        if not await opening.made() or not await self._until_kafka():
            return 0
        await self.sender.start()
        self.app = self._faust()
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        self.app.finalize()
        await apps.start(self.app, self.stopping)
        beat = 0
        while not self.stopping.is_set():
            if self.app.crashed or self.app.should_stop:
                self.fatal(self.app.crash_reason or RuntimeError("Faust stopped"))
            await self._nap(0.5)
            beat += 1
            if beat % 2 == 0:
                await self._look_at_the_ends()
        await self._stop()
        return 0

    async def _stop(self) -> None:
        await apps.stop(self.app, self.id)
        for task in self._assignments:
            task.cancel()
        await asyncio.gather(*self._assignments, return_exceptions=True)
        last = [asyncio.create_task(each) for each in (self.sender.stop(), *(s.close() for s in self.shares.values()))]
        done, _ = await asyncio.wait(last, timeout=15)  # what hangs with Kafka holds nothing up
        for ended in done:
            ended.result()

    async def _until_kafka(self) -> bool:
        own, backoff = self.wired.definition, Backoff(0.5)
        sources = {own.topic(table): own.partitions for table in self.wired.by_table} | {own.transaction_topic: 1}
        room = own.model_copy(update={"max_message_bytes": own.max_message_bytes + FRAME_ROOM})
        while not self.stopping.is_set():
            try:
                await ensure_topics(self.kafka, own, sources)
                await ensure_topics(self.kafka, room, {self.topic: self.projection.workers})
                return True
            except Transient as error:
                log.warning("%s: %s", self.id, error)
                await self._nap(backoff.delay())
        return False

    async def _nap(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            pass

    def fatal(self, error: BaseException) -> None:
        """Nobody foresaw it: end, and let the others, or the next life, go on from what is acknowledged."""
        decided = isinstance(error, LogTruncated | PositionWentBack | SchemaChanged | DefinitionError)
        log.critical(
            "%s: %s: %s", self.id, type(error).__name__, error, exc_info=None if isinstance(error, CdcError) else error
        )
        if decided:
            self.status.never_began(self.projection, f"{type(error).__name__}: {error}")
        logging.shutdown()
        os._exit(EXIT_STOP_AND_SAY if decided else EXIT_FENCED if isinstance(error, Fenced) else EXIT_UNFORESEEN)

    # ---- what the transport asks --------------------------------------------------------------------------

    async def assigned(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        """Where to read from: the mirrors say it of the exchange's partitions, the group of the source's.

        A mirror that is being opened when this is cancelled is opened to the end, and the next time kept or closed: half
        opened it would keep its lock from whoever comes next, this process too.
        """
        self._wanted = {TP(tp.topic, tp.partition) for tp in partitions}
        task = asyncio.create_task(self._one_after_another(self._wanted))
        self._assignments.add(task)
        task.add_done_callback(self._assignments.discard)
        return await asyncio.shield(task)

    async def _one_after_another(self, partitions: set[TP]) -> Mapping[TP, int]:
        async with self._assigning:
            if partitions is not self._wanted:
                return {}  # the group has spoken again
            try:
                return await self._assigned(partitions)
            except Exception as error:
                if self.stopping.is_set():
                    return {}
                self.fatal(error)
                raise

    async def _assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        mine = {tp for tp in partitions if tp.topic == self.topic}
        self._check_partitions()
        gone = [self.shares.pop(tp) for tp in [*self.shares] if tp not in mine]
        await asyncio.gather(*(share.close("moved") for share in gone))
        read = partial(read_up_to, self.settings, self.projection)
        starts = dict(await self.sender.begin(self.app, partitions - mine, read))
        starts |= dict(pair for each in await asyncio.gather(*map(self._seated, sorted(mine))) for pair in each.items())
        log.info("%s#%d: keeps %s, and sends on %d partitions", self.id, self.number,
                 ", ".join(str(tp.partition) for tp in sorted(mine)) or "none", len(partitions) - len(mine))  # fmt: skip
        return starts

    async def _seated(self, tp: TP) -> Mapping[TP, int]:
        share = self.shares.get(tp)
        if share is None:
            worker = self.settings.worker
            silence = worker.session_timeout - self.settings.elasticsearch.request_timeout
            share = Share(self.settings, self.wired, tp, self.app, self._source_ends, silence)
            await share.open()
            self.shares[tp] = share
        if tp not in self._wanted:  # the group has taken it away meanwhile
            return {}
        starts = await share.membership.assigned({tp})
        await share.begin()
        return starts

    def _check_partitions(self) -> None:
        there = self._partitions(self.topic)
        if there and len(there) != self.projection.workers:
            raise DefinitionError(
                f"{self.topic} has {len(there)} partitions, and {self.id} {self.projection.workers} workers: their number is"
                " part of its version, so raise `version`."
            )

    async def revoked(self) -> None:
        self._wanted = set()
        self.sender.revoked()
        for share in self.shares.values():
            await share.membership.revoked()

    def durable(self) -> Mapping[TP, int]:
        found = dict(self.sender.acknowledged)
        for share in self.shares.values():
            found |= share.membership.durable()
        return found

    def gone(self, offsets: Mapping[TP, int]) -> None:
        tp, offset = next(iter(offsets.items()))
        self.fatal(
            LogTruncated(
                f"{self.id}: Kafka no longer has offset {offset} of {tp.topic}/{tp.partition}, which comes next: changes are"
                " missing. Rebuild it (cdc rebuild)."
            )
        )

    # ---- how far the source's topics are ------------------------------------------------------------------

    def _partitions(self, topic: str) -> set[int]:
        return self.app.consumer._thread._ensure_consumer().partitions_for_topic(topic) or set()

    async def _source_ends(self) -> dict[TP, int]:
        inputs = self.wired.inputs
        topics = [*inputs.topics, *inputs.transactions]
        found = await self.app.consumer.highwaters(*(TP(t, n) for t in topics for n in self._partitions(t)))
        return {TP(tp.topic, tp.partition): int(end or 0) for tp, end in found.items()}

    async def _look_at_the_ends(self) -> None:
        for share in [*self.shares.values()]:
            if share.engine.gate.staged or share.engine.gate.ends:
                await share.membership.ends()

    # ---- Faust --------------------------------------------------------------------------------------------

    def _faust(self) -> faust.App:
        HomeFirst.number, HomeFirst.homes = self.number, self.projection.workers
        place = f"{self.id}/{self.number}"
        app = apps.faust_app(self.settings, self.projection, self.kafka, place, f"faust-{self.id}-{self.number}")
        install(app, self, HomeFirst)
        inputs = self.wired.inputs

        async def exchange(stream: Any) -> None:
            await self._guarded(stream, self.sender.send)

        async def assemble(stream: Any) -> None:
            await self._guarded(stream, self._assemble)

        app.agent(batch_topic(app, [*inputs.topics, *inputs.transactions]), name="exchange")(exchange)
        app.agent(batch_topic(app, [self.topic]), name="assemble")(assemble)
        return app

    async def _guarded(self, stream: Any, each: Any) -> None:
        """An exception never acknowledges anything: it ends the process."""
        try:
            async for event in stream.noack().events():
                await each(event.value)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.fatal(error)

    async def _assemble(self, batch: Batch) -> None:
        share = self.shares.get(batch.tp)
        if share is not None:
            await share.take(batch)
