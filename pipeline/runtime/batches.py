"""Whole-poll delivery for Faust: one poll of one partition is one stream event, and the mirror's offsets are the truth.

Leans on private parts of faust-streaming 0.15.3 and aiokafka 0.14.0 (both pinned); tests/contracts/test_faust.py pins
the behaviour. Why: docs/decisions/0002-whole-poll-delivery.md.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, Protocol

import faust
from aiokafka.consumer import fetcher
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    IllegalStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RebalanceInProgressError,
)
from aiokafka.protocol.group import HeartbeatRequest, SyncGroupRequest
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from pipeline.events.sourcelog import HEADER
from pipeline.runtime.assignors import OldestTakesAll

log = logging.getLogger("cdc.batches")

SHORT_WAIT_MS: Final = 10


class Positions(Protocol):
    """Who knows where to read: the mirror."""

    async def assigned(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        """This worker reads these partitions now; from which offsets? An empty set: another member has them all.

        Cancelled, and asked anew, where the group rebalances again meanwhile.
        """
        ...

    async def revoked(self) -> None:
        """This worker reads nothing until it is assigned again."""
        ...

    def durable(self) -> Mapping[TP, int]:
        """The offsets in the mirror; Kafka's committed ones follow them, for lag tools only."""
        ...

    def gone(self, offsets: Mapping[TP, int]) -> None:
        """Kafka has no longer what was asked for; nothing more is read."""
        ...


def now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Batch:
    """Consecutive records of one partition, `(offset, key, value)` each; `stale()` when a rebalance came in between.

    `runs` has them by source log, each with its label (pipeline/engine/sourcelog.py).
    """

    __slots__ = ("_consumer", "_sitting", "runs", "tp")

    def __init__(self, consumer: BatchConsumer, tp: TP, records: Sequence[Any]) -> None:
        self._consumer, self._sitting = consumer, consumer.sitting
        self.tp = tp
        headers = [r.headers for r in records]
        # mostly they are all the same, which C finds out faster than each one's label
        one = headers.count(headers[0]) == len(headers)
        found = [(_label(records[0]), records)] if one else groupby(records, _label)
        self.runs = [(of, [(r.offset, r.key, r.value) for r in run]) for of, run in found]

    @property
    def records(self) -> list[tuple[int, bytes | None, bytes | None]]:
        return [record for _, run in self.runs for record in run]

    @property
    def partition(self) -> str:
        """`topic/number`."""
        return f"{self.tp.topic}/{self.tp.partition}"

    def stale(self) -> bool:
        return self._consumer.sitting != self._sitting


def _label(record: Any) -> str:
    for key, value in record.headers:
        if key == HEADER:
            return str(value, errors="replace")
    return ""


class _BatchSchema(faust.Schema):  # type: ignore[misc]
    """No decoding: the batch goes through as it is."""

    def compile(self, app: Any, **_: Any) -> Any:
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return create_event(None, message.value, message.headers, message)

        return decode


def _as_it_came(data: bytes | None) -> bytes | None:
    """The key deserializer that marks our consumers; never called."""
    return data


_whole_record = fetcher.PartitionRecords._consumer_record


def _record(self: Any, tp: Any, record: Any) -> Any:
    """The parsed record itself for our consumers: aiokafka's own has eleven fields, and costs more than parsing it."""
    return record if self._key_deserializer is _as_it_came else _whole_record(self, tp, record)


fetcher.PartitionRecords._consumer_record = _record


class _Thread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def _create_worker_consumer(self, transport: Any) -> Any:
        stock = driver.RoundRobinPartitionAssignor
        driver.RoundRobinPartitionAssignor = self.consumer.app.assigns
        try:
            consumer = super()._create_worker_consumer(transport)
        finally:
            driver.RoundRobinPartitionAssignor = stock
        # an aborted transaction of a foreign producer is no change
        consumer._isolation_level = "read_committed"
        consumer._key_deserializer = _as_it_came
        return consumer

    async def on_start(self) -> None:
        await super().on_start()
        coordinator = self._ensure_consumer()._coordinator
        send, put_out = coordinator._send_req, coordinator.reset_generation

        def no_longer_a_member() -> None:
            put_out()
            OldestTakesAll.member_since = time.time_ns()

        async def sent(request: Any) -> Any:
            asked = now()
            answer = await send(request)
            if isinstance(request, SyncGroupRequest | HeartbeatRequest) and answer.error_code in _STILL_A_MEMBER:
                self.consumer.heard = asked
            return answer

        coordinator._send_req, coordinator.reset_generation = sent, no_longer_a_member
        _fetch_without_stalls(self._ensure_consumer()._fetcher)


def _fetch_without_stalls(fetcher: Any) -> None:
    """A request leaves out what is still to be taken, and a broker has one at a time: such a one must not wait long.

    Stock waits with it for data of the idle partitions, up to a second and a half, while the busy ones stand still.
    """
    actions, patience = fetcher._get_actions_per_node, fetcher._fetch_max_wait_ms

    def chosen(assignment: Any) -> Any:
        fetcher._fetch_max_wait_ms = SHORT_WAIT_MS if fetcher._records else patience
        return actions(assignment)

    fetcher._get_actions_per_node = chosen


_STILL_A_MEMBER = (0, RebalanceInProgressError.errno)


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Delivers whole polls; acknowledges nothing, for the mirror holds the offsets."""

    sitting = 0
    """Counts the times that reading began anew or ended: what was read before is read again."""
    heard = -math.inf
    """When the newest heartbeat that the group answered was sent, by `now()`."""
    _asked: dict[TP, int]
    """Where this sitting begins."""
    _begun: set[TP]
    """The partitions of which this sitting has had its first poll."""

    def _new_consumer_thread(self) -> Any:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _positions(self) -> Positions:
        positions: Positions = self.app.positions
        return positions

    # ---- positions ----------------------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Called by Faust once the partitions are assigned: go to where the mirror stands.

        aiokafka fetches from Kafka's committed offsets until then; nothing of that is taken.
        """
        self._unacked_messages.clear()
        self._take_nothing()
        offsets = await self._positions.assigned({ensure_TP(tp) for tp in self.assignment()})
        self._asked.update(offsets)
        for tp, offset in offsets.items():
            await self._seek(tp, offset)
        self._begun = set[TP]()
        self._read_offset.update(offsets)
        self.sitting += 1

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await super().on_partitions_assigned(assigned, generation_id)
        if not assigned:  # Faust seeks only where there is something to seek
            await self._positions.assigned(())

    def _take_nothing(self) -> None:
        """What was read is read again, and what comes from now on is dropped until positions are set."""
        self.sitting += 1
        self._read_offset.clear()
        self._asked = dict[TP, int]()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self._take_nothing()
        await self._positions.revoked()
        await super().on_partitions_revoked(revoked)

    async def wait_empty(self) -> None:
        """Nothing to wait for: what is not in the mirror is read again."""
        self._unacked_messages.clear()
        await self.commit()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        mine = self.assignment()
        offsets = {tp: offset for tp, offset in self._positions.durable().items() if tp in mine and offset > 0}
        return bool(await self._commit(offsets)) if offsets else False

    # ---- delivery -----------------------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        stopped, fetcher_stopped = self._stopped.is_set, fetcher._stopped.is_set
        try:
            while not (stopped() or fetcher_stopped()):
                sitting = self.sitting
                records, active = await self._wait_next_records(1.0)
                if self.should_stop:
                    return
                if not records:
                    await asyncio.sleep(0)
                    continue
                for assigned, polled in records.items():
                    tp = ensure_TP(assigned)
                    # aiokafka is past it, and may have been set to our offset before it gave this
                    if not self.flow_active or self.sitting != sitting:
                        await self._set_position(tp)
                    elif active is None or tp in active or tp in self._buffered_partitions:
                        await self._deliver(tp, polled)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise

    async def _deliver(self, tp: TP, polled: Sequence[Any]) -> None:
        wanted = self._read_offset[tp]
        if wanted is None:
            return
        if polled[0].offset < wanted:
            polled = [r for r in polled if r.offset >= wanted]
            if not polled:
                return
        if tp not in self._begun:
            self._begun.add(tp)
            if polled[0].offset > wanted:
                # markers and compaction leave holes; but a fetch that was under way at the assignment must leave none
                log.warning("%s/%d: %d came where %d was asked for: asked again", *tp, polled[0].offset, wanted)
                await self._seek(tp, wanted)
                return
        last = polled[-1]
        message = ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000.0, last.timestamp_type, (), None,
            Batch(self, tp, polled), None, 0, 0, tp, generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        await self.wait_first(self.callback(message), self.suspend_flow.wait())
        self._read_offset[tp] = last.offset + 1

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's signature
        """Stock sleeps a second when every partition has enough buffered; here room is waited for."""
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        try:
            self.not_waiting_next_records.set()
            active = self._get_active_partitions()
            if active:
                wait = 0.02 if self._buffered_partitions else timeout
                return await self._getmany(active_partitions=active, timeout=wait), active
            await asyncio.sleep(0.01)
            return {}, active
        except NoOffsetForPartitionError as error:  # it looked for a committed offset before ours was set
            await self._set_position(ensure_TP(error.args[0]))
            return {}, active
        except OffsetOutOfRangeError as error:
            self._positions.gone({ensure_TP(tp): offset for tp, offset in error.args[0].items()})
            return {}, active
        finally:
            self.not_waiting_next_records.set()

    async def _set_position(self, tp: TP) -> None:
        """Ask from our offset on, if there is one; else the assignment does."""
        wanted = self._read_offset[tp]
        wanted = self._asked.get(tp) if wanted is None else wanted
        if wanted is not None:
            await self._seek(tp, wanted)

    async def _seek(self, partition: TP, offset: int) -> None:
        """Stock changes the fetcher's records from another thread than the one that reads them (a KeyError there)."""
        try:
            await self._thread.call_thread(self._thread.seek, partition, offset)
        except IllegalStateError:  # the next rebalance has begun: it asks again
            log.info("%s/%d is no longer assigned", *partition)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Stock warns of a livelock where commits stand still; here an idle topic commits nothing, rightly."""


class _Patient(Recovery):  # type: ignore[misc]
    """Waits for positions as long as they take: stock takes a minute of it for its own end, and reads nothing any more."""

    async def _wait(self, coro: Any, **_: Any) -> None:
        await super()._wait(coro)


class NoTables(TableManager):  # type: ignore[misc]
    """Begins at once: stock waits a second for tables to be added, and there are none."""

    _recovery: Recovery | None = None

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = _Patient(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        await self._update_channels()
        await self.recovery.start()


class Transport(driver.Transport):  # type: ignore[misc]
    """Faust's aiokafka transport with whole-poll delivery."""

    Consumer = BatchConsumer


def install(app: faust.App, positions: Positions, assigns: type[RoundRobinPartitionAssignor] = OldestTakesAll) -> None:
    """Give the app whole-poll delivery; before its first agent. `assigns` says which member reads what."""
    app.positions, app.assigns = positions, assigns
    app.transport = Transport(app.conf.broker_consumer, app)


def batch_topic(app: faust.App, names: Sequence[str]) -> Any:
    """The topics as one stream of batches."""
    schema = _BatchSchema(
        key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", allow_empty=True
    )
    return app.topic(*names, schema=schema)
