"""From changed rows up to the root keys whose documents may differ, by SQL over indexed foreign keys."""

from __future__ import annotations

import json
from typing import Final

from pipeline.engine.layout import Occurrence, Step
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import equal, listed, quoted, rows, value

FANOUT_INLINE: Final = 1000
"""A change that touches more documents than this is worked off in chunks, below the priority of fresh changes."""


class Marking:
    """Fills `dirty` and `fanout`; runs inside the mirror's open checkpoint."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.db, self.layout = mirror, mirror.db, mirror.layout
        keys = ", ".join(self.layout.root_key)
        self._grouped = self.layout.aggregate is not None
        if self._grouped:  # the documents are not written, but counted in their groups
            self._into, self._each, unique = f"INSERT INTO touched({keys}, seq, since, low) SELECT ", "", keys
        else:
            self._into = f"INSERT INTO dirty(sink, {keys}, seq, since, low) SELECT s.id, "
            self._each, unique = " CROSS JOIN sinks s", f"sink, {keys}"
        self._conflict = (
            f" ON CONFLICT({unique}) DO UPDATE SET seq = excluded.seq,"
            " since = min(since, excluded.since), low = min(low, excluded.low)"
        )
        self._statements: dict[tuple[int, bool], str] = {}
        self._oldest: int | None = value(self.db, "SELECT min(seq) FROM fanout")
        self.owed: int | None = None
        """The sequence at which a source log began whose sweep is still to come."""
        self.held: int | None = None
        """The sequence since which no document may be written; what a part of a transaction undid is not dirty."""

    def mark(self, changed: str, occurrence: Occurrence, seq: int, *, old: bool) -> None:
        """Mark what the rows in `changed` touch at this place: through their old links, or through their new ones."""
        links, key = occurrence.links, self.layout.tables[occurrence.table].key
        through_key = set(links) <= set(key)
        if old and through_key:
            return  # the links are part of the key, so both images have the same
        statement = self._statements.get((occurrence.number, old))
        if statement is None:
            statement = self._statements[occurrence.number, old] = self._mark_sql(changed, occurrence, through_key, old)
        widens = any(step.widens for step in occurrence.steps)
        sinks = 1 if self._grouped else len(self.mirror.sinks())
        self.db.execute(statement, (seq, self._since(seq), *((FANOUT_INLINE * sinks,) if widens else ())))
        if widens and self.db.changes() >= FANOUT_INLINE * sinks:
            self._start_fanout(changed, occurrence, through_key, seq)

    def _mark_sql(self, changed: str, occurrence: Occurrence, through_key: bool, old: bool) -> str:
        key = self.layout.tables[occurrence.table].key
        start, alias = f"FROM {changed} c", "c"
        if not through_key:
            start += f" CROSS JOIN {quoted(occurrence.table)} n ON {equal('n', key, 'c', key)}"
            alias = "n"
        joins, root = climb(occurrence.steps, alias)
        limit = " LIMIT ?3" if any(step.widens for step in occurrence.steps) else ""
        return (
            f"{self._into}{listed(self.layout.root.key, root + '.')}, ?1, ?2, 0 {start}{joins}"
            f"{self._each} WHERE true{limit}{self._conflict}"
        )

    def _start_fanout(self, changed: str, occurrence: Occurrence, through_key: bool, seq: int) -> None:
        key = self.layout.tables[occurrence.table].key
        start = f"FROM {changed} c"
        if not through_key:
            start += f" CROSS JOIN {quoted(occurrence.table)} n ON {equal('n', key, 'c', key)}"
        prefix = "c." if through_key else "n."
        links = listed(occurrence.links, prefix)
        known = " AND ".join(f"typeof({prefix}{quoted(link)}) NOT IN ('blob', 'null')" for link in occurrence.links)
        self.db.execute(
            f"INSERT INTO fanout(occurrence, key, seq) SELECT DISTINCT ?, json_array({links}), ? {start} WHERE {known}"
            " ON CONFLICT(occurrence, key) DO UPDATE SET seq = min(seq, excluded.seq), cursor = NULL",
            (occurrence.number, since := self._since(seq)),
        )
        self._oldest = since

    def mark_all_through(self, occurrence: Occurrence, seq: int) -> None:
        """Mark every root that has any row at this place (before a truncate)."""
        joins, root = climb(occurrence.steps, "c")
        self.db.execute(
            f"{self._into}{listed(self.layout.root.key, root + '.')}, ?1, ?2, 0 FROM {quoted(occurrence.table)} c{joins}"
            f"{self._each} WHERE true{self._conflict}",
            (seq, self._since(seq)),
        )

    def mark_every_root(self, seq: int, *, since: int | None = None) -> int:
        """Every document is to be written (again); how many. `since` bounds the watermark until they are."""
        self.db.execute(  # not by an index of other columns, which has the keys in no order: twenty times as long
            f"{self._into}{listed(self.layout.root.key, 'r.')}, ?1, ?2, 1 FROM {quoted(self.layout.root.name)} r NOT INDEXED"
            f"{self._each} WHERE true{self._conflict}",
            (seq, self._since(seq) if since is None else since),
        )
        return self.db.changes()

    def mark_every_deleted_root(self, seq: int, *, since: int) -> None:
        """After a load nobody knows what the sinks held before: what is known to be deleted is deleted there too."""
        self.db.execute(
            f"{self._into}{listed(self.layout.root.key, 'r.')}, ?1, ?2, 1 FROM"
            f" {quoted(self.layout.root.name + '/deleted')} r{self._each} WHERE true{self._conflict}",
            (seq, since),
        )

    def continue_fanout(self, seq: int, limit: int) -> bool:
        """Work off one chunk of the oldest fan-out; False where there is none."""
        found = rows(self.db, "SELECT id, occurrence, key, cursor, seq FROM fanout ORDER BY id LIMIT 1")
        if not found:
            return False
        number, occurrence_number, key, cursor, since = found[0]
        occurrence = next(
            o for t in self.layout.tables.values() for o in t.occurrences if o.number == occurrence_number
        )
        at = next(i for i, step in enumerate(occurrence.steps) if step.widens)
        chunk_key = self.layout.tables[occurrence.steps[at].table].key
        chunk = self._chunk_sql(occurrence, at, cursor is not None)
        bindings = (*json.loads(key), *(json.loads(cursor) if cursor else ()), limit)
        ordered = listed(chunk_key, "x.")
        last = rows(
            self.db,
            f"SELECT {ordered} FROM ({chunk}) x ORDER BY {', '.join(c + ' DESC' for c in ordered.split(', '))} LIMIT 1",
            bindings,
        )
        joins, root = climb(occurrence.steps[at + 1 :], "p")
        again = equal("p", chunk_key, "x", chunk_key)
        self.db.execute(
            f"{self._into}{listed(self.layout.root.key, root + '.')}, ?, ?, 1 FROM ({chunk}) x CROSS JOIN"
            f" {quoted(occurrence.steps[at].table)} p ON {again}{joins}{self._each} WHERE true{self._conflict}",
            (seq, since, *bindings),
        )
        if last and len(rows(self.db, chunk, bindings)) == limit:
            self.db.execute("UPDATE fanout SET cursor = ? WHERE id = ?", (json.dumps(last[0]), number))
        else:
            self.db.execute("DELETE FROM fanout WHERE id = ?", (number,))
            self._oldest = value(self.db, "SELECT min(seq) FROM fanout")
        return True

    def _chunk_sql(self, occurrence: Occurrence, at: int, resumed: bool) -> str:
        """The keys of the next rows at the first step that widens, in the order of their key."""
        steps = occurrence.steps
        key = self.layout.tables[steps[at].table].key
        first = quoted(steps[0].table)
        climb = f"FROM {first} p0"
        for i, step in enumerate(steps[1 : at + 1], 1):
            climb += f" CROSS JOIN {quoted(step.table)} p{i} ON {equal(f'p{i}', step.columns, f'p{i - 1}', step.below)}"
        where = " AND ".join(f"p0.{quoted(column)} = ?" for column in steps[0].columns)
        names = listed(key, f"p{at}.")
        after = f" AND ({names}) > ({', '.join('?' * len(key))})" if resumed else ""
        return f"SELECT {names} {climb} WHERE {where}{after} ORDER BY {names} LIMIT ?"

    def oldest(self) -> int | None:
        """The lowest sequence of an unfinished fan-out."""
        return self._oldest

    def oldest_touched(self) -> int | None:
        """The oldest change that is not in an aggregate's groups."""
        found: int | None = value(self.db, "SELECT min(since) FROM touched") if self._grouped else None
        return found

    def _since(self, seq: int) -> int:
        """A document may leave the path of an unfinished fan-out before its turn: it owes what the fan-out owes."""
        return min(n for n in (seq, self._oldest, self.owed, self.held) if n is not None)


def climb(steps: tuple[Step, ...], alias: str) -> tuple[str, str]:
    """The joins from the row `alias` up to the root, and the root's alias. CROSS JOIN keeps SQLite to this order."""
    text = ""
    for i, step in enumerate(steps):
        above = f"u{i}"
        text += f" CROSS JOIN {quoted(step.table)} {above} ON {equal(above, step.columns, alias, step.below)}"
        alias = above
    return text, alias
