"""Watermarks: the last END of each connector before which a sink has acknowledged everything."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from pipeline.engine.marking import Marking
from pipeline.engine.mirror import Mirror
from pipeline.engine.sourcelog import SourceLogs, bare, log_of
from pipeline.engine.sql import quoted, rows, value
from pipeline.engine.transactions import End

WEEK = 7 * 86400


class Marks:
    """Reads the `marks` that checkpoints leave; `loaded` says whether the first load is over."""

    def __init__(self, mirror: Mirror, marking: Marking, logs: SourceLogs) -> None:
        self.mirror, self.marking, self.logs = mirror, marking, logs
        self.loaded = False
        self.reached: deque[tuple[int, dict[str, int]]] = deque(maxlen=1000)
        """Offsets by sequence, so that a sink's record can say which it has acknowledged."""

    def add(self, seq: int, end: End) -> None:
        """The last END of a checkpoint; inside it."""
        self.mirror.db.execute(
            "INSERT OR REPLACE INTO marks VALUES(?, ?, ?, ?, ?)", (seq, end.connector, end.lsn, end.txid, end.ts_ms)
        )

    def watermark(self, sink: int) -> dict[str, dict[str, Any]]:
        """`{connector: {lsn, txid, ts_ms, log}}`; never falls within one log, and a later log is above an earlier one."""
        bound = self.oldest_unwritten(sink)
        found = rows(
            self.mirror.db,
            "SELECT connector, max(seq), lsn, txid, ts_ms FROM marks WHERE seq < ? GROUP BY connector",
            (bound if bound is not None else 1 << 62,),
        )
        return {
            c: {"lsn": lsn, "txid": bare(txid), "ts_ms": ts, "log": self.logs.known[log_of(txid)].label}
            for c, _, lsn, txid, ts in found
        }

    def acknowledged(self, sink: int) -> dict[str, int]:
        """The newest input offsets of which everything is written to this sink."""
        bound = self.oldest_unwritten(sink)
        past = [offsets for seq, offsets in self.reached if bound is None or seq < bound]
        return past[-1] if past else {}

    def oldest_unwritten(self, sink: int) -> int | None:
        """The oldest change that this sink has not acknowledged; a fan-out and a sweep still to come count."""
        if not self.loaded:
            return 0  # a first load marks every document at its end
        db = self.mirror.db
        found = [value(db, "SELECT min(since) FROM dirty WHERE sink = ? AND low = ?", (sink, low)) for low in (0, 1)]
        found += [self.marking.oldest(), self.marking.owed, self.marking.held, self.marking.oldest_touched()]
        return min((n for n in found if n is not None), default=None)

    def prune(self) -> None:
        """Forget marks below each connector's published one, and old tombstones; inside a checkpoint."""
        oldest = min(
            (s for s in map(self.oldest_unwritten, self.mirror.sinks().values()) if s is not None),
            default=self.mirror.seq,
        )
        self.mirror.db.execute(
            "DELETE FROM marks WHERE seq < (SELECT max(seq) FROM marks m WHERE m.connector = marks.connector AND m.seq < ?)",
            (oldest,),
        )
        for table in self.mirror.layout.tables.values():
            self.mirror.db.execute(
                f"DELETE FROM {quoted(table.name + '/deleted')} WHERE _at < ?", (time.time() - WEEK,)
            )
