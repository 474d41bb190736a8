"""What the engine is fed, and what it says of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.events.envelope import Event

Record = tuple[int, bytes | None, bytes | None]
"""Offset, key and value of one Kafka record."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the engine is fed: `topics` maps each data topic to its source table."""

    topics: Mapping[str, str]
    boundaries: str | None
    """The transaction topic; None where there is none (then `consistency` must be `row`)."""
    connector: str = ""


@dataclass(slots=True)
class Progress:
    """What one step did."""

    applied: int = 0
    transactions: int = 0
    newest_ms: int = 0
    """Source time of the newest event applied, in ms since 1970."""
    offsets: dict[str, int] = field(default_factory=dict)


def alone(event: Event, before: Sequence[Event]) -> bool:
    """Whether a Kafka tombstone is all that says of a delete (compaction took the event before it)."""
    return event.op == "!" or not (before and before[-1].op == "d" and before[-1].key == event.key)
