"""Changes applied to the mirror, set by set: rows in, and the root keys whose documents may differ marked dirty."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pipeline.engine.layout import Occurrence, Table
from pipeline.engine.marking import FANOUT_INLINE, Marking
from pipeline.engine.mirror import UNKNOWN, Mirror
from pipeline.engine.sql import equal, listed, quoted, value
from pipeline.events.envelope import UNCHANGED, Event, commit_order

LOG_BITS: Final = 56
"""A row's commit order is the source log's ordinal above the LSN: a restored database starts above all before it."""


def position(event: Event, log: int) -> tuple[int, int]:
    """A streamed event's place (commit order, order in the transaction); (0, 0) for a snapshot row, which sets no floor."""
    block = event.transaction
    if block is None:
        if event.source.snapshot not in (None, "false", False):
            return 0, 0
        return log << LOG_BITS | commit_order(event.source), event.source.lsn or 0
    return log << LOG_BITS | commit_order(event.source), block.total_order


class TableSql:
    """The statements of one mirror table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        name, gone = quoted(table.name), quoted(table.name + "/deleted")
        self.name, self.gone = name, gone
        self.batch, self.changed = quoted("batch/" + table.name), quoted("changed/" + table.name)
        columns, key = listed(table.columns), listed(table.key)
        every = f"{columns}, _commit, _order, _generation"
        same_key = equal("m", table.key, "b", table.key)
        rest = [c for c in table.columns if c not in table.key]
        assignments = ", ".join(f"{c} = excluded.{c}" for c in [*map(quoted, rest), "_commit", "_order", "_generation"])
        differs = " OR ".join(f"b.{quoted(c)} IS NOT m.{quoted(c)}" for c in rest) or "0"
        first = quoted(table.key[0])
        marks = ", ".join("?" * (len(table.columns) + 3))
        self.create = (
            f"CREATE TEMP TABLE IF NOT EXISTS {self.batch}({columns}, _commit INTEGER, _order INTEGER, _gone INTEGER,"
            f" PRIMARY KEY({key})) WITHOUT ROWID;"
            f"CREATE TEMP TABLE IF NOT EXISTS {self.changed}({key}, _gone INTEGER, PRIMARY KEY({key})) WITHOUT ROWID"
        )
        self.load = (
            f"INSERT INTO {name}({every}) VALUES({marks}) ON CONFLICT({key}) DO UPDATE SET {assignments}"
            f" WHERE excluded._commit = 0 OR (excluded._commit, excluded._order) > (_commit, _order)"
        )
        self.clear = f"DELETE FROM {self.batch}; DELETE FROM {self.changed}"
        self.fill = f"INSERT INTO {self.batch} VALUES({marks})"
        newer = "(m._commit, m._order) >= (b._commit, b._order)"
        self.drop_repeats = (
            f"DELETE FROM {self.batch} AS b WHERE b._commit > 0 AND ("
            f"EXISTS(SELECT 1 FROM {name} m WHERE {same_key} AND {newer}) OR "
            f"EXISTS(SELECT 1 FROM {gone} m WHERE {same_key} AND {newer}))"
        )
        self.drop_below_floor = f"DELETE FROM {self.batch} WHERE _commit > 0 AND (_commit, _order) <= (?, ?)"
        self.find_changed = (
            f"INSERT INTO {self.changed} SELECT {listed(table.key, 'b.')}, b._gone FROM {self.batch} b"
            f" LEFT JOIN {name} m ON {same_key}"
            f" WHERE CASE WHEN b._gone THEN m.{first} IS NOT NULL ELSE m.{first} IS NULL OR {differs} END"
        )
        self.upsert = (
            f"INSERT INTO {name}({every}) SELECT {columns}, _commit, _order, ? FROM {self.batch} WHERE NOT _gone"
            f" ON CONFLICT({key}) DO UPDATE SET {assignments}"
        )
        self.delete = f"DELETE FROM {name} WHERE ({key}) IN (SELECT {key} FROM {self.batch} WHERE _gone)"
        self.remember = f"INSERT OR REPLACE INTO {gone} SELECT {key}, _commit, _order, ? FROM {self.batch} WHERE _gone AND _commit > 0"
        self.revive = f"DELETE FROM {gone} WHERE ({key}) IN (SELECT {key} FROM {self.batch} WHERE NOT _gone)"
        self.truncate = f"DELETE FROM {name} WHERE (_commit, _order) < (?, ?)"
        self.filler = (None,) * (len(table.columns) - len(table.key))


class Applier:
    """Applies released changes inside the mirror's open checkpoint."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.db = mirror, mirror.db
        self.tables = list(mirror.layout.tables.values())
        self.sql = [TableSql(table) for table in self.tables]
        for statements in self.sql:
            self.db.execute(statements.create)
        self.marking = Marking(mirror)
        self.log = 1
        self.generation = 0
        self._floors: dict[int, tuple[int, int]] = {}
        for table in self.tables:
            floor = mirror.get(f"truncated/{table.name}")
            if floor:
                commit, _, order = str(floor).partition(":")
                self._floors[table.number] = (int(commit), int(order))
        self._any_gone = {
            t.number: value(self.db, f"SELECT 1 FROM {self.sql[t.number].gone} LIMIT 1") is not None
            for t in self.tables
        }

    def apply(self, events: Sequence[Event], seq: int, *, mark: bool) -> None:
        """Apply the events in their order. `mark=False` is for a first load: every root is marked at its end instead."""
        start = 0
        for i, event in enumerate(events):
            if event.op == "t":
                self._apply_rows(events[start:i], seq, mark)
                self._truncate(event, seq, mark)
                start = i + 1
        self._apply_rows(events[start:] if start else events, seq, mark)

    def _apply_rows(self, events: Sequence[Event], seq: int, mark: bool) -> None:
        by_table: dict[int, list[Event]] = {}
        for event in events:
            by_table.setdefault(event.table, []).append(event)
        touched = []
        for number, of_table in by_table.items():
            plain = not mark and not self._any_gone[number] and number not in self._floors
            if plain and not any(e.after is None or e.partial for e in of_table):
                self._load(number, of_table)
            elif self._fill(number, of_table):
                touched.append(number)
        if mark:
            for number in touched:
                self.db.execute(self.sql[number].find_changed)
            self._mark(touched, seq, old=True)
        for number in touched:
            self._write(self.sql[number], any(e.after is None for e in by_table[number]))
        if mark:
            self._mark(touched, seq, old=False)

    def _load(self, number: int, events: Iterable[Event]) -> None:
        log, generation = self.log, self.generation
        self.db.executemany(self.sql[number].load, [(*e.after, *position(e, log), generation) for e in events])

    def _fill(self, number: int, events: Iterable[Event]) -> bool:
        """The batch table: the last event of each key, UNCHANGED columns filled in; repeats dropped."""
        statements, table = self.sql[number], self.tables[number]
        width, filler = len(table.key), statements.filler
        folded: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        for event in events:
            commit, order = position(event, self.log)
            if event.after is None:
                assert event.key is not None
                folded[event.key] = (*event.key, *filler, commit, order, 1)
                continue
            key = event.after[:width]
            before = folded.get(key)
            # Kafka's order is the truth within a partition, but a repeat must not undo what follows it
            if before is not None and commit > 0 and (commit, order) < (before[-3], before[-2]):
                continue
            row = self._resolved(table, key, event.after, before) if event.partial else event.after
            folded[key] = (*row, commit, order, 0)
        self.db.execute(statements.clear)
        self.db.executemany(statements.fill, folded.values())
        self.db.execute(statements.drop_repeats)
        dropped = self.db.changes()
        if number in self._floors:
            self.db.execute(statements.drop_below_floor, self._floors[number])
            dropped += self.db.changes()
        self.mirror.count("repeated", dropped)
        return dropped < len(folded)

    def _resolved(
        self, table: Table, key: tuple[Any, ...], after: tuple[Any, ...], before: tuple[Any, ...] | None
    ) -> tuple[Any, ...]:
        known: Sequence[Any] = ()
        if before is not None and not before[-1]:
            known = before
        elif before is None and (row := self.mirror.row(table, key)) is not None:
            known = list(row.values())
        return tuple((known[i] if known else UNKNOWN) if item is UNCHANGED else item for i, item in enumerate(after))

    def _write(self, statements: TableSql, deletes: bool) -> None:
        number = statements.table.number
        self.db.execute(statements.upsert, (self.generation,))
        if deletes:
            self.db.execute(statements.delete)
            self.db.execute(statements.remember, (time.time(),))
        if self._any_gone[number]:
            self.db.execute(statements.revive)
        self._any_gone[number] = self._any_gone[number] or deletes

    def _mark(self, numbers: Iterable[int], seq: int, *, old: bool) -> None:
        for number in numbers:
            for occurrence in self.tables[number].occurrences:
                self.marking.mark(self.sql[number].changed, occurrence, seq, old=old)

    def _truncate(self, event: Event, seq: int, mark: bool) -> None:
        statements, table = self.sql[event.table], self.tables[event.table]
        at = position(event, self.log)
        if event.table in self._floors and at <= self._floors[event.table]:
            self.mirror.count("repeated")
            return
        if mark:
            for occurrence in table.occurrences:
                self.marking.mark_all_through(occurrence, seq)
        self.db.execute(statements.truncate, at)
        self._floors[event.table] = at
        self.mirror.set(f"truncated/{table.name}", f"{at[0]}:{at[1]}")
        self.mirror.count("truncates")


__all__ = ["FANOUT_INLINE", "Applier", "Occurrence", "position"]
