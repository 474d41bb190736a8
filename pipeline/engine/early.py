"""A first load of one table alone: each row of its snapshot is a whole document, and is written while the rest comes."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.engine.layout import Layout
from pipeline.engine.marking import Marking
from pipeline.engine.mirror import Mirror
from pipeline.events.envelope import Event


class Early:
    """Ends with the first load, or with the first change in it that is no snapshot row: then the cut is waited for.

    All methods but the constructor run inside the mirror's open checkpoint.
    """

    def __init__(self, mirror: Mirror, marking: Marking, *, wanted: bool) -> None:
        """`active` where nothing was ever read, or where that is how a load began that has not ended."""
        self.mirror, self.marking, layout = mirror, marking, mirror.layout
        fresh = not mirror.offsets() and not mirror.get("loaded") and mirror.get("early") is None
        self.active = wanted and _alone(layout) and (fresh or bool(mirror.get("early")))
        self._width, names = len(layout.root.key), ", ".join(layout.root_key)
        self._mark = (
            f"INSERT INTO dirty(sink, {names}, seq, since, low)"
            f" SELECT id, {', '.join(f'?{i + 2}' for i in range(self._width))}, ?1, 0, 1 FROM sinks WHERE true"
            f" ON CONFLICT(sink, {names}) DO UPDATE SET seq = excluded.seq"
        )

    def save(self) -> None:
        if self.active:
            self.mirror.set("early", 1)

    def end(self) -> None:
        if self.active:
            self.active = False
            self.mirror.set("early", 0)

    def look(self, events: Sequence[Event], seq: int) -> None:
        """Before these are applied: where one is no row of a snapshot, all that is there may be written otherwise by it."""
        if self.active and not all(e.op == "r" for e in events):
            self.end()
            # a truncate leaves no trace of the rows it takes, and they are written
            self.marking.mark_every_root(seq, since=0)

    def mark(self, events: Sequence[Event], seq: int) -> None:
        """After these were applied: their documents are to be written."""
        if not self.active:
            return
        width = self._width
        self.mirror.db.executemany(self._mark, [(seq, *e.after[:width]) for e in events if e.after is not None])


def _alone(layout: Layout) -> bool:
    return len(layout.tables) == 1 and len(layout.root.occurrences) == 1 and layout.aggregate is None
