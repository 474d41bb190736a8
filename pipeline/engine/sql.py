"""SQLite: how a mirror's file is opened, and how names are written into SQL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import apsw

from pipeline.engine.ordering import register


def quoted(name: str) -> str:
    """An identifier as SQL text."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def listed(names: Iterable[str], prefix: str = "") -> str:
    """`a.x, a.y` for the names x and y and the prefix `a.`."""
    return ", ".join(prefix + quoted(name) for name in names)


def equal(left: str, left_names: Sequence[str], right: str, right_names: Sequence[str]) -> str:
    """`l.a = +r.b AND …`, pair by pair; the left side is looked up in its index.

    The plus takes the right column's affinity away: an INTEGER one would forbid an index on a column that has none.
    """
    return " AND ".join(
        f"{left}.{quoted(a)} = +{right}.{quoted(b)}" for a, b in zip(left_names, right_names, strict=True)
    )


def connect(path: str, *, readonly: bool = False) -> apsw.Connection:
    """Open a mirror. WAL and synchronous=NORMAL: what a power cut takes is read again from Kafka (`mirror.doubt`)."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    flags |= 0 if readonly else apsw.SQLITE_OPEN_CREATE
    db = apsw.Connection(path, flags=flags, statementcachesize=400)
    db.set_busy_timeout(30_000)
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "temp_store=MEMORY",
        "cache_size=-16384",
        "wal_autocheckpoint=4000",
        *(("query_only=ON",) if readonly else ()),
    ):
        db.execute(f"PRAGMA {pragma}").fetchall()
    register(db)
    return db


@contextmanager
def transaction(db: apsw.Connection, kind: str = "IMMEDIATE") -> Iterator[apsw.Connection]:
    """One transaction: committed at the end, rolled back on any exception."""
    db.execute(f"BEGIN {kind}")
    try:
        yield db
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def rows(db: apsw.Connection, statement: str, bindings: Any = ()) -> list[tuple[Any, ...]]:
    return list(db.execute(statement, bindings))


def value(db: apsw.Connection, statement: str, bindings: Any = ()) -> Any:
    """The first column of the first row, None where there is none."""
    for row in db.execute(statement, bindings):
        return row[0]
    return None
