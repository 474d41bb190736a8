"""Source logs: which log of the source a record was read from.

A position means nothing across a restored backup, a failover or an upgrade: there it may go back. So every record of a
connector bears a label in a header (docs/decisions/0005-source-logs.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

HEADER: Final = "cdc.log"
"""The Kafka header with the label."""
_LABEL: Final = re.compile(r"([sc])(\d{1,15})/([^/]*)/([^/]*)")


@dataclass(frozen=True, slots=True)
class SourceLog:
    """One log. `number`: when the connector began with it, ms since 1970; 0 for records without a label."""

    number: int = 0
    system: str = ""
    timeline: str = ""
    fresh: bool = False
    """The connector began with a snapshot, so rows that it did not bring are no more."""

    @property
    def label(self) -> str:
        """`s1764017000123/7412345/1`; `c` for a connector that goes on without a snapshot."""
        return f"{'s' if self.fresh else 'c'}{self.number}/{self.system}/{self.timeline}" if self.number else ""

    @property
    def identity(self) -> str:
        """The source's system id and timeline."""
        return f"{self.system}/{self.timeline}" if self.number else ""


def parsed(label: str) -> SourceLog:
    """The log that a label names; the one without a label where it is no label."""
    found = _LABEL.fullmatch(label)
    if found is None:
        return SourceLog()
    return SourceLog(int(found[2]), found[3], found[4], found[1] == "s")


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment of a source. `log`: its system id and timeline; `position`: what committed up to there is seen.

    `snapshot` is Postgres' own word for what is seen, `xmin:xmax:running,…`.
    """

    log: str
    position: int
    snapshot: str

    @property
    def text(self) -> str:
        return f"{self.log} {self.position} {self.snapshot}"

    @classmethod
    def parsed(cls, text: str) -> Moment:
        log, position, snapshot = text.split(" ")
        return cls(log, int(position), snapshot)


@dataclass(frozen=True, slots=True)
class Gtid:
    """MariaDB's id of a transaction, `0-1-42`; in one domain its sequence is the order of the commits."""

    domain: int
    server: int
    sequence: int

    @classmethod
    def of(cls, text: str) -> Gtid:
        """Raises ValueError for what is none."""
        domain, server, sequence = text.strip().split("-")
        return cls(int(domain), int(server), int(sequence))

    @classmethod
    def newest(cls, text: str) -> Gtid:
        """Of a list of them, one a domain, the one that is furthest."""
        return max(map(cls.of, text.split(",")), key=lambda gtid: gtid.sequence)


def is_gtid(text: str) -> bool:
    """Whether a transaction's id is MariaDB's."""
    return text.count("-") == 2


def position_of(text: str) -> int:
    """A place in the log as events have it, as Postgres writes it, `0/16B3748`, or MariaDB, `0-1-42`."""
    if "-" in text:
        return Gtid.of(text).sequence
    high, slash, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16) if slash else int(text)


def lsn_text(lsn: int) -> str:
    """The place as Postgres writes it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
