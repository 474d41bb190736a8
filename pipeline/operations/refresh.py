"""Refresh: rows of a mirror are made what the source has, whatever they were."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

import apsw
from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.refresh import key_text
from pipeline.engine.sql import connect, rows, transaction
from pipeline.errors import OperationError
from pipeline.operations.in_parts import one_worker
from pipeline.operations.layouts import layout_of
from pipeline.operations.status import mirror_file, status
from pipeline.settings import Settings

PATIENCE: Final = 60.0
POLL: Final = 0.1


class Unrefreshed(BaseModel):
    """A row that was not read again, and why."""

    table: str
    key: list[Any]
    reason: str


class RefreshReport(BaseModel):
    """What became of the rows. `absent`: neither the source nor the mirror has them."""

    projection: str
    refreshed: int = 0
    removed: int = 0
    absent: int = 0
    left: list[Unrefreshed] = []
    seq: int = 0
    """The mirror's sequence at which the last of them was settled; documents of a later one show it."""

    @property
    def done(self) -> bool:
        return not self.left


Progress = Callable[[int, int], None]
"""Called with how many rows are settled, and of how many."""


def refresh(
    settings: Settings,
    projection: Projection[Any],
    keys: Mapping[str, Iterable[Sequence[Any]]],
    *,
    patience: float = PATIENCE,
    progress: Progress = lambda done, total: None,
) -> RefreshReport:
    """Have the running worker read rows again from the source: `{"shop.orders": [(10,), (11,)]}`, keys as in events.

    What the report does not list in `left` is settled: each of these rows was, at some moment after the call, in the
    mirror exactly what the source had (`refreshed`), or deleted because the source had none (`removed`, `absent`), in
    its place among the changes that Kafka brings: never over a newer one, never half a transaction. Every document
    they are part of is marked dirty, and so is the document of a root key that is given and nowhere to be found; they
    need not be written yet when this returns. A row that could not be read is in `left` with the reason, as it was
    before. Waits at most `patience` seconds after the last row settled.

    Raises OperationError where no worker of the projection runs, or a table or a key is not the projection's.
    """
    one_worker(projection, "reading rows again")
    wanted = _wanted(settings, projection, keys)
    request = uuid4().hex
    with _requests(settings, projection) as db:
        if not wanted:
            return RefreshReport(projection=projection.name)
        _ask(db, request, wanted)
        try:
            _wait(db, request, len(wanted), patience, progress)
            return _report(db, request, projection.name)
        finally:
            with transaction(db):
                db.execute("DELETE FROM refresh WHERE request = ?", (request,))


def _wanted(
    settings: Settings, projection: Projection[Any], keys: Mapping[str, Iterable[Sequence[Any]]]
) -> list[tuple[str, str]]:
    tables = layout_of(settings, projection).tables
    wanted: dict[tuple[str, str], None] = {}
    for name, of_table in keys.items():
        table = tables.get(name)
        if table is None:
            raise OperationError(f"{projection.name} does not read {name}; it reads {', '.join(sorted(tables))}.")
        for key in of_table:
            if len(key) != len(table.key):
                raise OperationError(f"The key of {name} is {', '.join(table.key)}: {key!r} is none.")
            whole = [int(v) if table.columns[n] == "int" else v for n, v in zip(table.key, key, strict=True)]
            wanted[name, key_text(whole)] = None
    return list(wanted)


@contextmanager
def _requests(settings: Settings, projection: Projection[Any]) -> Iterator[apsw.Connection]:
    path = mirror_file(settings, projection.id)
    state = status(settings, [projection]).projections[0].state
    if not path.exists() or state not in ("running", "catching up"):
        raise OperationError(f"{projection.name} is {state}, and only its worker reads rows again: start it, cdc run.")
    db = connect(str(path))
    try:
        yield db
    finally:
        db.close()


def _ask(db: apsw.Connection, request: str, wanted: Sequence[tuple[str, str]]) -> None:
    now = time.time()
    with transaction(db):
        db.executemany(
            "INSERT INTO refresh(source_table, key, request, asked) VALUES(?, ?, ?, ?)",
            [(table, key, request, now) for table, key in wanted],
        )


def _wait(db: apsw.Connection, request: str, total: int, patience: float, progress: Progress) -> None:
    done, moved = -1, time.monotonic()
    while True:
        now = len(rows(db, "SELECT 1 FROM refresh WHERE request = ? AND outcome IS NOT NULL", (request,)))
        if now != done:
            done, moved = now, time.monotonic()
            progress(done, total)
        if done == total or time.monotonic() - moved > patience:
            return
        time.sleep(POLL)


def _report(db: apsw.Connection, request: str, name: str) -> RefreshReport:
    report = RefreshReport(projection=name)
    for table, key, outcome, error, seq in rows(
        db, "SELECT source_table, key, outcome, error, seq FROM refresh WHERE request = ?", (request,)
    ):
        if outcome in ("refreshed", "removed", "absent"):
            setattr(report, outcome, getattr(report, outcome) + 1)
            report.seq = max(report.seq, seq)
        else:
            reason = error or "the worker has not come to it in time"
            report.left.append(Unrefreshed(table=table, key=json.loads(key), reason=reason))
    return report
