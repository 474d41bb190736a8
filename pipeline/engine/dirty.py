"""The dirty set: which documents are to be written, read and assembled as the mirror is now, and settled by outcome."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.assemble import assembly_sql, document_id, keys_sql, know_masks, needs_check
from pipeline.engine.groups import GroupReader
from pipeline.engine.layout import Layout
from pipeline.engine.measures import group_id
from pipeline.engine.mirror import Mirror
from pipeline.engine.ownership import Tombstones
from pipeline.engine.revision import revision
from pipeline.engine.sql import connect, value
from pipeline.engine.twin import Twin, needs_python
from pipeline.engine.withholding import Rules, settle
from pipeline.ports import Outcome, Rejected, Throttled, Write

_SOME = "SELECT 1 FROM dirty WHERE sink = ? LIMIT ?"


@dataclass(slots=True)
class Taken:
    """One batch of documents on its way to a sink. `refused` could not be built: they go to quarantine."""

    sink: int
    seq: int
    keys: list[tuple[Any, ...]] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    refused: list[tuple[tuple[Any, ...], str, str]] = field(default_factory=list)
    """(key, kind, error); the kind is `failed` or `pending`."""
    number: int = 0
    """Tells its reader's batches apart."""
    split: bool = False
    """More is dirty than was taken: a source transaction may be in it in part."""
    withheld: set[tuple[Any, ...]] | None = None
    """Keys whose documents must not go there; None where the sink has no such rule."""


class Reader:
    """Reads dirty keys and assembles their documents, on a connection of its own; used from one thread.

    `rules`: which rows must not go to the sink that it takes for.
    """

    def __init__(self, path: str, layout: Layout, rules: Rules | None = None) -> None:
        self.layout, self._rules = layout, rules
        self.db = connect(path)
        self.keys = layout.written_key
        names = ", ".join(self.keys)
        self.db.execute(keys_sql(self.keys))
        self._taken = 0
        self.db.execute(
            f"CREATE TEMP TABLE inflight(sink INTEGER, {names}, number INTEGER, PRIMARY KEY(sink, {names})) WITHOUT ROWID"
        )
        self._groups = GroupReader(self.db, layout) if layout.aggregate is not None else None
        self._plain, self._checked = (assembly_sql(layout, checked=checked, rules=rules) for checked in (False, True))
        know_masks(self.db, layout)
        self._always_check = needs_check(layout.shape)
        self._twin = Twin(layout.shape) if needs_python(layout.shape) else None
        same = " AND ".join(f"f.{k} = d.{k}" for k in self.keys)
        self._fill = (
            f"INSERT INTO temp.batch SELECT {', '.join('d.' + k for k in self.keys)} FROM dirty d"
            f" WHERE d.sink = ? AND NOT EXISTS(SELECT 1 FROM temp.inflight f WHERE f.sink = d.sink AND {same})"
            f" ORDER BY d.low, d.since LIMIT ?"
        )

    def take(self, sink: int, limit: int, epoch: int, *, whole: bool = False) -> Taken:
        """The next dirty keys that are not in flight, as documents; all from one state of the mirror.

        `whole`: nothing while a fan-out has still to say what is dirty, unless `limit` documents are.
        """
        self.db.execute("BEGIN")
        try:
            seq = int(value(self.db, "SELECT value FROM meta WHERE name = 'seq'") or 0)
            if value(self.db, "SELECT value FROM meta WHERE name = 'hold'"):
                return Taken(sink, seq)  # the mirror holds part of a transaction, or catches up
            fanning = whole and value(self.db, "SELECT 1 FROM fanout LIMIT 1") is not None
            if fanning and value(self.db, f"SELECT count(*) FROM ({_SOME})", (sink, limit)) < limit:
                return Taken(sink, seq)
            self.db.execute("DELETE FROM temp.batch")
            self.db.execute(self._fill, (sink, limit))
            taken = Taken(sink, seq, split=fanning or self.db.changes() >= limit)
            if self.db.changes():
                self._taken = taken.number = self._taken + 1
                self.db.execute(
                    f"INSERT INTO temp.inflight SELECT ?, {', '.join(self.keys)}, ? FROM temp.batch",
                    (sink, taken.number),
                )
                self._assemble(taken, revision(epoch, seq))
        finally:
            self.db.execute("COMMIT")
        return taken

    def _assemble(self, taken: Taken, number: int) -> None:
        if self._groups is not None:
            for group in self._groups.read():
                if group.refused is not None:
                    taken.refused.append(((group.key,), *group.refused))
                else:
                    taken.keys.append((group.key,))
                    taken.writes.append(Write(group_id(group.key), number, group.document))
            return
        checked = self._always_check or bool(value(self.db, "SELECT n FROM counters WHERE name = 'unknown'"))
        width, finish = len(self.keys), self._twin.finish if self._twin else None
        taken.withheld = set() if self._rules else None
        for row in self.db.execute(self._checked if checked else self._plain):
            key, document, pending = row[:width], row[width], row[width + 1]
            if pending:
                taken.refused.append((key, "pending", "waits for a row or a column that is not known yet"))
                continue
            if taken.withheld is not None and row[width + 2]:
                taken.withheld.add(key)
            if finish is not None and document is not None:
                try:
                    document = finish(document)
                except Exception as error:  # the author's code: this document is quarantined, all others go on
                    taken.refused.append((key, "failed", f"{type(error).__name__}: {error}"))
                    continue
            taken.keys.append(key)
            taken.writes.append(Write(document_id(key), number, document))

    def landed(self, taken: Taken) -> None:
        """The batch is settled: its keys may be taken again."""
        self.db.execute("DELETE FROM temp.inflight WHERE number = ?", (taken.number,))

    def documents(self, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], str | None]:
        """The documents of these keys (as `dirty` has them) as they would be written now."""
        self.db.execute("BEGIN")
        try:
            self.db.execute("DELETE FROM temp.batch")
            marks = ", ".join("?" * len(self.keys))
            self.db.executemany(f"INSERT OR IGNORE INTO temp.batch VALUES({marks})", keys)
            if self._groups is not None:
                return {(group.key,): group.document for group in self._groups.read()}
            found: dict[tuple[Any, ...], str | None] = {}
            for row in self.db.execute(self._checked):
                width = len(self.keys)
                key, document, pending = row[:width], row[width], row[width + 1]
                if document is not None and not pending and self._twin is not None:
                    document = self._twin.finish(document)
                found[key] = None if pending else document
            return found
        finally:
            self.db.execute("COMMIT")

    def close(self) -> None:
        self.db.close()


class Settling:
    """The writing side: outcomes clear dirty keys and fill the quarantine, inside the mirror's checkpoint."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.db, self.tombstones = mirror, mirror.db, Tombstones(mirror)
        names = mirror.layout.written_key
        self._same = " AND ".join(f"{name} = ?" for name in ("sink", *names))
        self._marks = ", ".join("?" * (len(names) + 1))
        keys = ", ".join(names)
        self._quarantine = (
            f"INSERT INTO quarantine VALUES({self._marks}, ?, ?, 1, ?) ON CONFLICT(sink, {keys}) DO UPDATE SET"
            " kind = excluded.kind, error = excluded.error, attempts = attempts + 1, at = excluded.at"
        )
        self._any_quarantined = value(self.db, "SELECT 1 FROM quarantine LIMIT 1") is not None

    def retry(self, sink: int, seq: int) -> int:
        """Quarantined keys are dirty again; their entries stay until a sink takes them."""
        keys = ", ".join(self.mirror.layout.written_key)
        self.db.execute(
            f"INSERT INTO dirty(sink, {keys}, seq, since, low) SELECT sink, {keys}, ?1, ?1, 1 FROM quarantine"
            f" WHERE sink = ?2 ON CONFLICT(sink, {keys}) DO UPDATE SET seq = excluded.seq",
            (seq, sink),
        )
        return self.db.changes()

    def settle(self, taken: Taken, outcomes: Sequence[Outcome]) -> None:
        """A dirty entry goes when its sequence is not newer than the state that was read; a throttled one stays."""
        done: list[tuple[Any, ...]] = []
        gone: list[tuple[Any, ...]] = []
        refused = list(taken.refused)
        for key, write, outcome in zip(taken.keys, taken.writes, outcomes, strict=True):
            if isinstance(outcome, Throttled):
                continue
            if isinstance(outcome, Rejected):
                refused.append((key, "refused", outcome.reason))
            else:
                done.append((taken.sink, *key))
                if write.document is None:
                    gone.append(key)
        if gone:
            self.tombstones.sent(taken.sink, gone)
        if taken.withheld is not None:
            settle(self.db, self._same, done, taken.withheld)
        if self._any_quarantined and done:
            self.db.executemany(f"DELETE FROM quarantine WHERE {self._same}", done)
        now = time.time()
        for key, kind, error in refused:
            self.db.execute(self._quarantine, (taken.sink, *key, kind, error[:2000], now))
            self._any_quarantined = True
        done += [(taken.sink, *key) for key, _, _ in refused]
        if taken.seq == self.mirror.seq:
            self.db.executemany(f"DELETE FROM dirty WHERE {self._same}", done)
            return
        self.db.executemany(f"DELETE FROM dirty WHERE {self._same} AND seq <= {taken.seq}", done)
        # what changed after the read is still unacknowledged, but nothing before it is
        self.db.executemany(
            f"UPDATE dirty SET since = {taken.seq + 1} WHERE {self._same} AND since <= {taken.seq}", done
        )


__all__ = ["Reader", "Settling", "Taken"]
