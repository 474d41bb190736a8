"""A mirror that was filled with the source's rows as of one moment: what its stream brings from before that is in it."""

from __future__ import annotations

from pipeline.events.envelope import Boundary, Event
from pipeline.events.sourcelog import Moment, SourceLog

_EPOCH = 1 << 32
"""Events have the lower half of a transaction's id."""


class Copied:
    """Tells what is in the rows already."""

    def __init__(self, moment: Moment) -> None:
        self.moment, self.position = moment, moment.position
        first, end, running = moment.snapshot.split(":")
        self._first, self._end = int(first), int(end)
        self._running = frozenset(map(int, filter(None, running.split(","))))
        self._streams: dict[str, bool] = {}
        """By partition whether the event before was left, of those that have had one."""

    @classmethod
    def of(cls, stored: str | None) -> Copied | None:
        """As the mirror's meta has it; None for a mirror that was filled from its stream."""
        return cls(Moment.parsed(stored)) if stored else None

    def left(self, events: list[Event], log: SourceLog) -> list[Event]:
        """Those that are not; most often all of them."""
        if not self._same(log):
            return events
        end = self.position
        return [e for e in events if (e.source.lsn or end) >= end or not self._has(e)]

    def left_by_row(self, partition: str, events: list[Event], log: SourceLog) -> list[Event]:
        """The same of one partition where each tombstone counts: one that says again what is in the rows already, does not."""
        kept = {id(event) for event in self.left(events, log)}
        found, streams = [], self._streams.get(partition, False)
        for event in events:
            if event.op != "d" or event.transaction is not None or event.source.lsn is not None:
                streams = id(event) in kept
            if streams:
                found.append(event)
        self._streams[partition] = streams
        return found

    def has_end(self, boundary: Boundary, log: SourceLog) -> bool:
        """Whether the transaction of this END is."""
        return boundary.lsn <= self.position and self._same(log)

    def _same(self, log: SourceLog) -> bool:
        return log.identity in ("", self.moment.log)

    def _has(self, event: Event) -> bool:
        """A row that a snapshot read is older where its place is; what a transaction wrote, where that was seen."""
        if event.transaction is None or event.source.txId is None:
            return True
        # the newest id of this lower half that is not far above the end
        id = self._end // _EPOCH * _EPOCH + int(event.source.txId)
        if id - self._end > _EPOCH // 2:
            id -= _EPOCH
        elif self._end - id > _EPOCH // 2:
            id += _EPOCH
        return id < self._first or (id < self._end and id not in self._running)
