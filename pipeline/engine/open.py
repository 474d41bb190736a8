"""What the gate knows of one transaction, and what it lets go."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final

from pipeline.events.envelope import Boundary, Event
from pipeline.events.sourcelog import position_of

PASS: Final = 1 << 40
"""More events than a transaction has."""


@dataclass(slots=True)
class End:
    """A transaction's END: how many events it has in our tables, and where it was committed."""

    txid: str
    lsn: int
    expected: int
    ts_ms: int
    offset: int
    connector: str = ""
    log: int = 0


@dataclass(slots=True)
class Open:
    """A transaction that is not released: how many of its events came, and how far they got."""

    seen: int = 0
    applied: int = 0
    """Of these in the mirror (by row, or given up)."""
    spilled: int = 0
    """Of these in the mirror's `staged` table."""
    last: dict[str, int] = field(default_factory=dict)
    """The last order seen in each partition: one not above it is a repeat."""
    truncates: set[int] = field(default_factory=set)
    """The orders of truncates: they have no key, so a repeat may come in another partition."""
    commit: int = 0
    """Not after its commit, and above all commits before it: the order of transactions whose END did not come."""
    given_up: bool = False
    expected: int | None = None
    """What its END said, where it was given up."""
    durable: tuple[dict[str, int], set[int]] = field(default_factory=lambda: ({}, set()))
    """`last` and `truncates` of what was applied; stored at a checkpoint, for the rest is read again."""
    log: int = 0

    @property
    def waiting(self) -> int:
        """How many of its events are in the queues."""
        return self.seen - self.applied - self.spilled

    @property
    def again(self) -> bool:
        """Some partition has events of it that were counted anew: it is sent once more, up to another END."""
        return any(order >= PASS for order in self.last.values())

    def apply_all(self) -> None:
        """All that was seen is in the mirror."""
        self.applied, self.spilled = self.seen, 0
        self.durable = dict(self.last), set(self.truncates)


@dataclass(slots=True)
class Released:
    """What may be applied now, in order; what is staged of `going` comes before `events`."""

    events: list[tuple[str, Event]] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    going: set[str] = field(default_factory=set)
    """The transactions whose staged rows may be applied."""
    all_staged: bool = False
    dropped: set[str] = field(default_factory=set)
    """Repeats of released transactions: their staged rows go unread."""
    incomplete: int = 0
    repeated: int = 0
    torn: bool = False
    """The connector was killed amid one of them, and its END may count only what came after that."""

    def add(self, other: Released) -> None:
        """What another connector's gate lets go."""
        self.events += other.events
        self.ends += other.ends
        self.going |= other.going
        self.dropped |= other.dropped
        self.all_staged |= other.all_staged
        self.torn |= other.torn
        self.incomplete += other.incomplete
        self.repeated += other.repeated


def counted_on(last: int, order: int) -> int:
    """An event's order after one of the same transaction and partition: MariaDB's connector, killed amid a transaction,
    sends what it had not confirmed once more, or the rest, and counts it from 1 again."""
    passes, before = divmod(last, PASS)
    return (passes + (order <= before)) * PASS + order


Begun = tuple[list[str], list[str]]
"""MariaDB's transactions that have a BEGIN and no END, and those that had two BEGINs."""


def begun_in(text: str | None) -> Begun:
    """As the mirror has it; older programs knew only the last one without an END."""
    found, torn = json.loads(text) if text else ([], [])
    return [found] if isinstance(found, str) and found else list(found), torn


def begun_after(begun: Begun, boundary: Boundary) -> Begun:
    """Both after this BEGIN or END. A connector that goes back may pass others before it comes to the torn one again.

    What has no END by a later one's, a DDL, gets none.
    """
    found, torn = begun
    if boundary.status != "BEGIN":
        return [id for id in found if position_of(id) > boundary.lsn], torn
    if boundary.id not in found:
        return [*found, boundary.id], torn
    return found, torn if boundary.id in torn else [*torn, boundary.id]
