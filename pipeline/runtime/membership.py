"""A worker's membership in its consumer group: what it reads, from where, and whether it may still write."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

import faust
from faust.types import TP

from pipeline.engine.engine import Engine
from pipeline.errors import Fenced, LogTruncated
from pipeline.metadata import topic_ids
from pipeline.runtime.assignors import OldestTakesAll
from pipeline.runtime.batches import now

log = logging.getLogger("cdc.membership")
CATCH_UP_LAG: Final = 5000
"""Records behind at the start from which on documents wait until the worker has caught up."""


class Membership:
    """All partitions, or none. Implements `batches.Positions`.

    The engine outlives a rebalance that leaves the partitions here: reading goes on where it stood. A worker that loses
    them ends, for nobody knows what another mirror writes from then on; restarted, it stands by.
    """

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        in_engine: Callable[..., Awaitable[Any]],
        silence: float,
        stopping: asyncio.Event,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._name, self._engine, self._in_engine = name, engine, in_engine
        self._silence, self._stopping, self._fatal = silence, stopping, fatal
        self.app: faust.App
        self.partitions: set[TP] = set()
        self.standby = ""
        self.reading_since = 0.0, 0.0
        """When the partitions came (time.time()), and the CPU seconds used by then."""
        self._was_reader = False

    # ---- what the transport asks --------------------------------------------------------------------------

    async def assigned(self, partitions: Iterable[TP]) -> Mapping[TP, int]:
        """Where to read from; nothing for a worker that stands by."""
        try:
            return await self._assigned({TP(tp.topic, tp.partition) for tp in partitions})
        except Exception as error:  # a cancellation goes on: Faust assigns again
            if self._stopping.is_set():
                return {}
            self._fatal(error)
            raise

    async def _assigned(self, partitions: set[TP]) -> Mapping[TP, int]:
        if not partitions:
            if self._was_reader:
                raise Fenced(f"{self._name}: another member of the group reads the topics now: this worker stops.")
            self.standby = f"worker {OldestTakesAll.reader} reads the topics"
            log.warning("%s: %s; standing by", self._name, self.standby)
            return {}
        self.standby = ""
        consumer = self.app.consumer
        earliest = await consumer.earliest_offsets(*partitions)
        ends = await consumer.highwaters(*partitions)
        starts: dict[TP, int] = await self._in_engine(self._starts, partitions)
        for tp, start in starts.items():
            self._check(tp, start, earliest.get(tp) or 0, ends.get(tp) or 0)
        await self._check_topics(starts)
        await self._perhaps_catch_up({f"{tp.topic}/{tp.partition}": int(n or 0) for tp, n in ends.items()}, starts)
        self._was_reader, self.partitions = True, partitions
        self.reading_since = time.time(), round(time.process_time(), 3)
        log.info("%s: reads %d partitions", self._name, len(partitions))
        return starts

    def _starts(self, partitions: set[TP]) -> dict[TP, int]:
        return {tp: self._engine.next_offset(f"{tp.topic}/{tp.partition}") for tp in partitions}

    async def _perhaps_catch_up(self, cut: dict[str, int], starts: Mapping[TP, int]) -> None:
        behind, engine = sum(cut.values()) - sum(starts.values()), self._engine
        unloaded = not engine.loaded and (behind > 0 or any(starts.values()))
        if engine.wants_cut or (not self._was_reader and (behind > CATCH_UP_LAG or unloaded)):
            log.info("%s: %d records behind: catching up", self._name, behind)
            await self._in_engine(engine.catch_up, cut)

    async def ends(self) -> dict[str, int]:
        """Where the log of each partition ends now."""
        found = await self.app.consumer.highwaters(*self.partitions)
        return {f"{tp.topic}/{tp.partition}": int(end or 0) for tp, end in found.items()}

    async def revoked(self) -> None:
        self.partitions = set()

    def durable(self) -> Mapping[TP, int]:
        return {tp: self._engine.durable.get(f"{tp.topic}/{tp.partition}", 0) for tp in self.partitions}

    def gone(self, offsets: Mapping[TP, int]) -> None:
        """While it was reading: a topic was made anew, or its retention is shorter than the way through it."""
        tp, offset = next(iter(offsets.items()))
        self._fatal(
            LogTruncated(
                f"{self._name}: Kafka no longer has offset {offset} of {tp.topic}/{tp.partition}, which comes next: "
                f"changes are missing. Rebuild it (cdc rebuild), or restore the mirror."
            )
        )

    # ---- never a silent gap -------------------------------------------------------------------------------

    def _check(self, tp: TP, start: int, earliest: int, end: int) -> None:
        where = f"{tp.topic}/{tp.partition}"
        if start < earliest:
            raise LogTruncated(
                f"{self._name}: the mirror goes on at {start} in {where}, but Kafka's log starts at {earliest}: "
                f"changes are missing. Rebuild it (cdc rebuild), or restore the mirror."
            )
        if start > end:
            raise LogTruncated(
                f"{self._name}: the mirror stands at {start} in {where}, but Kafka's log ends at {end}: "
                f"the topic was made anew. Rebuild it (cdc rebuild)."
            )

    async def _check_topics(self, starts: Mapping[TP, int]) -> None:
        """A topic that was made anew may be longer by now than the mirror's offset in the old one."""
        thread = self.app.consumer._thread
        client = thread._ensure_consumer()._client
        found: dict[str, str] = await thread.call_thread(topic_ids, client, sorted({tp.topic for tp in starts}))
        known: dict[str, str] = await self._in_engine(self._known_topics)
        for tp, start in starts.items():
            if start and known.get(tp.topic, found.get(tp.topic)) != found.get(tp.topic):
                raise LogTruncated(
                    f"{self._name}: the topic {tp.topic} was made anew: what the mirror has read of it was in another. "
                    f"Rebuild it (cdc rebuild)."
                )
        if found != known:
            await self._in_engine(self._remember_topics, known | found)

    def _known_topics(self) -> dict[str, str]:
        return dict(json.loads(self._engine.mirror.get("topics") or "{}"))

    def _remember_topics(self, ids: Mapping[str, str]) -> None:
        with self._engine.mirror.checkpoint():
            self._engine.mirror.set("topics", json.dumps(ids))

    # ---- what others ask ----------------------------------------------------------------------------------

    def may_write(self) -> bool:
        """Not once the group may have given the partitions away before a request is through."""
        return bool(self.partitions) and self.silent_for() <= self._silence

    def silent_for(self) -> float:
        """Seconds since the group last said that this worker is a member."""
        return now() - float(self.app.consumer.heard)

    def complaint(self) -> str | None:
        """What `cdc status` should say of it."""
        if not self.partitions or self.may_write():
            return None
        return f"Kafka's group has not answered for {self.silent_for():.0f} s: no document is written until it does"

    def at_the_end(self) -> bool:
        """Everything that Kafka has was read, so waiting longer brings nothing."""
        return all(
            self._engine.next_offset(f"{tp.topic}/{tp.partition}") >= (self.app.consumer.highwater(tp) or 0)
            for tp in self.partitions
        )
