"""Changes applied to the mirror, set by set: rows in, and the root keys whose documents may differ marked dirty."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pipeline.engine.layout import Table
from pipeline.engine.marking import Marking
from pipeline.engine.mirror import UNKNOWN, Mirror
from pipeline.engine.sourcelog import LOG_BITS
from pipeline.engine.sql import equal, listed, quoted, value
from pipeline.events.envelope import UNCHANGED, Event, commit_order

Key = tuple[Any, ...]
POSITION: Final = ("_commit", "_order", "_generation")
Place = tuple[int, int]
"""Commit order, and order in the transaction."""


def position(event: Event, log: int) -> Place:
    """A streamed event's place, its log's ordinal above the LSN; (0, LSN) for a snapshot row.

    A snapshot row is applied when Kafka's order says so, and sets no floor. A connector's first transaction does not
    know of a commit before it: there the event's own LSN stands for it, which the row's lock makes right for its row.
    """
    source, block = event.source, event.transaction
    lsn = source.lsn or 0
    if block is None and source.snapshot not in (None, "false", False):
        return 0, log << LOG_BITS | lsn if lsn else 0
    commit = commit_order(source) or lsn
    if not commit:
        return 0, 0
    return log << LOG_BITS | commit, block.total_order if block is not None else lsn


class TableSql:
    """The statements of one mirror table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        name, gone = quoted(table.name), quoted(table.name + "/deleted")
        self.name, self.gone = name, gone
        self.batch, self.changed = quoted("batch/" + table.name), quoted("changed/" + table.name)
        columns, key = listed(table.columns), listed(table.key)
        every = f"{columns}, {', '.join(POSITION)}"
        same_key = equal("m", table.key, "b", table.key)
        rest = [c for c in table.columns if c not in table.key]
        assignments = ", ".join(f"{c} = excluded.{c}" for c in [*map(quoted, rest), *POSITION])
        # a row of a snapshot leaves the floor that streamed events have set
        keeping = ", ".join(f"{c} = excluded.{c}" for c in [*map(quoted, rest), "_generation"]) + (
            ", _order = CASE WHEN excluded._commit = 0 AND _commit > 0 THEN _order ELSE excluded._order END,"
            " _commit = max(_commit, excluded._commit)"
        )
        differs = " OR ".join(f"b.{quoted(c)} IS NOT m.{quoted(c)}" for c in rest) or "0"
        first = quoted(table.key[0])
        marks = ", ".join("?" * (len(table.columns) + 3))
        self.create = (
            f"CREATE TEMP TABLE IF NOT EXISTS {self.batch}({columns}, _commit INTEGER, _order INTEGER, _gone INTEGER,"
            f" PRIMARY KEY({key})) WITHOUT ROWID;"
            f"CREATE TEMP TABLE IF NOT EXISTS {self.changed}({key}, _gone INTEGER, PRIMARY KEY({key})) WITHOUT ROWID"
        )
        self.load = (
            f"INSERT INTO {name}({every}) VALUES({marks}) ON CONFLICT({key}) DO UPDATE SET {keeping}"
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
        self.drop_below_floor = (
            f"DELETE FROM {self.batch} WHERE _commit > 0 AND (_commit, _order) <= (?1, ?2)"
            f" OR _commit = 0 AND _order > 0 AND _order < ?3"
        )
        self.inherit = tuple(
            f"UPDATE {self.batch} AS b SET _commit = m._commit, _order = m._order FROM {of} m"
            f" WHERE b._commit = 0 AND NOT b._gone AND m._commit > 0 AND {same_key}"
            for of in (name, gone)
        )
        unknown = " OR ".join(f"typeof(m.{quoted(c)}) = 'blob'" for c in rest) or "0"
        self.unknown = f"SELECT count(*) FROM {self.batch} b CROSS JOIN {name} m ON {same_key} WHERE {unknown}"
        self.all_unknown = f"SELECT count(*) FROM {name} m WHERE {unknown}"
        self.find_unknown = f"SELECT {key} FROM {name} m WHERE {unknown}"
        self.touch = f"INSERT OR IGNORE INTO {self.changed} VALUES({', '.join('?' * len(table.key))}, 0)"
        self.find_changed = (
            f"INSERT INTO {self.changed} SELECT {listed(table.key, 'b.')}, b._gone FROM {self.batch} b"
            f" LEFT JOIN {name} m ON {same_key}"
            f" WHERE CASE WHEN b._gone THEN m.{first} IS NOT NULL ELSE m.{first} IS NULL OR {differs} END"
        )
        # SQLite writes the index entry of each column that is set, even to the same value: most rows keep their links
        linked = {column for columns in table.indexes for column in columns} - set(table.key)
        alike = " AND ".join([same_key, *(f"+m.{quoted(c)} IS b.{quoted(c)}" for c in sorted(linked))])
        others = ", ".join(f"{c} = excluded.{c}" for c in [*(quoted(c) for c in rest if c not in linked), *POSITION])
        keep_links = f"EXISTS(SELECT 1 FROM {name} m WHERE {alike})"
        ways = ((keep_links, others), (f"NOT {keep_links}", assignments)) if linked else (("1", assignments),)
        self.upserts = tuple(
            f"INSERT INTO {name}({every}) SELECT {columns}, _commit, _order, ? FROM {self.batch} b"
            f" WHERE NOT _gone AND {which} ON CONFLICT({key}) DO UPDATE SET {setting}"
            for which, setting in ways
        )
        self.delete = f"DELETE FROM {name} WHERE ({key}) IN (SELECT {key} FROM {self.batch} WHERE _gone)"
        self.remember = f"INSERT OR REPLACE INTO {gone} SELECT {key}, _commit, _order, ? FROM {self.batch} WHERE _gone AND _commit > 0"
        self.revive = f"DELETE FROM {gone} WHERE ({key}) IN (SELECT {key} FROM {self.batch} WHERE NOT _gone)"
        self.truncate = (
            f"DELETE FROM {name} WHERE _generation <= ?1 >> {LOG_BITS}"
            f" AND CASE WHEN _commit = 0 THEN _order < ?3 ELSE (_commit, _order) < (?1, ?2) END"
        )
        self.empty = f"DELETE FROM {name}"
        self.filler = (None,) * (len(table.columns) - len(table.key))
        self.fill_old = (
            f"INSERT INTO {self.batch} SELECT {key}{', NULL' * len(self.filler)}, ?1 << {LOG_BITS}, 0, 1 FROM {name}"
            f" WHERE _generation < ?1"
        )


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
        """The ordinal of the source log that the events come from; also the generation of the rows they touch."""
        self.since = 1
        """The ordinal of the log with the newest snapshot: what earlier ones left says nothing of today's rows."""
        self._floors: dict[int, tuple[int, int, int]] = {}
        """The newest truncate of a table: commit order, order in the transaction, and what a snapshot row is held against."""
        self.read_floors()
        self.unknown = int(mirror.counters().get("unknown", 0))
        """How many rows hold a value that the source never sent."""
        self.fresh_unknown: set[tuple[int, Key]] = set()
        """Rows that came to hold one since this was last looked at: table and key."""
        self._any_gone = {
            t.number: value(self.db, f"SELECT 1 FROM {self.sql[t.number].gone} LIMIT 1") is not None
            for t in self.tables
        }

    def read_floors(self) -> None:
        for table in self.tables:
            floor = self.mirror.get(f"truncated/{table.name}")
            if floor:
                commit, order, lsn = map(int, str(floor).split(":"))
                self._floors[table.number] = commit, order, lsn

    def apply(self, events: Sequence[Event], seq: int, *, mark: bool) -> None:
        """Apply the events in their order. `mark=False` is for a first load: every root is marked at its end instead."""
        start = 0
        if any(e.op == "t" for e in events) and any(e.partial and e.op == "c" for e in events):
            # a key that changes leaves out what its delete knows, and the truncate parts batches: all in its place first
            events = self._in_order(events)
        for i, event in enumerate(events):
            if event.op == "t":
                self._apply_rows(events[start:i], seq, mark)
                self._truncate(event, seq, mark)
                start = i + 1
            elif event.op == "d" and event.transaction is None and event.source.lsn is None:
                # a Kafka tombstone alone: a row it takes away comes back with the repeats that follow it
                self._apply_rows(events[start:i], seq, mark)
                self._apply_rows(events[i : i + 1], seq, mark)
                start = i + 1
        self._apply_rows(events[start:] if start else events, seq, mark)

    def _apply_rows(self, events: Sequence[Event], seq: int, mark: bool) -> None:
        by_table: dict[int, list[Event]] = {}
        for event in events:
            by_table.setdefault(event.table, []).append(event)
        touched = []
        for number, of_table in by_table.items():
            plain = not (mark or self._any_gone[number] or number in self._floors or self.unknown)
            if plain and not any(e.after is None or e.partial for e in of_table):
                self._load(number, of_table)
                continue
            if self._fill(number, of_table):
                touched.append(number)
        if mark:
            for number in touched:
                self.db.execute(self.sql[number].find_changed)
            self.mark(touched, seq, old=True)
        for number in touched:
            self._write(self.sql[number], by_table[number])
        if mark:
            self.mark(touched, seq, old=False)

    def _load(self, number: int, events: Iterable[Event]) -> None:
        log = self.log
        self.db.executemany(self.sql[number].load, [(*e.after, *position(e, log), log) for e in events])

    def _fill(self, number: int, events: Sequence[Event]) -> bool:
        """The batch table: the last event of each key, UNCHANGED columns filled in; repeats dropped."""
        statements, table = self.sql[number], self.tables[number]
        folded: dict[Key, tuple[Any, ...]] = {}
        unordered = self._fold(table, statements.filler, events, folded)
        self.db.execute(statements.clear)
        self.db.executemany(statements.fill, folded.values())
        self.db.execute(statements.drop_repeats)
        dropped = self.db.changes()
        if number in self._floors:
            self.db.execute(statements.drop_below_floor, self._floors[number])
            dropped += self.db.changes()
        if unordered:
            for inherit in statements.inherit:
                self.db.execute(inherit)
        self.mirror.count("repeated", dropped)
        return dropped < len(folded)

    def _fold(
        self, table: Table, filler: tuple[Any, ...], events: Sequence[Event], folded: dict[Key, tuple[Any, ...]]
    ) -> bool:
        """The last image of each key; whether some event has no place in commit order."""
        width, log, unordered = len(table.key), self.log, False
        moved: dict[Pair, tuple[Any, ...]] | None = None
        mixed: dict[Key, Place] = {}
        if any(e.partial and e.op == "c" for e in events):
            moved, events = {}, self._in_order(events)
        for event in events:
            commit, order = position(event, log)
            unordered = unordered or not commit
            after = event.after
            key = event.key if after is None else after[:width]
            assert key is not None
            before = folded.get(key)
            if before is not None:
                if (commit == 0) != (before[-3] == 0) or key in mixed:
                    place = self._meet(table, key, (commit, order), before, mixed)
                    if place is None:
                        continue
                    commit, order = place
                # Kafka's order is the truth within a partition, but a repeat must not undo what follows it
                elif commit and (commit, order) < (before[-3], before[-2]):
                    continue
            if after is None:
                if moved is not None and event.transaction is not None:
                    known, at = self._known(table, key, before)
                    moved[_pair(event, 1)] = known if at < (commit, order) else ()
                if table.kept and not event.moved:
                    continue
                folded[key] = (*key, *filler, commit, order, 1)
                continue
            if event.partial:
                known, at = self._known(table, key, before)
                if event.op == "c" and at < (commit, order):
                    # the row came from another key: what this one had before says nothing of it
                    known = moved.get(_pair(event, 0), ()) if moved else ()
                after = tuple((known[i] if known else UNKNOWN) if v is UNCHANGED else v for i, v in enumerate(after))
                if UNKNOWN in after:
                    self.fresh_unknown.add((table.number, key))
            folded[key] = (*after, commit, order, 0)
        return unordered

    def _meet(
        self, table: Table, key: Key, place: Place, before: tuple[Any, ...], mixed: dict[Key, Place]
    ) -> Place | None:
        """A snapshot row and a streamed event of one key: the place for the newer image, or None for a repeat.

        Only a streamed event can be a repeat, and only the mirror knows that of it.
        """
        stored = self._floor(table, key)
        floor = mixed[key] if key in mixed else max(stored, (before[-3], before[-2]) if before[-3] else stored)
        mixed[key] = max(place, floor)
        if not place[0]:
            return floor if floor > stored else place
        return place if place > floor else None

    def _floor(self, table: Table, key: Key) -> Place:
        """The newest streamed event that the mirror knows of this row."""
        statements = self.sql[table.number]
        where = " AND ".join(f"{quoted(name)} = ?" for name in table.key)
        found: Place = self._floors.get(table.number, (0, 0, 0))[:2]
        for of in (statements.name, statements.gone):
            for commit, order in self.db.execute(
                f"SELECT _commit, _order FROM {of} WHERE {where} AND _commit > 0", key
            ):
                found = max(found, (commit, order))
        return found

    def _in_order(self, events: Sequence[Event]) -> Sequence[Event]:
        """In the source's order: a key that changes is a delete and a create, in two partitions, and the create
        leaves out what did not change. What has no place in that order stays behind the event of its row, or the
        truncate, before it."""
        places, last, none = [], dict[Any, Place](), (0, 0)
        for event in events:
            key = event.key if event.after is None else event.after[: len(self.tables[event.table].key)]
            place = position(event, self.log)
            if not place[0]:
                place = max(last.get((event.table, key), none), last.get((event.table, None), none))
            last[event.table, key] = place
            places.append(place)
        return [events[i] for i in sorted(range(len(events)), key=places.__getitem__)]

    def _known(self, table: Table, key: Key, before: tuple[Any, ...] | None) -> tuple[tuple[Any, ...], Place]:
        """The row's image before this event, empty where there is none, and its place: in the batch, or in the mirror."""
        if before is not None:
            return () if before[-1] else before, (before[-3], before[-2])
        row = self.mirror.row(table, key)
        if row is None or row["_generation"] < self.since:
            return (), (0, 0)
        return tuple(row.values()), (row["_commit"], row["_order"])

    def take_away(self, number: int) -> int:
        """Delete the rows that are gone in the batch table, and remember them; how many."""
        statements, had = self.sql[number], self.db.total_changes()
        before = value(self.db, statements.unknown) if self.unknown else 0
        self.db.execute(statements.delete)
        gone = self.db.total_changes() - had
        self.db.execute(statements.remember, (time.time(),))
        self._any_gone[number] = self._any_gone[number] or gone > 0
        if before:
            self._count_unknown(-before)
        return gone

    def _write(self, statements: TableSql, events: Sequence[Event]) -> None:
        number = statements.table.number
        deletes = any(e.after is None for e in events)
        counted = self.unknown or any(e.partial for e in events)
        before = value(self.db, statements.unknown) if counted else 0
        for statement in statements.upserts:
            self.db.execute(statement, (self.log,))
        if deletes:
            self.db.execute(statements.delete)
            self.db.execute(statements.remember, (time.time(),))
        if self._any_gone[number]:
            self.db.execute(statements.revive)
        self._any_gone[number] = self._any_gone[number] or deletes
        if counted:
            self._count_unknown(value(self.db, statements.unknown) - before)

    def _count_unknown(self, more: int) -> None:
        self.unknown += more
        self.mirror.count("unknown", more)

    def mark(self, numbers: Iterable[int], seq: int, *, old: bool) -> None:
        for number in numbers:
            for occurrence in self.tables[number].occurrences:
                self.marking.mark(self.sql[number].changed, occurrence, seq, old=old)

    def remove(self, number: int, places: Mapping[Key, Place], seq: int) -> None:
        """Delete these rows as if the source had said so where each stands."""
        statements = self.sql[number]
        self.db.execute(statements.clear)
        self.db.executemany(statements.fill, [(*key, *statements.filler, *place, 1) for key, place in places.items()])
        self.db.execute(statements.find_changed)
        self.mark([number], seq, old=True)
        self.take_away(number)
        self.mark([number], seq, old=False)

    def touch(self, number: int, keys: Sequence[Key], seq: int) -> None:
        """Have the documents that these rows are part of written again."""
        self.db.execute(self.sql[number].clear)
        self.db.executemany(self.sql[number].touch, keys)
        self.mark([number], seq, old=False)

    def _truncate(self, event: Event, seq: int, mark: bool) -> None:
        statements, table = self.sql[event.table], self.tables[event.table]
        if table.kept:
            return
        lsn = self.log << LOG_BITS | (event.source.lsn or 0)
        commit, order = position(event, self.log)
        known = self._floors.get(event.table)
        if known is not None and (commit, order) <= known[:2]:
            self.mirror.count("repeated")
            return
        if mark:
            for occurrence in table.occurrences:
                self.marking.mark_all_through(occurrence, seq)
        before = value(self.db, statements.all_unknown) if self.unknown else 0
        if commit:
            self.db.execute(statements.truncate, (commit, order, lsn))
            self._floors[event.table] = commit, order, lsn
            self.mirror.set(f"truncated/{table.name}", f"{commit}:{order}:{lsn}")
        else:
            self.db.execute(statements.empty)
        if before:
            self._count_unknown(value(self.db, statements.all_unknown) - before)
        self.mirror.count("truncates")


Pair = tuple[str, int, int | None]


def _pair(event: Event, ahead: int) -> Pair:
    """What the delete and the create of a key that changes have in common: one LSN, and neighbouring orders."""
    block = event.transaction
    if block is None:
        return "", 0, None
    return block.id, block.total_order + ahead, event.source.lsn


__all__ = ["Applier", "position"]
