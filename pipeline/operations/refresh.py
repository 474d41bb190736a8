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
from pipeline.operations.layouts import layout_of
from pipeline.operations.status import RUNNING, mirror_file, status
from pipeline.settings import Settings

PATIENCE: Final = 60.0
POLL: Final = 0.1


class Unrefreshed(BaseModel):
    """A row that was not read again, and why; `part`: by which worker's mirror."""

    part: str
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

    @property
    def done(self) -> bool:
        return not self.left


Progress = Callable[[int, int], None]
"""Called with how many rows are settled, and of how many."""
Keys = Mapping[str, Iterable[Sequence[Any]]]
"""By table, the keys of rows as events have them: `{"shop.orders": [(10,), (11,)]}`."""


def refresh(
    settings: Settings,
    projection: Projection[Any],
    keys: Keys,
    *,
    part: str = "",
    patience: float = PATIENCE,
    progress: Progress = lambda done, total: None,
) -> RefreshReport:
    """Have the running worker read rows again from the source.

    What the report does not list in `left` is settled: each of these rows was, at some moment after the call, in the
    mirror exactly what the source had (`refreshed`), or deleted because the source had none (`removed`, `absent`), in
    its place among the changes that Kafka brings: never over a newer one, never half a transaction. Every document
    they are part of is marked dirty, and so is the document of a root key that is given and nowhere to be found; they
    need not be written yet when this returns. A row that could not be read is in `left` with the reason, as it was
    before. Waits at most `patience` seconds after the last row settled.

    `part`: where several workers share the documents, the partition whose mirror it is (`orders-v1@2`); a row of
    another one, of a table whose key says so, must not be there at the source.

    Raises OperationError where no worker of the projection runs, or a table or a key is not the projection's.
    """
    part, wanted = part or projection.id, _wanted(settings, projection, keys)
    request = uuid4().hex
    with _requests(settings, projection, part, patience) as db:
        if not wanted:
            return RefreshReport(projection=projection.name)
        _ask(db, request, wanted)
        try:
            _wait(db, request, len(wanted), patience, progress)
            return _report(db, request, projection.name, part)
        finally:
            with transaction(db):
                db.execute("DELETE FROM refresh WHERE request = ?", (request,))


def refresh_parts(
    settings: Settings, projection: Projection[Any], keys: Mapping[str, Keys], *, patience: float = PATIENCE
) -> RefreshReport:
    """The same for several partitions, by name (`orders-v1@2`); that of one worker is the projection's id."""
    whole = RefreshReport(projection=projection.name)
    for part, own in keys.items():
        report = refresh(settings, projection, own, part=part, patience=patience)
        for name in ("refreshed", "removed", "absent", "left"):
            setattr(whole, name, getattr(whole, name) + getattr(report, name))
    return whole


def _wanted(settings: Settings, projection: Projection[Any], keys: Keys) -> list[tuple[str, str]]:
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
def _requests(settings: Settings, projection: Projection[Any], part: str, patience: float) -> Iterator[apsw.Connection]:
    until, mirror = time.monotonic() + patience, mirror_file(settings, part)
    while True:
        found = status(settings, [projection]).projections[0]
        state = found.partitions[projection.parts.index(part)].state if found.partitions else found.state
        if state in RUNNING:
            break
        if time.monotonic() > until or not found.worked_on or not mirror.exists():
            raise OperationError(f"{part} is {state}, and only its worker reads rows again: start it, cdc run.")
        time.sleep(POLL)  # a partition that changes hands
    db = connect(str(mirror))
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


def _report(db: apsw.Connection, request: str, name: str, part: str) -> RefreshReport:
    report = RefreshReport(projection=name)
    for table, key, outcome, error in rows(
        db, "SELECT source_table, key, outcome, error FROM refresh WHERE request = ?", (request,)
    ):
        if outcome in ("refreshed", "removed", "absent"):
            setattr(report, outcome, getattr(report, outcome) + 1)
        else:
            reason = error or "the worker has not come to it in time"
            report.left.append(Unrefreshed(part=part, table=table, key=json.loads(key), reason=reason))
    return report
