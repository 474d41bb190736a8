"""A connector's snapshot, as its rows and what follows them tell of it: no document is written before it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.engine.inputs import SNAPSHOT
from pipeline.events.envelope import Event


@dataclass(slots=True)
class Snapshot:
    """The newest one seen of one connector."""

    log: int = 0
    """The log that it began; an older one's is over."""
    running: bool = False
    ms: int = 0
    """When its newest row was sent."""
    over: bool = False
    """It has ended, and the rows of it that still come lie before the cut."""

    def look(self, events: Sequence[Event]) -> bool:
        """Events of one log in their order; whether it ends with them: its last row is here, or the connector streams."""
        first, last, log = events[0].source, events[-1].source, events[0].log
        if not (first.snapshot in SNAPSHOT or last.snapshot in SNAPSHOT):
            return last.snapshot in ("false", False) and self.streams(log, last.ts_ms)
        if log < self.log or (log == self.log and self.over):
            return False
        self.log, self.over = log, False
        for event in events:
            if event.source.snapshot in SNAPSHOT:
                self.running, self.ms = True, event.source.ts_ms
                if event.source.snapshot == "last":
                    return self.end()
        return False

    def streams(self, log: int, ts_ms: int) -> bool:
        """The connector has gone on to transactions of this log; whether that ends the snapshot."""
        return self.running and (log, ts_ms) > (self.log, self.ms) and self.end()

    def end(self) -> bool:
        self.running, self.over = False, True
        return True
