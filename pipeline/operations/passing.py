"""Waiting until a projection has passed a point of the source: applied, and written by all its sinks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import apsw

from pipeline.authoring.projection import Projection
from pipeline.engine.sql import connect, rows, value
from pipeline.errors import OperationError
from pipeline.operations.status import RUNNING, mirror_file, status
from pipeline.settings import Settings

POLL: Final = 0.2

Ends = Callable[[str], Awaitable[Mapping[str, int]]]
"""The end offsets of a topic's partitions now, `{"topic/0": 17}`."""


async def passed(
    settings: Settings, projection: Projection[Any], connector: str, lsn: int, topic: str, ends: Ends, patience: float
) -> str:
    """Wait until everything that the connector sent by `lsn`, rows without a transaction too, is in every sink.

    Empty when it is; else why not: no worker runs, or nothing moved for `patience` seconds. The topic's ends are read
    once an END at or after `lsn` is applied, for what was sent before that END is in Kafka by then.
    """
    for path in (mirror_file(settings, part) for part in projection.parts):
        if not path.exists():
            return "it has no mirror yet: start it, cdc run" if projection.workers == 1 else f"{path} is not here"
        db = connect(str(path), readonly=True)
        try:
            for step in (_applied(db, connector, lsn), _read(db, topic, ends), _written(db)):
                try:
                    await _until(settings, projection, step, patience)
                except OperationError as error:
                    return str(error)
        finally:
            db.close()
    return ""


async def written(settings: Settings, projection: Projection[Any], patience: float) -> str:
    """Wait until what is dirty now is in every sink. Empty when it is; else why not."""
    for part in projection.parts:
        db = connect(str(mirror_file(settings, part)), readonly=True)
        try:
            await _until(settings, projection, _written(db), patience)
        except OperationError as error:
            return str(error)
        finally:
            db.close()
    return ""


Step = Callable[[], Awaitable[Any]]
"""A measure of progress; None when the step is done."""


def _applied(db: apsw.Connection, connector: str, lsn: int) -> Step:
    async def step() -> Any:
        now = value(db, "SELECT lsn FROM marks WHERE connector = ? ORDER BY seq DESC LIMIT 1", (connector,)) or 0
        return None if now >= lsn else now

    return step


def _read(db: apsw.Connection, topic: str, ends: Ends) -> Step:
    wanted: dict[str, int] = {}

    async def step() -> Any:
        if not wanted:
            wanted.update(await ends(topic))
        now = dict(rows(db, "SELECT partition, next FROM offsets"))
        behind = {name: now.get(name, 0) for name, end in wanted.items() if now.get(name, 0) < end}
        return behind or None

    return step


def _written(db: apsw.Connection) -> Step:
    seq: list[int] = []

    async def step() -> Any:
        now = int(value(db, "SELECT value FROM meta WHERE name = 'seq'") or 0)
        if not seq:
            seq.append(now)
        dirty = value(db, "SELECT count(*) FROM dirty WHERE since <= ?", (seq[0],))
        fanouts = value(db, "SELECT count(*) FROM fanout WHERE seq <= ?", (seq[0],))
        return (dirty, fanouts, now) if dirty or fanouts else None

    return step


async def _until(settings: Settings, projection: Projection[Any], step: Step, patience: float) -> None:
    loop = asyncio.get_running_loop()
    last, moved = object(), loop.time()
    while (now := await step()) is not None:
        if now != last:
            last, moved = now, loop.time()
        state, stands = status(settings, [projection]).projections[0], loop.time() - moved > patience
        # a partition that changes hands is nobody's for a while
        if not state.worked_on or (stands and state.state not in RUNNING):
            raise OperationError(f"it is {state.state}: start it, cdc run")
        if stands:
            error = next((s.error for s in state.sinks if s.error), None)
            raise OperationError(f"nothing moves: {error or 'see cdc status'}")
        await asyncio.sleep(POLL)
