"""What a documents' topic has by ids: Kafka finds nothing by its key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

_TABLE = """
CREATE TABLE last(id BLOB PRIMARY KEY, revision INTEGER NOT NULL, partition INTEGER NOT NULL, place INTEGER NOT NULL,
  there INTEGER NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Last:
    """The last record of an id: where it is, its revision, and whether it has a document."""

    id: bytes
    revision: int
    partition: int
    offset: int
    there: bool


class Index:
    """The last record of each id of one topic, up to `positions`; in a file of its own that is gone with the process."""

    def __init__(self, topic: str = "") -> None:
        self.topic = topic
        """The topic's id: one made anew takes an index made anew."""
        self.positions: dict[int, int] = {}
        """The offset that comes next, by partition."""
        self.written: dict[int, int] = {}
        """Where what this process has written ends, by partition; what others wrote before it need not be known."""
        self._db = apsw.Connection("")
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -16000"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.execute(_TABLE)

    def learn(self, found: Iterable[Last]) -> None:
        """Records of the topic, in the order of each partition."""
        rows = [(one.id, one.revision, one.partition, one.offset, one.there) for one in found]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO last VALUES(?, ?, ?, ?, ?)", rows)
        self._db.execute("COMMIT")

    def get(self, ids: Iterable[bytes]) -> dict[bytes, Last]:
        """Those of the ids that are known."""
        query = "SELECT * FROM last WHERE id = ?"
        rows: list[Any] = [row for id in ids for row in self._db.execute(query, (id,))]
        return {row[0]: Last(*row) for row in rows}

    def pages(self, rows: int) -> Iterator[Sequence[tuple[bytes, int]]]:
        """Ids and revisions of all documents."""
        query, after = "SELECT id, revision FROM last WHERE id > ? AND there ORDER BY id LIMIT ?", b""
        page: list[Any]
        while page := list(self._db.execute(query, (after, rows))):
            yield page
            after = page[-1][0]

    def count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM last WHERE there").get)

    def forget_deleted(self) -> None:
        self._db.execute("DELETE FROM last WHERE NOT there")

    def close(self) -> None:
        self._db.close()
