"""The mirror: one SQLite file with the newest known rows a projection needs, and everything a checkpoint holds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import apsw

from pipeline.engine.groups import group_tables
from pipeline.engine.layout import Layout, Table
from pipeline.engine.revision import RENEW_AT
from pipeline.engine.sql import connect, listed, quoted, rows, transaction, value
from pipeline.errors import CheckpointError, Fenced

FORMAT: Final = 2
UNKNOWN: Final = b"?"
"""A column whose value the source never sent: a blob, which no source value is (bytea comes as base64 text)."""

BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
"""Another one after each start of the machine, where its kernel tells."""

_FIXED: Final = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS offsets(partition TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS source_log(ordinal INTEGER PRIMARY KEY, connector TEXT, identity TEXT, seen_at REAL);
CREATE TABLE IF NOT EXISTS marks(seq INTEGER NOT NULL, connector TEXT NOT NULL, lsn INTEGER NOT NULL, txid TEXT,
    ts_ms INTEGER NOT NULL, PRIMARY KEY(connector, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS released(txid TEXT NOT NULL, lsn INTEGER NOT NULL, seq INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS partial(txid TEXT PRIMARY KEY, applied INTEGER NOT NULL, given_up INTEGER NOT NULL,
    expected INTEGER, marks TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS staged(position INTEGER PRIMARY KEY AUTOINCREMENT, partition TEXT NOT NULL,
    offset INTEGER NOT NULL, txid TEXT NOT NULL, number INTEGER NOT NULL, op TEXT NOT NULL, event BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS staged_by_transaction ON staged(txid, number);
CREATE TABLE IF NOT EXISTS dead_letters(id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, partition INTEGER
    NOT NULL, offset INTEGER NOT NULL, key BLOB, value BLOB, error TEXT NOT NULL, txid TEXT, at REAL NOT NULL,
    UNIQUE(topic, partition, offset));
CREATE TABLE IF NOT EXISTS sinks(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL DEFAULT 0,
    written INTEGER NOT NULL DEFAULT 0, watermark TEXT);
CREATE TABLE IF NOT EXISTS counters(name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS fanout(id INTEGER PRIMARY KEY AUTOINCREMENT, occurrence INTEGER NOT NULL, key TEXT NOT NULL,
    seq INTEGER NOT NULL, cursor TEXT, UNIQUE(occurrence, key));
CREATE TABLE IF NOT EXISTS refresh(source_table TEXT NOT NULL, key TEXT NOT NULL, request TEXT NOT NULL, asked REAL NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0, outcome TEXT, error TEXT, seq INTEGER,
    PRIMARY KEY(source_table, key, request)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS refresh_open ON refresh(due) WHERE outcome IS NULL;
"""


class Mirror:
    """The writing side of one mirror file; used from one thread.

    Every write happens inside `checkpoint()`, which refuses to go on (Fenced) when another worker has taken the file.
    """

    def __init__(self, path: str, layout: Layout, *, owner: str, fingerprint: str = "") -> None:
        self.path, self.layout, self.owner = path, layout, owner
        self.db: apsw.Connection = connect(path)
        with self._surely():
            self._create(fingerprint)
        if int(self.get("seq") or 0) >= RENEW_AT:
            self._renew()
        self.seq: int = int(self.get("seq") or 0)
        self._loading = not self.get("loaded")
        if self._loading:
            self._sort_in("FILE")

    def _create(self, fingerprint: str) -> None:
        with transaction(self.db):
            found = value(self.db, "SELECT 1 FROM sqlite_schema WHERE name = 'meta'")
            self.db.execute(_FIXED)
            if found is None:
                self.set("format", FORMAT)
                self.set("fingerprint", fingerprint)
                self.set("labelled", 1)
            elif self.get("format") != FORMAT:
                raise CheckpointError(
                    f"The mirror {self.path} has format {self.get('format')}, this program {FORMAT}: move it away, and the worker makes it again from the log."
                )
            elif fingerprint and self.get("fingerprint") not in ("", fingerprint):
                raise CheckpointError(
                    f"The projection's definition changed under the mirror {self.path}: raise its version, or run `cdc plan`."
                )
            self.set("owner", self.owner)
            if self.get("boot") not in (None, "", boot := _boot()):
                doubt(self.db)  # the machine went down under it: the disk may lack its last checkpoints
            self.set("boot", boot)
            for table in self.layout.tables.values():
                self._create_table(table)
            self._create_keys()

    def _create_table(self, table: Table) -> None:
        key = listed(table.key)
        columns = [
            f"{quoted(name)}{' INTEGER' if table.integer_key and name == table.key[0] else ''}"
            for name in table.columns
        ]
        columns += [f"_{meta} INTEGER NOT NULL DEFAULT 0" for meta in ("commit", "order", "generation")]
        without = "" if table.integer_key else " WITHOUT ROWID"
        name = quoted(table.name)
        self.db.execute(f"CREATE TABLE IF NOT EXISTS {name}({', '.join(columns)}, PRIMARY KEY({key})){without}")
        gone = quoted(table.name + "/deleted")
        self.db.execute(
            f"CREATE TABLE IF NOT EXISTS {gone}({key}, _commit INTEGER NOT NULL, _order INTEGER NOT NULL, _at REAL NOT NULL,"
            f" PRIMARY KEY({key})) WITHOUT ROWID"
        )

    def create_indexes(self) -> None:
        """The join columns' indexes; made after the first load, because sorting once is cheaper than inserting."""
        for table in self.layout.tables.values():
            for columns in sorted(table.indexes):
                name = quoted(f"{table.name}({','.join(columns)})")
                self.db.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {quoted(table.name)}({listed(columns)})")
        self.db.execute("ANALYZE")

    def _create_keys(self) -> None:
        """`dirty` and `quarantine` carry the root's key in columns of their own, so that they join without decoding.

        `seq` is the newest change of the document, `since` the oldest that no sink has acknowledged: the watermark's bound.
        """
        keys = ", ".join(self.layout.written_key)
        self.db.execute(
            f"CREATE TABLE IF NOT EXISTS dirty(sink INTEGER NOT NULL, {keys}, seq INTEGER NOT NULL, since INTEGER NOT NULL,"
            f" low INTEGER NOT NULL, PRIMARY KEY(sink, {keys})) WITHOUT ROWID"
        )
        self.db.execute("CREATE INDEX IF NOT EXISTS dirty_by_age ON dirty(sink, low, since)")
        self.db.execute(
            f"CREATE TABLE IF NOT EXISTS quarantine(sink INTEGER NOT NULL, {keys}, kind TEXT NOT NULL, error TEXT NOT NULL,"
            f" attempts INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY(sink, {keys})) WITHOUT ROWID"
        )
        self.db.execute(
            f"CREATE TABLE IF NOT EXISTS gone(id INTEGER PRIMARY KEY, sink INTEGER NOT NULL, at REAL NOT NULL, {keys})"
        )
        for statement in group_tables(self.layout):
            self.db.execute(statement)

    def _renew(self) -> None:
        """The sequence begins anew, as far back as something is still owed: whoever opens a mirror claims a new epoch
        before it writes a document, so later ones are above all before."""
        columns = rows(
            self.db,
            "SELECT m.name, p.name FROM sqlite_schema m JOIN pragma_table_info(m.name) p WHERE m.type = 'table'"
            " AND m.name NOT LIKE '%.%' AND m.name NOT LIKE 'sqlite%' AND p.name IN ('seq', 'since')",  # a source's table has a dot in its name
        )
        found = [
            f"SELECT min({column}) FROM {table}" for table, column in columns if table not in ("released", "refresh")
        ]
        found.append("SELECT min(value) FROM meta WHERE name IN ('seq', 'owed')")
        with transaction(self.db):
            back = min(n for (n,) in rows(self.db, " UNION ALL ".join(found)) if n) - 1
            for table, column in columns:
                self.db.execute(f"UPDATE {table} SET {column} = {column} - ?", (back,))
            self.db.execute("UPDATE meta SET value = value - ? WHERE name IN ('seq', 'owed')", (back,))

    # ---- one transaction a checkpoint ---------------------------------------------------------------------

    @contextmanager
    def checkpoint(self) -> Iterator[int]:
        """One mirror transaction with the next sequence; another owner or another sequence than ours means: fenced."""
        with transaction(self.db):
            if self.get("owner") != self.owner or int(self.get("seq") or 0) != self.seq:
                raise Fenced(f"Another worker has taken the mirror {self.path}: this one stops.")
            seq = self.seq + 1
            yield seq
            self.set("seq", seq)
        self.seq = seq
        if self._loading and self.get("loaded"):
            self._loading = False
            self._sort_in("MEMORY")

    def get(self, name: str) -> Any:
        return value(self.db, "SELECT value FROM meta WHERE name = ?", (name,))

    def set(self, name: str, new: Any) -> None:
        self.db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (name, new))

    def offsets(self) -> dict[str, int]:
        """`{"topic/partition": next offset}`."""
        return dict(rows(self.db, "SELECT partition, next FROM offsets"))

    def set_offsets(self, offsets: Mapping[str, int]) -> None:
        self.db.executemany("INSERT OR REPLACE INTO offsets VALUES(?, ?)", list(offsets.items()))

    def count(self, name: str, n: int = 1) -> None:
        """Add to a counter that survives."""
        if n:
            self.db.execute(
                "INSERT INTO counters VALUES(?, ?) ON CONFLICT(name) DO UPDATE SET n = n + excluded.n", (name, n)
            )

    def counters(self) -> dict[str, int]:
        return dict(rows(self.db, "SELECT name, n FROM counters"))

    def newest_commit(self, connector: str) -> int:
        """The source's position up to which everything is applied; 0 before the first."""
        found = value(self.db, "SELECT lsn FROM marks WHERE connector = ? ORDER BY seq DESC LIMIT 1", (connector,))
        return int(found or 0)

    # ---- dead letters -------------------------------------------------------------------------------------

    def add_dead_letter(
        self, partition: str, offset: int, raw: tuple[bytes | None, bytes | None], error: str, txid: str | None
    ) -> None:
        topic, _, number = partition.rpartition("/")
        self.db.execute(
            "INSERT OR IGNORE INTO dead_letters(topic, partition, offset, key, value, error, txid, at)"
            " VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (topic, int(number), offset, raw[0], raw[1], error, txid, time.time()),
        )

    # ---- sinks --------------------------------------------------------------------------------------------

    def sink_id(self, name: str) -> int:
        self.db.execute("INSERT OR IGNORE INTO sinks(name) VALUES(?)", (name,))
        return int(value(self.db, "SELECT id FROM sinks WHERE name = ?", (name,)))

    def epoch(self, sink: int) -> int:
        """The newest epoch that this mirror knows of at that sink."""
        return int(value(self.db, "SELECT epoch FROM sinks WHERE id = ?", (sink,)) or 0)

    def set_epoch(self, sink: int, epoch: int) -> None:
        self.db.execute("UPDATE sinks SET epoch = ? WHERE id = ?", (epoch, sink))

    def sinks(self) -> dict[str, int]:
        return {name: number for number, name in rows(self.db, "SELECT id, name FROM sinks ORDER BY id")}

    # ---- rows ---------------------------------------------------------------------------------------------

    def row(self, table: Table, key: tuple[Any, ...]) -> dict[str, Any] | None:
        """One row with its position, for explain and for resolving UNCHANGED."""
        names = [*table.columns, "_commit", "_order", "_generation"]
        where = " AND ".join(f"{quoted(name)} = ?" for name in table.key)
        found = rows(self.db, f"SELECT {listed(names)} FROM {quoted(table.name)} WHERE {where}", key)
        return dict(zip(names, found[0], strict=True)) if found else None

    def _sort_in(self, place: str) -> None:
        """In files beside the mirror while it loads, for the indexes of large tables are sorted at its end; in memory all else is faster."""
        os.environ.setdefault("SQLITE_TMPDIR", str(Path(self.path).resolve().parent))
        made = rows(self.db, "SELECT sql FROM sqlite_temp_schema WHERE sql IS NOT NULL")
        self.db.execute(f"PRAGMA temp_store={place}")
        for (sql,) in made:  # temporary tables are gone by that
            self.db.execute(sql.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))

    @contextmanager
    def _surely(self) -> Iterator[None]:
        """What is committed in here is on the disk afterwards, with all before it."""
        self.db.execute("PRAGMA synchronous=FULL")
        try:
            yield
        finally:
            self.db.execute("PRAGMA synchronous=NORMAL")

    def close(self) -> None:
        # a full disk, say: then it is as if this process had been killed
        with suppress(apsw.Error), self._surely(), transaction(self.db):
            if self.get("owner") == self.owner:
                self.set("boot", "")
        self.db.close()


def doubt(db: apsw.Connection) -> None:
    """Sinks may hold what was written from a newer state of this mirror (`Ownership.claimed`)."""
    db.execute("INSERT OR REPLACE INTO meta SELECT 'doubted/' || id, 1 FROM sinks")


def _boot() -> str:
    try:
        return BOOT.read_text("ascii").strip()
    except OSError:
        return ""
