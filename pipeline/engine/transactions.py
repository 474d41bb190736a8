"""The gate: changes of a source transaction wait until all of it is here, and are released in commit order.

Each partition is a queue, first in first out. What may go is taken from the queues' heads, so the offset of a queue's
head is where a restart has to read on; nothing that waits has to be stored, but for what spills (see staging.py).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from pipeline.engine.open import Begun, End, Open, Released, begun_after, counted_on
from pipeline.engine.sourcelog import bare, in_log
from pipeline.events.envelope import Boundary, Event, commit_order

REMEMBERED: Final = 50_000
"""Released transactions remembered by id, to know a repeat when it comes; older ones are known by commit order."""
GIVEN_UP: Final = 1_000
"""Transactions given up whose late events are still let through."""


@dataclass(slots=True)
class Partition:
    """One input partition: what waits, and where its reading stands."""

    next: int = 0
    waiting: deque[Event] = field(default_factory=deque)
    txid: str | None = None
    order: int = 0
    current: Open | None = None
    """The transaction `txid`; None says that it was released before and its events are repeats."""
    spilled: set[str] = field(default_factory=set)
    """Transactions with staged rows of this partition: a row without a transaction waits for them."""

    @property
    def checkpoint(self) -> int:
        """The offset a restart has to read from."""
        return self.waiting[0].offset if self.waiting else self.next


class Gate:
    """Holds what is not whole. `by_row`: nothing waits, but transactions are still counted (bulk catch-up, row mode).

    `keep_repeats` lets repeated events through, uncounted: in row mode the mirror's rows judge them, for there a Kafka
    tombstone is a delete, and what it took away wrongly comes back with the repeats after it. Not `counted`: no ENDs come.
    """

    def __init__(
        self, tables: Iterable[str], *, by_row: bool = False, keep_repeats: bool = False, counted: bool = True
    ) -> None:
        self.tables, self.counted = frozenset(tables), counted
        self.by_row, self.keep_repeats = by_row, keep_repeats
        self.partitions: dict[str, Partition] = {}
        self.opens: dict[str, Open] = {}
        self.partial: set[str] = set()
        """The open transactions that are in the mirror in part."""
        self.ends: deque[End] = deque()
        self._since: dict[str, float] = {}
        """Since when transactions wait for what is missing of them."""
        self.log = 0
        """The source log of the newest END released: no transaction of an older one completes any more."""
        self.forgotten = 0
        """The newest commit in this log no longer remembered by id: what is older is a repeat."""
        self.boundary_next = 0
        self.staged = 0
        self._recent: OrderedDict[str, int] = OrderedDict()
        self._repeated = 0
        self._any_given_up = False
        self.begun: Begun = [], []

    # ---- in -----------------------------------------------------------------------------------------------

    def restore(
        self, offsets: Mapping[str, int], boundary: int, opens: Mapping[str, Open], recent: Iterable[tuple[str, int]]
    ) -> None:
        """Go on from a checkpoint; `recent` has the released transactions and their commits, the oldest first."""
        for name, offset in offsets.items():
            self.partition(name).next = offset
        self.boundary_next, self.opens = boundary, dict(opens)
        self.partial = {txid for txid, known in opens.items() if known.applied and not known.given_up}
        self._any_given_up = any(known.given_up for known in opens.values())
        for txid, lsn in recent:
            self._remember(txid, lsn)

    def partition(self, name: str) -> Partition:
        found = self.partitions.get(name)
        if found is None:
            found = self.partitions[name] = Partition()
        return found

    def add(self, name: str, events: Iterable[Event], next_offset: int) -> None:
        """Events of one partition in their order; what is a repeat within it is dropped."""
        at = self.partition(name)
        waiting, before = at.waiting, len(at.waiting)
        for event in events:
            block = event.transaction
            of_gtid = event.source.gtid is not None
            if block is not None and not self.counted:
                block.total_order = event.offset if of_gtid else block.total_order  # an offset is never counted anew
            elif block is not None:
                if block.id != at.txid:
                    self._turn(at, name, block.id, event)
                if of_gtid:
                    block.total_order = counted_on(at.order, block.total_order)
                current, order = at.current, block.total_order
                if current is None or (
                    (order <= at.order or event.op == "t") and self._is_repeat(current, event, order)
                ):
                    self._repeated += 1
                    if not self.keep_repeats:
                        continue
                else:
                    at.order = max(order, at.order)
                    current.seen += 1
            waiting.append(event)
        if at.current is not None:
            at.current.last[name] = at.order
        at.next = next_offset
        self.staged += len(waiting) - before

    def _turn(self, at: Partition, name: str, txid: str, event: Event) -> None:
        """The next transaction's first event in this partition."""
        if at.current is not None:
            at.current.last[name] = at.order
        at.txid, at.current = txid, self.opens.get(txid)
        if at.current is None:
            commit = commit_order(event.source) or event.source.lsn or 0
            if not self._released(txid, commit, event.log):
                at.current = self.opens[txid] = Open(commit=commit, log=event.log)
        at.order = at.current.last.get(name, 0) if at.current is not None else 0

    @staticmethod
    def _is_repeat(current: Open, event: Event, order: int) -> bool:
        if event.op != "t" or order in current.truncates:
            return True
        current.truncates.add(order)
        return False

    def _released(self, txid: str, commit: int, log: int) -> bool:
        """Whether the transaction was released before; `commit` is not after its commit.

        That is the commit before it, or for the first one of a connector, which has none, where it was written.
        """
        return log < self.log or txid in self._recent or (log == self.log and 0 < commit < self.forgotten)

    def _ended(self, txid: str, lsn: int, log: int) -> bool:
        """Whether the transaction with this END was released before."""
        return log < self.log or txid in self._recent or (log == self.log and lsn <= self.forgotten)

    def add_boundary(self, boundary: Boundary, offset: int, connector: str = "", log: int = 0) -> None:
        """A BEGIN or an END."""
        self.boundary_next = offset + 1
        if boundary.has_gtid:
            self.begun = begun_after(self.begun, boundary)
        if boundary.status != "END":
            return
        expected = sum(c.event_count for c in boundary.data_collections or () if self._ours(c.data_collection))
        txid = in_log(boundary.txid, log)
        self.ends.append(End(txid, boundary.lsn, expected, boundary.ts_ms, offset, connector, log))

    def _ours(self, collection: str) -> bool:
        return collection in self.tables or ".".join(collection.split(".")[-2:]) in self.tables

    # ---- out ----------------------------------------------------------------------------------------------

    def release(self, limit: int | None = None) -> Released:
        """All that may be applied now; `limit` bounds the events, but a transaction is never cut."""
        out = Released()
        if self.by_row:
            self._release_rows(out)
        self._whole(limit, out)
        if self._any_given_up:
            out.going.update(txid for txid, known in self.opens.items() if known.given_up)
        if not self.by_row:
            self._take(out)
        for end in out.ends:
            if not (out.torn and end.txid in self.opens and self.opens[end.txid].given_up):
                self._close(end.txid)
        self._close_given_up()
        out.repeated, self._repeated = self._repeated, 0
        return out

    def _whole(self, limit: int | None, out: Released) -> None:
        """The ENDs at the head whose events are all here."""
        events = 0
        while self.ends:
            end = self.ends[0]
            if end.log > self.log:
                self.begin_log(end.log, out)
            if self._ended(end.txid, end.lsn, end.log):
                self._drop(end.txid, out)
                self._repeated += 1
            else:
                known = self.opens.get(end.txid)
                if (known.seen if known else 0) < end.expected or (limit and events >= limit):
                    break
                events += end.expected
                if bare(end.txid) in self.begun[1]:
                    self._torn(end, out)
                elif known is not None and known.again:
                    # what is sent once more may stand for what is missing: both are here by its next END, and a cut
                    if not any(later.txid == end.txid for later in islice(self.ends, 1, None)):
                        break
                    self._torn(end, out)
                out.ends.append(end)
                out.going.add(end.txid)
                self._remember(end.txid, end.lsn)
            self.ends.popleft()

    def _torn(self, end: End, out: Released) -> None:
        """It goes as far as it is here, and what comes later of it is let through."""
        begun, torn = self.begun
        self.begun = begun, [other for other in torn if other != bare(end.txid)]
        self.opens.setdefault(end.txid, Open(commit=end.lsn, log=end.log)).given_up = True
        self.partial.discard(end.txid)
        out.torn = self._any_given_up = True

    def begin_log(self, log: int, out: Released) -> None:
        """The source goes on in a new log: what has no END by now gets none, and positions begin anew."""
        for txid in [txid for txid, known in self.opens.items() if known.log < log and txid not in out.going]:
            self._drop(txid, out)
            self._close(txid)
        self.log, self.forgotten = log, 0
        self._recent.clear()

    def _remember(self, txid: str, lsn: int) -> None:
        self._recent[txid] = lsn
        if len(self._recent) > REMEMBERED:
            self.forgotten = max(self.forgotten, self._recent.popitem(last=False)[1])

    def _close(self, txid: str) -> None:
        self.opens.pop(txid, None)
        self.partial.discard(txid)
        for at in self.partitions.values():
            at.spilled.discard(txid)
            if at.txid == txid:
                at.current = None

    def _release_rows(self, out: Released) -> None:
        for name, at in self.partitions.items():
            out.events += [(name, event) for event in at.waiting]
            out.all_staged = out.all_staged or bool(at.spilled)
            at.waiting.clear()
            at.spilled.clear()
        self.staged = 0
        for txid, known in self.opens.items():
            if known.seen > known.applied:
                known.apply_all()
                if not known.given_up:
                    self.partial.add(txid)

    def _take(self, out: Released) -> None:
        """The released transactions' events, and what has no transaction and nothing before it that waits."""
        going, taken, transactional = out.going, 0, 0
        for name, at in self.partitions.items():
            waiting = at.waiting
            if at.spilled:
                at.spilled -= going
            while waiting:
                block = waiting[0].transaction
                if block is None:
                    if at.spilled:
                        break
                elif block.id in going:
                    transactional += 1
                else:
                    break
                out.events.append((name, waiting.popleft()))
                taken += 1
        self.staged -= taken
        if transactional < sum(known.waiting for txid in going if (known := self.opens.get(txid)) is not None):
            self._take_from_behind(out)
        for txid in going:
            known = self.opens.get(txid)
            if known is not None:
                known.apply_all()

    def _take_from_behind(self, out: Released) -> None:
        """A released transaction's event stands behind one that waits (a connector died in the middle of it)."""
        for name, at in self.partitions.items():
            kept: deque[Event] = deque()
            for event in at.waiting:
                block = event.transaction
                if block is not None and block.id in out.going:
                    out.events.append((name, event))
                else:
                    kept.append(event)
            self.staged -= len(at.waiting) - len(kept)
            at.waiting = kept

    def all_here(self) -> None:
        """A cut is reached: nothing more comes of what was torn and released, and what is sent of it is a repeat."""
        for txid in [t for t, known in self.opens.items() if known.given_up and known.expected is None]:
            if txid in self._recent:
                self._close(txid)

    def _drop(self, txid: str, out: Released) -> None:
        """A repeated END: what waits of its transaction, not known as a repeat until now, goes."""
        known = self.opens.get(txid)
        if known is None or known.given_up or txid in out.going:
            return
        out.dropped.add(txid)
        for at in self.partitions.values():
            kept = deque(e for e in at.waiting if e.transaction is None or e.transaction.id != txid)
            self._repeated += len(at.waiting) - len(kept)
            self.staged -= len(at.waiting) - len(kept)
            at.waiting = kept
        self._close(txid)

    # ---- what does not complete ---------------------------------------------------------------------------

    def overdue(self, now: float, after: float) -> str | None:
        """The transaction that holds up the others and did not complete in `after` seconds; asked again and again.

        All that wait have their time at once, so a row of them that never completes is no row of waits.
        """
        waiting = self.waiting()
        self._since = {txid: self._since.get(txid, now) for txid in waiting}
        return waiting[0] if waiting and now - self._since[waiting[0]] > after else None

    def waiting(self) -> list[str]:
        """The transactions that hold up others or the documents: those with an END, or the oldest that has none yet."""
        if self.ends:
            return [end.txid for end in self.ends]
        stuck = set(self.partial)
        for at in self.partitions.values():
            stuck.update(at.spilled)
            if at.waiting and (block := at.waiting[0].transaction) is not None:
                stuck.add(block.id)
        stuck &= self.opens.keys()
        return sorted(stuck, key=lambda txid: (self.opens[txid].log, self.opens[txid].commit, txid))[:1]

    def give_up(self, txid: str) -> Released:
        """Release a transaction that does not complete, as far as it is here; what comes late of it is let through."""
        end = self.ends[0] if self.ends and self.ends[0].txid == txid else None
        known = self.opens.get(txid)
        log, lsn = (end.log, end.lsn) if end is not None else (known.log if known is not None else 0, 1 << 62)
        if (end is not None and log > self.log) or self._ended(txid, lsn, log):
            return self.release()
        out = Released(incomplete=1)
        known = self.opens.setdefault(txid, Open(log=log))
        known.given_up = True
        for at in self.partitions.values():
            if at.txid == txid:
                at.current = known
        self._any_given_up = True
        self.partial.discard(txid)
        if end is not None:
            self.ends.popleft()
            known.expected = end.expected
            self._remember(txid, end.lsn)
            out.ends.append(end)
        out.going = {txid}
        if self.by_row:
            self._release_rows(out)
        else:
            self._take(out)
        self._close_given_up()
        return out

    def _close_given_up(self) -> None:
        if not self._any_given_up:
            return
        late = {txid: known for txid, known in self.opens.items() if known.given_up}
        done = [t for t, k in late.items() if k.expected is not None and k.applied >= k.expected]
        for txid in (*done, *list(late)[: max(0, len(late) - GIVEN_UP)]):
            self._close(txid)
        self._any_given_up = len(done) < len(late)

    @property
    def straddling(self) -> bool:
        """Some transaction is in the mirror in part: no document may be written from it."""
        return bool(self.partial)

    def spill(self, name: str, take: Callable[[Event], None]) -> None:
        """Hand all that waits in one partition to the mirror's `staged` table."""
        at = self.partitions[name]
        for event in at.waiting:
            take(event)
            if (block := event.transaction) is not None:
                at.spilled.add(block.id)
                if (known := self.opens.get(block.id)) is not None:
                    known.spilled += 1
        self.staged -= len(at.waiting)
        at.waiting.clear()


__all__ = ["End", "Gate", "Open", "Released"]
