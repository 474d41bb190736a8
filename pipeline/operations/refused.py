"""What could not be decoded, built or written: dead letters and the quarantine, as the mirrors hold them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import apsw
from pydantic import BaseModel

from pipeline.authoring.aggregates import Aggregate
from pipeline.authoring.projection import Projection
from pipeline.engine.refresh import key_text
from pipeline.engine.sql import connect, rows, transaction
from pipeline.errors import MalformedEnvelope, OperationError
from pipeline.events.envelope import TableDecoder
from pipeline.operations.layouts import layout_of
from pipeline.operations.refresh import PATIENCE, refresh_parts
from pipeline.operations.status import mirror_files
from pipeline.settings import Settings


class DeadLetter(BaseModel):
    """A change that could not be decoded. `key` and `value` are its bytes, as text where they are UTF-8, else base64.

    Where several workers share the documents, each partition has letters of its own: `id` modulo their number is the partition.
    """

    projection: str
    id: int
    topic: str
    partition: int
    offset: int
    error: str
    transaction: str | None
    at: datetime
    key: str | None
    value: str | None


class Unretried(BaseModel):
    """A dead letter whose row could not be read again, and why; it is kept."""

    id: int
    reason: str


class Retried(BaseModel):
    """What a retry of dead letters did: `retried` are gone, for their rows are right now."""

    projection: str
    retried: list[int]
    left: list[Unretried]


class Quarantined(BaseModel):
    """A document that could not be built (`failed`, `pending`) or that the sink refused (`refused`)."""

    projection: str
    sink: str
    key: list[Any]
    kind: str
    error: str
    attempts: int
    at: datetime


def _all(settings: Settings, projection: Projection[Any], sql: str) -> list[tuple[int, tuple[Any, ...]]]:
    """The lines of its mirror, or of those of its partitions; which partition's."""
    found: list[tuple[int, tuple[Any, ...]]] = []
    for part, path in mirror_files(settings, projection).items():
        with closing(connect(str(path), readonly=True)) as db:
            found += [(part, row) for row in rows(db, sql)]
    return found


def _here(projection: Projection[Any]) -> str:
    return "" if projection.workers == 1 else " on this machine (each has those of its own partitions)"


def _text(data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def dead_letters(settings: Settings, projection: Projection[Any]) -> list[DeadLetter]:
    """Oldest first."""
    wanted = "SELECT id, topic, partition, offset, error, txid, at, key, value FROM dead_letters ORDER BY id"
    found = [
        DeadLetter(
            projection=projection.name, id=n * projection.workers + part, topic=topic, partition=partition,
            offset=offset, error=error, transaction=txid, at=datetime.fromtimestamp(at, UTC), key=_text(key), value=_text(data),
        )
        for part, (n, topic, partition, offset, error, txid, at, key, data) in _all(settings, projection, wanted)
    ]  # fmt: skip
    return sorted(found, key=lambda letter: letter.at)


def discard_dead_letters(settings: Settings, projection: Projection[Any], ids: list[int]) -> int:
    """Forget these; how many there were."""
    gone, workers = 0, projection.workers
    for part, path in mirror_files(settings, projection).items():
        own = [(n // workers,) for n in ids if n % workers == part]
        with closing(connect(str(path))) as db:
            with transaction(db):
                db.executemany("DELETE FROM dead_letters WHERE id = ?", own)
            gone += db.total_changes()
    return gone


def retry_dead_letters(
    settings: Settings, projection: Projection[Any], ids: Sequence[int] | None = None, *, patience: float = PATIENCE
) -> Retried:
    """Have the rows behind these letters, or behind all, read again from the source; the letters themselves never are.

    Raises OperationError where there is no such letter, or no worker runs.
    """
    letters = {n: (table, key) for n, table, key in _letters(settings, projection)}
    if unknown := sorted(set(ids or ()) - letters.keys()):
        raise OperationError(f"{projection.name} has no dead letter {unknown[0]}; see cdc deadletters list.")
    wanted = {n: letters[n] for n in ids or letters}
    reasons = {n: key for n, (_, key) in wanted.items() if isinstance(key, str)}
    rows_behind = {n: (table, key) for n, (table, key) in wanted.items() if not isinstance(key, str)}
    keys: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for n, (table, key) in rows_behind.items():
        keys.setdefault(projection.parts[n % projection.workers], {}).setdefault(table, []).append(key)
    report = refresh_parts(settings, projection, keys, patience=patience)
    failed = {(row.part, row.table, key_text(row.key)): row.reason for row in report.left}
    for n, (table, key) in rows_behind.items():
        if (reason := failed.get((projection.parts[n % projection.workers], table, key_text(key)))) is not None:
            reasons[n] = reason
    retried = [n for n in wanted if n not in reasons]
    discard_dead_letters(settings, projection, retried)
    left = [Unretried(id=n, reason=reason) for n, reason in sorted(reasons.items())]
    return Retried(projection=projection.name, retried=retried, left=left)


def _letters(settings: Settings, projection: Projection[Any]) -> Iterator[tuple[int, str, tuple[Any, ...] | str]]:
    """Each letter's table and the key of its row; or why there is none to be read."""
    tables = layout_of(settings, projection).tables
    for part, (row, topic, data) in _all(settings, projection, "SELECT id, topic, key FROM dead_letters ORDER BY id"):
        n = row * projection.workers + part
        name = ".".join(topic.split(".")[-2:])
        table = tables.get(name)
        if table is None:
            yield n, name, f"{topic} has no rows that could be asked for: discard it"
            continue
        try:
            yield n, name, TableDecoder(name, table.number, table.wires, table.key).read_key(data)
        except MalformedEnvelope as error:
            yield n, name, f"{error} Read the whole table again, cdc backfill {name}, then discard it."


def _shown(projection: Projection[Any], key: tuple[Any, ...]) -> list[Any]:
    """A key as people write it; a group's is kept as a JSON text."""
    if not issubclass(projection.shape, Aggregate):
        return list(key)
    found = json.loads(key[0])
    return found if isinstance(found, list) else [found]


def quarantined(settings: Settings, projection: Projection[Any]) -> list[Quarantined]:
    """Oldest first."""
    wanted = "SELECT s.name, q.* FROM quarantine q JOIN sinks s ON s.id = q.sink"
    found = [
        Quarantined(
            projection=projection.name, sink=row[0], key=_shown(projection, row[2:-4]), kind=row[-4], error=row[-3],
            attempts=row[-2], at=datetime.fromtimestamp(row[-1], UTC),
        )
        for _, row in _all(settings, projection, wanted)
    ]  # fmt: skip
    return sorted(found, key=lambda line: line.at)


def retry_quarantined(settings: Settings, projection: Projection[Any], keys: list[list[Any]] | None = None) -> int:
    """Mark these documents dirty again, all of them where no key is given; the worker writes them as they are now."""
    return _each_quarantined(settings, projection, keys, again=True)


def discard_quarantined(settings: Settings, projection: Projection[Any], keys: list[list[Any]]) -> int:
    """Forget that these were refused; their next change is written as any other."""
    return _each_quarantined(settings, projection, keys, again=False)


def _each_quarantined(
    settings: Settings, projection: Projection[Any], keys: list[list[Any]] | None, *, again: bool
) -> int:
    wanted, done = None if keys is None else {json.dumps(key) for key in keys}, 0
    for path in mirror_files(settings, projection).values():
        with closing(connect(str(path))) as db, transaction(db):
            found = [
                row
                for row in rows(db, "SELECT * FROM quarantine")
                if wanted is None or json.dumps(_shown(projection, row[1:-4])) in wanted
            ]
            _end(db, found, again=again)
            done += len(found)
    if wanted is not None and not done:
        raise OperationError(
            f"{projection.name} has none of these keys in quarantine{_here(projection)}; see cdc quarantine list."
        )
    return done


def _end(db: apsw.Connection, found: Iterable[tuple[Any, ...]], *, again: bool) -> None:
    """Take these lines out of the quarantine; `again`: and mark their documents dirty."""
    for row in found:
        own, key = row[0], row[1:-4]
        names = [f"k{i}" for i in range(len(key))]
        same = " AND ".join(f"{name} = ?" for name in ("sink", *names))
        db.execute(f"DELETE FROM quarantine WHERE {same}", (own, *key))
        if again:
            seq = "(SELECT value FROM meta WHERE name = 'seq')"
            db.execute(
                f"INSERT INTO dirty(sink, {', '.join(names)}, seq, since, low) VALUES(?, {', '.join('?' * len(key))},"
                f" {seq}, {seq}, 0) ON CONFLICT DO UPDATE SET seq = excluded.seq",
                (own, *key),
            )
