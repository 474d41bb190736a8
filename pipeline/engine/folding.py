"""Folding: documents that were touched go out of their groups as they were, and in as they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from pipeline.authoring.event_shape import EventShape
from pipeline.engine.assemble import assembly_sql, keys_sql, know_masks, needs_check
from pipeline.engine.event_fold import EventContributing
from pipeline.engine.layout import Layout
from pipeline.engine.marking import Marking
from pipeline.engine.measures import Contributing, State, Sum, columns_of, decode_state, encode_state
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import rows, value
from pipeline.engine.twin import Twin

BATCH: Final = 1000
INLINE: Final = 5000
"""Documents looked at in one checkpoint; what is left holds up the writing until it is done."""

Key = tuple[Any, ...]
Contribution = tuple[Any, ...]
"""The group's key, then the columns of `contributions`."""


@dataclass(slots=True)
class _Changes:
    """What one batch does: what goes out and comes in, and which groups have another document."""

    gone: list[Key] = field(default_factory=list)
    fresh: list[tuple[Any, ...]] = field(default_factory=list)
    moves: dict[str, list[tuple[int, tuple[Any, ...]]]] = field(default_factory=dict)
    """By group: 1 and the values that come in, -1 and those that go out."""
    failed: list[tuple[Any, ...]] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)

    def move(self, sign: int, contribution: Contribution) -> None:
        self.moves.setdefault(contribution[0], []).append((sign, contribution[1:]))


class Folding:
    """Keeps an aggregate's groups in step with the mirror; runs inside the mirror's open checkpoint.

    Does nothing for a projection whose documents are themselves written.
    """

    def __init__(self, mirror: Mirror, marking: Marking) -> None:
        self.mirror, self.db, self._marking = mirror, mirror.db, marking
        self.active = mirror.layout.aggregate is not None
        self.unfolded = False
        """The groups have a change in part: nothing may be written from them."""
        if self.active:
            self._compile(mirror.layout)
            self.unfolded = self._is_unfolded()

    def _compile(self, layout: Layout) -> None:
        assert layout.aggregate is not None
        shape = layout.aggregate
        self._contributing = EventContributing(shape) if isinstance(shape, EventShape) else Contributing(shape)
        self._slots = self._contributing.slots
        self._values = columns_of(self._slots)
        self._places = {i: self._values.index(f"v{i}") for i in range(len(self._slots))}
        self._plain, self._checked = assembly_sql(layout, checked=False), assembly_sql(layout, checked=True)
        know_masks(self.db, layout)
        self._always_check = needs_check(layout.shape)
        self._twin = Twin(layout.shape)
        self._table = layout.root.name
        self._keys = ", ".join(layout.root_key)
        self._width = len(layout.root_key)
        self.db.execute(keys_sql(layout.root_key))
        self._any_failed = value(self.db, "SELECT 1 FROM failed LIMIT 1") is not None

    @property
    def pending(self) -> bool:
        """Some document is still to be looked at."""
        return self.active and value(self.db, "SELECT 1 FROM touched LIMIT 1") is not None

    def _is_unfolded(self) -> bool:
        return self.pending or self._marking.oldest() is not None

    def fold(self, seq: int) -> None:
        """Look at what was touched, so much as one checkpoint may."""
        if not self.active:
            return
        for _ in range(0, INLINE, BATCH):
            since = self._marking.oldest_touched()
            if since is None:
                break
            self._fold(seq, since)
        self.unfolded = self._is_unfolded()

    def _fold(self, seq: int, since: int) -> None:
        self.db.execute("DELETE FROM temp.batch")
        self.db.execute(f"INSERT INTO temp.batch SELECT {self._keys} FROM touched LIMIT ?", (BATCH,))
        changes = self._changes()
        self._write(changes)
        for group, moves in changes.moves.items():
            self._move(group, moves)
        changes.groups.update(changes.moves)
        keys = self.mirror.layout.written_key[0]
        self.db.executemany(
            f"INSERT INTO dirty(sink, {keys}, seq, since, low) SELECT s.id, ?1, {seq}, {since}, 0 FROM sinks s WHERE true"
            f" ON CONFLICT(sink, {keys}) DO UPDATE SET seq = excluded.seq, since = min(since, excluded.since), low = 0",
            [(group,) for group in changes.groups],
        )
        self.db.execute(f"DELETE FROM touched WHERE ({self._keys}) IN (SELECT {self._keys} FROM temp.batch)")

    # ---- what changes -------------------------------------------------------------------------------------

    def _changes(self) -> _Changes:
        changes, width = _Changes(), self._width
        same = f"({self._keys}) IN (SELECT {self._keys} FROM temp.batch)"
        names = "".join(f", {name}" for name in ("g", *self._values))
        old: dict[Key, Contribution] = {
            row[:width]: row[width:]
            for row in self.db.execute(f"SELECT {self._keys}{names} FROM contributions WHERE {same}")
        }
        if self._any_failed:
            changes.groups.update(g for (g,) in rows(self.db, f"SELECT g FROM failed WHERE {same}"))
            self.db.execute(f"DELETE FROM failed WHERE {same}")
        checked = self._always_check or bool(value(self.db, "SELECT n FROM counters WHERE name = 'unknown'"))
        for row in rows(self.db, self._checked if checked else self._plain):
            key, document, pending = row[:width], row[width], row[width + 1]
            before = old.get(key)
            if pending:
                self._fail(changes, key, before, None, "pending", "waits for a row or a column that is not known yet")
                continue
            fresh, group = None, None
            try:
                data = None if document is None else self._twin.read(document)
                if data is not None and self._contributing.takes(data):
                    group = self._contributing.group(data)
                    fresh = (group, *self._contributing.values(data))
            except Exception as error:  # the author's code: its groups are quarantined, all others go on
                self._fail(changes, key, before, group, "failed", f"{type(error).__name__}: {error}")
                continue
            self._exchange(changes, key, before, fresh)
        return changes

    @staticmethod
    def _exchange(changes: _Changes, key: Key, before: Contribution | None, fresh: Contribution | None) -> None:
        if fresh == before:
            return
        if before is not None:
            changes.move(-1, before)
        if fresh is None:
            changes.gone.append(key)
        else:
            changes.move(1, fresh)
            changes.fresh.append((*key, *fresh))

    def _fail(
        self, changes: _Changes, key: Key, before: Contribution | None, group: str | None, kind: str, error: str
    ) -> None:
        """The groups that the document was in and is to be in can't be told; one of its own stands for an unknown one."""
        whose = {g for g in (group, before[0] if before is not None else None) if g is not None}
        for g in whose or {msgspec.json.encode({self._table: key}).decode()}:
            changes.failed.append((*key, g, kind, f"{self._table} {', '.join(map(str, key))}: {error}"[:2000]))
            changes.groups.add(g)

    # ---- what is written ----------------------------------------------------------------------------------

    def _write(self, changes: _Changes) -> None:
        where = " AND ".join(f"{k} = ?" for k in self._keys.split(", "))
        marks = ", ".join("?" * (self._width + 1 + len(self._values)))
        self.db.executemany(f"DELETE FROM contributions WHERE {where}", changes.gone)
        self.db.executemany(f"INSERT OR REPLACE INTO contributions VALUES({marks})", changes.fresh)
        if changes.failed:
            self._any_failed = True
            self.db.executemany(
                f"INSERT OR REPLACE INTO failed VALUES({', '.join('?' * (self._width + 3))})", changes.failed
            )

    def _move(self, group: str, moves: list[tuple[int, tuple[Any, ...]]]) -> None:
        stored = value(self.db, "SELECT state FROM grouped WHERE g = ?", (group,))
        state = decode_state(stored) if stored is not None else State()
        state.n += sum(sign for sign, _ in moves)
        for i, slot in enumerate(self._slots):
            place = self._places[i]
            given = [(sign, values[place]) for sign, values in moves if values[place] is not None]
            if slot.use == "sum" and given:
                known = state.sums.setdefault(i, Sum())
                for sign, text in given:
                    known.add(text, sign, exact=slot.value.kind == "float")
            elif slot.use == "distinct" and given:
                state.distinct[i] = state.distinct.get(i, 0) + self._count(i, group, given)
        if state.n:
            self.db.execute(
                "INSERT OR REPLACE INTO grouped VALUES(?, ?, ?)", (group, state.n, encode_state(state).decode())
            )
        else:
            self.db.execute("DELETE FROM grouped WHERE g = ?", (group,))

    def _count(self, slot: int, group: str, given: list[tuple[int, Any]]) -> int:
        """Tell how often the group has these values; by how many different ones it grew."""
        by_value: dict[Any, int] = {}
        for sign, item in given:
            by_value[item] = by_value.get(item, 0) + sign
        grown = 0
        for item, more in by_value.items():
            if not more:
                continue
            place = (slot, group, item)
            known = int(value(self.db, "SELECT n FROM distincts WHERE slot = ? AND g = ? AND v = ?", place) or 0)
            if known + more:
                self.db.execute("INSERT OR REPLACE INTO distincts VALUES(?, ?, ?, ?)", (*place, known + more))
                grown += not known
            else:
                self.db.execute("DELETE FROM distincts WHERE slot = ? AND g = ? AND v = ?", place)
                grown -= 1
        return grown
