"""The gate: changes of a source transaction wait until all of it is here, and are released in commit order.

Each partition is a queue, first in first out. What may go is taken from the queues' heads, so the offset of a queue's
head is where a restart has to read on; nothing that waits has to be stored, but for what spills (see Engine).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pipeline.events.envelope import Boundary, Event

REMEMBERED: Final = 50_000
"""Released transactions remembered by id, to know a repeat when it comes."""


@dataclass(slots=True)
class End:
    """A transaction's END: how many events it has in our tables, and where it was committed."""

    txid: str
    lsn: int
    expected: int
    ts_ms: int
    offset: int
    connector: str = ""


@dataclass(slots=True)
class Partition:
    """One input partition: what waits, and where its reading stands."""

    next: int = 0
    waiting: deque[Event] = field(default_factory=deque)
    open: dict[str, int] = field(default_factory=dict)
    """The last order seen here of each transaction that is not released: an order not above it is a repeat."""
    txid: str | None = None
    order: int = 0
    known: bool = False
    """`txid` was released before: its events are repeats."""

    @property
    def checkpoint(self) -> int:
        """The offset a restart has to read from."""
        return self.waiting[0].offset if self.waiting else self.next


@dataclass(slots=True)
class Released:
    """What may be applied now, in order."""

    events: list[tuple[str, Event]] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    incomplete: int = 0
    repeated: int = 0


class Gate:
    """Holds what is not whole. `by_row`: nothing waits, but transactions are still counted (bulk catch-up, row mode)."""

    def __init__(self, tables: Iterable[str], *, by_row: bool = False) -> None:
        self.tables: Final = frozenset(tables)
        self.by_row = by_row
        self.partitions: dict[str, Partition] = {}
        self.counts: dict[str, int] = {}
        """Events seen of each transaction that is not released, waiting or applied."""
        self.applied: dict[str, int] = {}
        """Of these, the ones already applied (by row); they are in the mirror, so a checkpoint stores the count."""
        self.ends: deque[End] = deque()
        self.released_lsn = 0
        self.boundary_next = 0
        self.staged = 0
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._repeated = 0

    # ---- in -----------------------------------------------------------------------------------------------

    def restore(self, offsets: Mapping[str, int], boundary: int, applied: Mapping[str, int], lsn: int) -> None:
        """Go on from a checkpoint."""
        for name, offset in offsets.items():
            self.partition(name).next = offset
        self.boundary_next, self.released_lsn = boundary, lsn
        self.applied, self.counts = dict(applied), dict(applied)

    def partition(self, name: str) -> Partition:
        found = self.partitions.get(name)
        if found is None:
            found = self.partitions[name] = Partition()
        return found

    def add(self, name: str, events: Iterable[Event], next_offset: int) -> None:
        """Events of one partition in their order; what is a repeat within it is dropped."""
        at = self.partition(name)
        waiting, counts, n = at.waiting, self.counts, 0
        for event in events:
            block = event.transaction
            if block is not None:
                txid = block.id.partition(":")[0]
                if txid != at.txid:
                    at.txid, at.order = txid, at.open.get(txid, 0)
                    at.known = txid in self._recent
                if at.known or block.total_order <= at.order:
                    self._repeated += 1
                    continue
                at.order = block.total_order
                at.open[txid] = at.order
                counts[txid] = counts.get(txid, 0) + 1
            waiting.append(event)
            n += 1
        at.next = next_offset
        self.staged += n

    def add_boundary(self, boundary: Boundary, offset: int, connector: str = "") -> None:
        """A BEGIN (which says nothing we need) or an END."""
        self.boundary_next = offset + 1
        if boundary.status != "END":
            return
        expected = sum(c.event_count for c in boundary.data_collections or () if self._ours(c.data_collection))
        self.ends.append(End(boundary.txid, boundary.lsn, expected, boundary.ts_ms, offset, connector))

    def _ours(self, collection: str) -> bool:
        return collection in self.tables or ".".join(collection.split(".")[-2:]) in self.tables

    # ---- out ----------------------------------------------------------------------------------------------

    def release(self, limit: int | None = None) -> Released:
        """All that may be applied now; `limit` bounds the events, but a transaction is never cut."""
        out = Released(repeated=self._repeated)
        self._repeated = 0
        if self.by_row:
            self._release_rows(out)
        whole = self._whole(limit)
        for end in whole:
            self._settle(end, out)
        if not self.by_row:
            self._take(out, {end.txid for end in whole})
        return out

    def _whole(self, limit: int | None) -> list[End]:
        """The ENDs at the head whose events are all here."""
        found: list[End] = []
        events = 0
        while self.ends:
            end = self.ends[0]
            if end.lsn > self.released_lsn or end.txid in self.applied:
                if self.counts.get(end.txid, 0) < end.expected or (limit and events >= limit):
                    break
                events += end.expected
                found.append(end)
                self.released_lsn = max(self.released_lsn, end.lsn)
            else:
                self.drop(end.txid)
            self.ends.popleft()
        return found

    def _settle(self, end: End, out: Released) -> None:
        self.counts.pop(end.txid, None)
        self.applied.pop(end.txid, None)
        self._recent[end.txid] = end.lsn
        if len(self._recent) > REMEMBERED:
            self._recent.popitem(last=False)
        for at in self.partitions.values():
            at.open.pop(end.txid, None)
            if at.txid == end.txid:
                at.known = True
        out.ends.append(end)

    def _release_rows(self, out: Released) -> None:
        for name, at in self.partitions.items():
            for event in at.waiting:
                out.events.append((name, event))
                if event.transaction is not None:
                    txid = event.transaction.id.partition(":")[0]
                    self.applied[txid] = self.applied.get(txid, 0) + 1
            at.waiting.clear()
        self.staged = 0

    def _take(self, out: Released, txids: set[str]) -> None:
        """The released transactions' events, and what has no transaction and nothing before it that waits."""
        before = len(out.events)
        behind = False
        for name, at in self.partitions.items():
            waiting = at.waiting
            while waiting:
                block = waiting[0].transaction
                if block is not None and block.id.partition(":")[0] not in txids:
                    behind = behind or (len(txids) > 0 and len(waiting) > 1)
                    break
                out.events.append((name, waiting.popleft()))
        self.staged -= len(out.events) - before
        if behind and len(out.events) - before < sum(end.expected for end in out.ends):
            self._take_from_behind(out, txids)

    def _take_from_behind(self, out: Released, txids: set[str]) -> None:
        """A released transaction's event stands behind one that waits (a connector died in the middle of it)."""
        for name, at in self.partitions.items():
            kept: deque[Event] = deque()
            for event in at.waiting:
                block = event.transaction
                if block is not None and block.id.partition(":")[0] in txids:
                    out.events.append((name, event))
                    self.staged -= 1
                else:
                    kept.append(event)
            at.waiting = kept

    def drop(self, txid: str) -> None:
        """A repeat of a released transaction: what waits of it goes."""
        if not self.counts.pop(txid, 0):
            return
        for at in self.partitions.values():
            at.open.pop(txid, None)
            at.txid = None if at.txid == txid else at.txid
            kept = deque(e for e in at.waiting if e.transaction is None or e.transaction.id.partition(":")[0] != txid)
            self._repeated += len(at.waiting) - len(kept)
            self.staged -= len(at.waiting) - len(kept)
            at.waiting = kept

    # ---- what does not complete ---------------------------------------------------------------------------

    def overdue(self) -> str | None:
        """The transaction that holds up all others: the first END's, or else the one at the head of a queue."""
        if self.ends:
            return self.ends[0].txid
        for at in self.partitions.values():
            if at.waiting and (block := at.waiting[0].transaction) is not None:
                return block.id.partition(":")[0]
        return None

    def give_up(self, txid: str) -> Released:
        """Release a transaction that does not complete, as far as it is here."""
        out = Released(incomplete=1)
        if self.ends and self.ends[0].txid == txid:
            end = self.ends.popleft()
            self.released_lsn = max(self.released_lsn, end.lsn)
            self._settle(end, out)
        else:
            self.counts.pop(txid, None)
            self.applied.pop(txid, None)
            for at in self.partitions.values():
                at.open.pop(txid, None)
        self._take(out, {txid})
        self._take_from_behind(out, {txid})
        return out

    @property
    def straddling(self) -> bool:
        """Some transaction is in the mirror in part: no document may be written from it."""
        return bool(self.applied)

    def spill(self, name: str, take: Callable[[Event], None]) -> None:
        """Hand all that waits in one partition to the mirror's `staged` table."""
        at = self.partitions[name]
        for event in at.waiting:
            take(event)
        self.staged -= len(at.waiting)
        at.waiting.clear()
