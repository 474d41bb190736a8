"""Rows to be read again from the source: who asked for which, and what became of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pipeline.engine.apply import Applier
from pipeline.engine.layout import Table
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import rows, value
from pipeline.events.envelope import Event

Key = tuple[Any, ...]
Place = tuple[int, int]

BY_ITSELF: Final = ""
"""The request of a row that has a value nobody knows: the mirror asks for it itself."""
FIRST_GAP: Final = 10.0
LONGEST_GAP: Final = 3600.0
"""Seconds between two attempts; each gap doubles."""
DUE: Final = (
    "SELECT key FROM refresh INDEXED BY refresh_open WHERE outcome IS NULL AND due <= ? AND source_table = ?"
    " ORDER BY due LIMIT ?"
)
"""Read in the index's order: a million of them cost no more than the few that are taken."""
KEPT: Final = 86_400.0
"""Seconds that an answer waits for who asked."""


@dataclass(slots=True)
class Due:
    """Rows of one table to be read again now, each with its place in the mirror; None: the mirror has no such row."""

    table: str = ""
    places: dict[Key, Place | None] = field(default_factory=dict)


def key_text(key: Sequence[Any]) -> str:
    """A key as the `refresh` table has it."""
    plain = [int(part) if isinstance(part, bool) else part for part in key]
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


class Refreshing:
    """The `refresh` table, and the answers among what is applied."""

    def __init__(self, mirror: Mirror, applier: Applier) -> None:
        self.mirror, self.db, self.applier = mirror, mirror.db, applier
        self.awaited: set[tuple[int, Key]] = set()
        """The rows a snapshot was asked for: the next one of an incremental snapshot is the answer."""

    # ---- asking -------------------------------------------------------------------------------------------

    def ask_for_unknown(self) -> None:
        """What the applier could not fill in."""
        fresh, self.applier.fresh_unknown = self.applier.fresh_unknown, set()
        if fresh:
            self._ask((self.applier.tables[number].name, key) for number, key in fresh)

    def find_unknown(self) -> None:
        """A mirror that lost its requests (a copy, an older one): look for rows with unknown values."""
        if not self.applier.unknown or value(self.db, "SELECT 1 FROM refresh WHERE request = ?", (BY_ITSELF,)):
            return
        for statements in self.applier.sql:
            table = statements.table
            self._ask((table.name, key) for key in rows(self.db, statements.find_unknown))

    def _ask(self, wanted: Iterable[tuple[str, Key]]) -> None:
        now = time.time()
        self.db.executemany(
            "INSERT OR IGNORE INTO refresh(source_table, key, request, asked) VALUES(?, ?, ?, ?)",
            [(table, key_text(key), BY_ITSELF, now) for table, key in wanted],
        )

    def prune(self) -> None:
        """Forget what was answered and never fetched."""
        self.db.execute("DELETE FROM refresh WHERE outcome IS NOT NULL AND asked < ?", (time.time() - KEPT,))

    def begin_anew(self) -> None:
        """A worker that starts does not wait for the next attempt of the one before it."""
        with self.mirror.checkpoint():
            self.db.execute("UPDATE refresh SET attempts = 0, due = 0 WHERE outcome IS NULL")

    # ---- attempts -----------------------------------------------------------------------------------------

    def next(self, limit: int) -> Due:
        """The rows that are due, of the table that has waited longest; their next attempt is put off."""
        now = time.time()
        table = value(
            self.db, "SELECT source_table FROM refresh WHERE outcome IS NULL AND due <= ? ORDER BY due LIMIT 1", (now,)
        )
        if table is None:
            return Due()
        with self.mirror.checkpoint():
            return self._take(table, now, limit)

    def _take(self, name: str, now: float, limit: int) -> Due:
        due = Due(name)
        table = self.mirror.layout.tables.get(name)
        if table is None:
            self.db.execute("DELETE FROM refresh WHERE source_table = ?", (name,))
            return due
        for (text,) in rows(self.db, DUE, (now, name, limit)):
            key = tuple(json.loads(text))
            if key not in due.places and (row := self._wanted(table, key, text)) is not False:
                self._put_off(name, text, now)
                due.places[key] = None if row is None else (row["_commit"], row["_order"])
        return due

    def _wanted(self, table: Table, key: Key, text: str) -> dict[str, Any] | Literal[False] | None:
        """The mirror's row; False where nobody wants it any more: a change has brought the value that was unknown."""
        row = self.mirror.row(table, key)
        if row is not None and bytes in map(type, row.values()):
            return row
        same = "source_table = ? AND key = ?"
        self.db.execute(f"DELETE FROM refresh WHERE {same} AND request = ?", (table.name, text, BY_ITSELF))
        others = value(self.db, f"SELECT 1 FROM refresh WHERE {same} AND outcome IS NULL", (table.name, text))
        return row if others else False

    def _put_off(self, table: str, key: str, now: float) -> None:
        self.db.execute(
            f"UPDATE refresh SET attempts = attempts + 1, due = ? + min({FIRST_GAP} * (1 << min(attempts, 20)), {LONGEST_GAP})"
            " WHERE source_table = ? AND key = ? AND outcome IS NULL",
            (now, table, key),
        )

    def give_back(self, due: Due, error: str, after: float) -> None:
        """These could not be tried: again after so many seconds, and not counted."""
        self._say(due, error, f"attempts = max(0, attempts - 1), due = {time.time() + after},")

    def complain(self, due: Due, error: str) -> None:
        """Say why these were not read; the next attempt comes at its time."""
        self._say(due, error, "")

    def _say(self, due: Due, error: str, also: str) -> None:
        with self.mirror.checkpoint():
            self.db.executemany(
                f"UPDATE refresh SET {also} error = ? WHERE source_table = ? AND key = ? AND outcome IS NULL",
                [(error, due.table, key_text(key)) for key in due.places],
            )

    def expect(self, table: str, keys: Iterable[Key]) -> None:
        """A snapshot of these rows is asked for now."""
        number = self.mirror.layout.tables[table].number
        self.awaited.update((number, key) for key in keys)

    def unanswered(self) -> set[Key]:
        return {key for _, key in self.awaited}

    def expect_nothing(self) -> None:
        self.awaited.clear()

    # ---- answers ------------------------------------------------------------------------------------------

    def answered(self, events: Iterable[Event], seq: int) -> None:
        """Rows of an incremental snapshot that were applied: they are as the source has them."""
        done: dict[tuple[int, str], list[Key]] = {}
        for event in events:
            if event.source.snapshot != "incremental" or not (event.op == "r" or event.moved):
                continue
            key = event.key if event.after is None else event.after[: len(self.applier.tables[event.table].key)]
            assert key is not None
            if (event.table, key) in self.awaited:
                self.awaited.discard((event.table, key))
                outcome = "removed" if event.moved else "refreshed"
                done.setdefault((event.table, outcome), []).append(key)
        for (number, outcome), keys in done.items():
            self._close(number, keys, outcome, seq)
            self._still_unknown(number, keys)

    def undecodable(self, event: Event, read_key: Callable[[bytes | None], Key]) -> None:
        """A row came that can't be decoded: an answer too, if it was asked for."""
        try:
            key = read_key(event.raw[0] if event.raw else None)
        except Exception:  # a dead letter may be anything
            return
        if (event.table, key) in self.awaited:
            self.awaited.discard((event.table, key))
            name = self.applier.tables[event.table].name
            self.db.execute(
                "UPDATE refresh SET outcome = CASE request WHEN '' THEN NULL ELSE 'failed' END, error = ?"
                " WHERE source_table = ? AND key = ? AND outcome IS NULL",
                (event.error, name, key_text(key)),
            )

    def remove(self, table: str, places: Mapping[Key, Place | None]) -> list[Key]:
        """Delete rows that the source had not, unless a change came meanwhile; the keys that are settled.

        Once everything is applied that the source had committed when it was asked (`Mirror.newest_commit`).
        """
        with self.mirror.checkpoint() as seq:
            return self._remove(table, places, seq)

    def _remove(self, table: str, places: Mapping[Key, Place | None], seq: int) -> list[Key]:
        of = self.mirror.layout.tables[table]
        gone: dict[Key, Place] = {}
        settled: list[Key] = []
        for key, place in places.items():
            row = self.mirror.row(of, key)
            now = None if row is None else (row["_commit"], row["_order"])
            if now is not None and now != place:
                continue  # it came back, or is another row by now: the next attempt looks again
            settled.append(key)
            if now is not None and not of.kept:
                gone[key] = now
        if gone:
            self.applier.remove(of.number, gone, seq)
        self._close(of.number, list(gone), "removed", seq)
        self._close(of.number, [key for key in settled if key not in gone], "absent", seq)
        return settled

    def _close(self, number: int, keys: Sequence[Key], outcome: str, seq: int) -> None:
        """Tell who asked, and have the documents written again: what the sink has may be wrong too."""
        name = self.applier.tables[number].name
        texts = [(name, key_text(key)) for key in keys]
        self.db.executemany(
            f"DELETE FROM refresh WHERE source_table = ? AND key = ? AND request = '{BY_ITSELF}'", texts
        )
        self.db.executemany(
            f"UPDATE refresh SET outcome = '{outcome}', seq = {seq}, error = NULL WHERE source_table = ? AND key = ?"
            " AND outcome IS NULL",
            texts,
        )
        self.applier.touch(number, keys, seq)
        self.mirror.count(outcome, len(keys))

    def _still_unknown(self, number: int, keys: Sequence[Key]) -> None:
        """A column that the connector never sends stays unknown: asked for again, ever more rarely."""
        table = self.applier.tables[number]
        for key in keys:
            row = self.mirror.row(table, key)
            if row is None or bytes not in map(type, row.values()):
                continue
            column = next(name for name, item in row.items() if isinstance(item, bytes))
            now = time.time()
            self.db.execute(
                "INSERT OR IGNORE INTO refresh(source_table, key, request, asked, attempts, due, error)"
                " VALUES(?, ?, ?, ?, 10, ?, ?)",
                (table.name, key_text(key), BY_ITSELF, now, now + LONGEST_GAP,
                 f"the connector does not send {table.name}.{column}"),
            )  # fmt: skip


__all__ = ["BY_ITSELF", "Due", "Refreshing", "key_text"]
