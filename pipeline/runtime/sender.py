"""The exchange's agent: records of the source's topics, sent on to the partitions that own their documents."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import faust
from aiokafka import AIOKafkaProducer
from faust.types import TP

from pipeline.addresses import KafkaAddress
from pipeline.engine.exchange import FRAME_ROOM, Router
from pipeline.errors import LogTruncated
from pipeline.runtime.batches import Batch
from pipeline.runtime.faults import passing

AHEAD: Final = 16
"""Polls on their way to Kafka at once."""


class Sender:
    """Sends polls in order, and says which offsets are acknowledged; a send that fails ends the process."""

    def __init__(
        self,
        kafka: KafkaAddress,
        router: Router,
        topic: str,
        max_message_bytes: int,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._router, self._topic, self._fatal = router, topic, fatal
        self._most = max_message_bytes + FRAME_ROOM
        self._kafka = kafka
        self._at: dict[TP, int] = {}
        self._first: set[TP] = set()
        """Of these nothing was sent since they were assigned."""
        self.acknowledged: dict[TP, int] = {}
        """What a successor need not send again."""
        self._sitting = 0
        self._sent: deque[tuple[int, TP, int, list[asyncio.Future[Any]]]] = deque()
        self._room = asyncio.Semaphore(AHEAD)
        self._thread = ThreadPoolExecutor(1, "exchange")
        self.records = 0
        """Sent on by this process."""

    async def start(self) -> None:
        self._producer = AIOKafkaProducer(
            **self._kafka.options(), client_id="cdc-exchange", acks="all", enable_idempotence=True, linger_ms=5,
            compression_type="lz4", max_request_size=self._most, max_batch_size=FRAME_ROOM,
        )  # fmt: skip
        await self._producer.start()

    async def stop(self) -> None:
        await self._producer.stop()
        self._thread.shutdown(wait=False)

    # ---- positions ----------------------------------------------------------------------------------------

    async def begin(
        self, app: faust.App, partitions: Iterable[TP], read: Callable[[], Mapping[str, int]]
    ) -> Mapping[TP, int]:
        """Where to go on: what the group knows as acknowledged, else where all mirrors have read to, else the start of the log."""
        partitions = set(partitions)
        consumer = app.consumer
        thread = consumer._thread
        committed = thread._ensure_consumer().committed
        earliest = await consumer.earliest_offsets(*partitions) if partitions else {}
        ends = await consumer.highwaters(*partitions) if partitions else {}
        starts = {}
        acknowledged = {tp: await thread.call_thread(committed, tp) for tp in partitions}
        known = await asyncio.to_thread(read) if None in acknowledged.values() else {}
        for tp, start in acknowledged.items():
            first, end = earliest.get(tp) or 0, ends.get(tp) or 0
            if start is not None and not first <= start <= end:
                raise LogTruncated(
                    f"The exchange goes on at {start} of {tp.topic}/{tp.partition}, and Kafka has {first} to {end}:"
                    " changes are missing. Rebuild it (cdc rebuild)."
                )
            starts[tp] = max(first, known.get(f"{tp.topic}/{tp.partition}", 0)) if start is None else int(start)
        self._sitting += 1
        self._at, self._first, self.acknowledged = dict(starts), set(starts), {}
        return starts

    def revoked(self) -> None:
        """What is sent from now on is a successor's; what is acknowledged by now is committed before."""
        self._sitting += 1
        self._at = {}

    # ---- sending ------------------------------------------------------------------------------------------

    async def send(self, batch: Batch) -> None:
        """One poll; returns before it is acknowledged."""
        sitting, tp = self._sitting, batch.tp
        if batch.stale() or tp not in self._at:
            return
        start, first = self._at[tp], tp in self._first
        frames = await asyncio.get_running_loop().run_in_executor(
            self._thread, lambda: list(self._router.frames(batch.partition, batch.runs, start, first=first))
        )
        await self._room.acquire()
        if batch.stale() or sitting != self._sitting:
            self._room.release()
            return
        end = batch.runs[-1][1][-1][0] + 1
        self._at[tp] = end
        self._first.discard(tp)
        self.records += sum(len(run) for _, run in batch.runs)
        passing("exchanging")
        sent = []
        for each in frames:
            for number, data in enumerate(each):
                future = await self._producer.send(self._topic, data, partition=number)
                future.add_done_callback(self._settled)
                sent.append(future)
        self._sent.append((sitting, tp, end, sent))
        self._settle()

    def _settled(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._fatal(error)
        self._settle()

    def _settle(self) -> None:
        """In order, so that an acknowledged offset has everything before it acknowledged."""
        while self._sent and all(future.done() for future in self._sent[0][3]):
            sitting, tp, end, sent = self._sent.popleft()
            self._room.release()
            if any(future.cancelled() for future in sent):
                self.revoked()  # it is stopped, and nothing behind this is acknowledged
            if sitting == self._sitting:
                passing("exchanged")
                self.acknowledged[tp] = end
