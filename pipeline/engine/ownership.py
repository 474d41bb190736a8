"""What the owner of a sink puts right: documents that others overwrote, and deleted ones that came back."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pipeline.engine.assemble import document_id
from pipeline.engine.measures import group_id
from pipeline.engine.mirror import Mirror
from pipeline.engine.owners import Owners
from pipeline.engine.revision import revision
from pipeline.engine.sql import rows, value

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine

KEPT: Final = 6 * 3600.0
"""Seconds; far longer than the windows after which they are looked up."""
PAGE: Final = 1000
ALWAYS: Final = 100
"""So many orphans may go whatever share of the documents they are."""


@dataclass(frozen=True, slots=True)
class Orphans:
    """How orphans are told: written before `epoch`, and not in `leave`, which may be written yet. 0: there can be none.

    `revision` deletes them, and no document that is written from now on.
    """

    epoch: int = 0
    revision: int = 0
    leave: frozenset[str] = frozenset()


class Tombstones:
    """Deletes sent to sinks, remembered because a sink forgets a deleted document's version after a while.

    Runs on the engine's thread; what writes runs inside the mirror's open checkpoint.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.db = mirror.db
        self._keys = mirror.layout.written_key
        self._groups = mirror.layout.aggregate is not None
        names, marks = ", ".join(self._keys), ", ".join("?" * len(self._keys))
        self._insert = f"INSERT INTO gone(sink, at, {names}) VALUES(?, ?, {marks})"
        self._page = f"SELECT id, {names} FROM gone WHERE sink = ? AND at >= ? AND id > ? ORDER BY id LIMIT {PAGE}"
        self._mark_groups = (
            f"INSERT INTO dirty(sink, {names}, seq, since, low) SELECT ?1, g, ?2, 0, 1 FROM grouped WHERE true"
            f" ON CONFLICT(sink, {names}) DO UPDATE SET seq = excluded.seq, since = 0"
        )
        self._mark = (
            f"INSERT INTO dirty(sink, {names}, seq, since, low) VALUES(?1, {', '.join(f'?{i + 3}' for i in range(len(self._keys)))}, ?2, ?2, 0)"
            f" ON CONFLICT(sink, {names}) DO UPDATE SET seq = excluded.seq, low = 0"
        )

    def id(self, key: tuple[Any, ...]) -> str:
        """The document's id."""
        return group_id(key[0]) if self._groups else document_id(key)

    def sent(self, sink: int, keys: Iterable[tuple[Any, ...]]) -> None:
        """These documents were deleted from the sink now."""
        at = time.time()
        self.db.executemany(self._insert, [(sink, at, *key) for key in keys])

    def page(self, sink: int, since: float, after: int) -> tuple[int, list[tuple[Any, ...]]]:
        """A thousand of the keys deleted since then, and where the next page begins; none at the end."""
        found = rows(self.db, self._page, (sink, since, after))
        return (found[-1][0] if found else after), [tuple(row[1:]) for row in found]

    def again(self, sink: int, keys: Iterable[tuple[Any, ...]], seq: int) -> None:
        """What came back is dirty: written as the mirror has it, which is mostly deleted."""
        self.db.executemany(self._mark, [(sink, seq, *key) for key in keys])

    def mark_groups(self, sink: int, seq: int) -> None:
        """Every group's document is to be written again, though nothing of what it counts has changed."""
        if self._groups:
            self.db.execute(self._mark_groups, (sink, seq))

    def prune(self) -> None:
        self.db.execute("DELETE FROM gone WHERE at < ?", (time.time() - KEPT,))


class Ownership:
    """Each method is one checkpoint."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.mirror, self.tombstones = engine, engine.mirror, Tombstones(engine.mirror)
        exchange = engine.inputs.exchange
        self._number = None if exchange is None else int(exchange.rpartition("/")[2])
        self._owners = Owners(engine.mirror.layout, engine.inputs.partitions)

    def claimed(self, sink: int, epoch: int, acknowledged: Mapping[str, int]) -> bool:
        """This epoch of the sink is ours; whether documents have to wait for `catch_up` with the log's end.

        That is where another mirror has written since, or this one has lost its newest changes, or may have: the sink may
        hold what nobody here knows. So it is as before a first load: read up to the log's end, and then write every document.
        """
        mirror, engine = self.mirror, self.engine
        stored = mirror.offsets()
        behind = bool(mirror.get(f"doubted/{sink}")) or any(stored.get(p, 0) < n for p, n in acknowledged.items())
        anew = behind or epoch > mirror.epoch(sink) + 1
        with mirror.checkpoint() as seq:
            mirror.set_epoch(sink, epoch)
            if anew:
                # a truncate on the way leaves no trace of the rows it takes
                engine.applier.marking.mark_every_root(seq, since=0)
                self.tombstones.mark_groups(sink, seq)
                mirror.set("loaded", None)
                mirror.set(f"doubted/{sink}", None)
                mirror.set(f"orphans/{sink}", epoch)
                mirror.set(f"orphans held/{sink}", None)
        if anew:
            engine.loaded = engine.marks.loaded = False
            engine.wants_cut = engine.gate.by_row = True
            engine.catching_up = engine.catching_up or {}
        return anew

    def owns(self, id: str) -> bool:
        """Whether the document with this id is this engine's: all are, unless partitions share them."""
        return self._number is None or self._owners.of_id(id) == self._number

    def came_back(self, sink: int, keys: Iterable[tuple[Any, ...]]) -> None:
        """Documents that were deleted from the sink are there again."""
        with self.mirror.checkpoint() as seq:
            self.tombstones.again(sink, keys, seq)

    def orphans(self, sink: int) -> Orphans | None:
        """What another mirror wrote and this one does not know of; None before everything that it knows is written."""
        mirror = self.mirror
        if not (epoch := mirror.get(f"orphans/{sink}")):
            return Orphans()
        owed = value(mirror.db, "SELECT 1 FROM dirty WHERE sink = ? AND since = 0 LIMIT 1", (sink,))
        if owed or not (self.engine.loaded and self.engine.may_flush):
            return None
        leave: set[str] = set()
        for table in ("quarantine", "dirty"):
            keys = rows(
                mirror.db, f"SELECT {', '.join(mirror.layout.written_key)} FROM {table} WHERE sink = ?", (sink,)
            )
            leave.update(map(self.tombstones.id, keys))
        return Orphans(int(epoch), revision(mirror.epoch(sink), mirror.seq), frozenset(leave))

    def too_many(self, orphans: int, documents: int) -> bool:
        """Whether somebody has to look first, as for rows that a new snapshot left out (`worker.sweep_limit`)."""
        return orphans > max(ALWAYS, self.engine.beginnings.limit * documents)

    def swept(self, sink: int, held: int) -> None:
        """The orphans are gone, or so many of them are held because they are too many."""
        with self.mirror.checkpoint():
            self.mirror.set(f"orphans/{sink}", None)
            self.mirror.set(f"orphans held/{sink}", held or None)
