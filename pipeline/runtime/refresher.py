"""The refresher: rows that the mirror does not know, or knows wrongly, are read again from the source."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any, Final

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.signals import Look, Turn, turn
from pipeline.engine.engine import Engine
from pipeline.engine.refresh import Due, Key
from pipeline.errors import CdcError, CheckpointError, SourceError, Transient
from pipeline.runtime.faults import passing
from pipeline.settings import Settings

log = logging.getLogger("cdc.refresher")

ROWS: Final = 500
"""Rows asked for at a time."""
IDLE: Final = 0.5
"""Seconds between two looks for work, and at least between two requests to the source."""
ANSWERED_WITHIN: Final = 20.0
"""Seconds that an answer is waited for; what is missing then is asked for again, ever more rarely."""
BUSY_FOR: Final = 2.0


class Refresher:
    """Asks the connector for the rows that are due, one batch at a time; the answers come through the stream.

    A row that the source has not is deleted once all is applied that the source had committed when it was asked.
    """

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        in_engine: Callable[..., Awaitable[Any]],
        definition: Callable[[str], ConnectorDefinition],
        settings: Settings,
        may_ask: Callable[[], bool],
        applied: Callable[[], None],
        stopping: asyncio.Event,
    ) -> None:
        self._engine, self._in_engine, self._may_ask, self._applied = engine, in_engine, may_ask, applied
        self._definition, self._settings = definition, settings
        self._stopping = stopping

    async def run(self) -> None:
        """Until `stopping`; what goes wrong at the source is noted at the rows and tried again."""
        while not self._stopping.is_set():
            if self._may_ask():
                due: Due = await self._in_engine(self._engine().refreshing.next, ROWS)
                if due.places:
                    await self._attempt(due)
                elif due.table:
                    continue  # nobody wants these any more
            await self._nap(IDLE)

    async def _attempt(self, due: Due) -> None:
        try:
            with ExitStack() as held:
                of = self._definition(due.table)
                mine = await asyncio.to_thread(held.enter_context, turn(of, self._settings.source_dsn(of.source)))
                if mine is None:
                    await self._back(due, "another snapshot is under way", BUSY_FOR)
                    return
                await self._ask(mine, due)
        except CheckpointError:
            raise
        except CdcError as error:
            log.warning("%s: can't be read again: %s", due.table, error)
            if isinstance(error, SourceError) and not isinstance(error, Transient) and len(due.places) > 1:
                for key, place in due.places.items():  # one of them is at fault: the others need not suffer
                    await self._attempt(Due(due.table, {key: place}))
                return
            await self._in_engine(self._engine().refreshing.complain, due, str(error))

    async def _ask(self, mine: Turn, due: Due) -> None:
        names = self._engine().layout.tables[due.table].key
        found: Look = await asyncio.to_thread(mine.look, due.table, names, list(due.places))
        refreshing = self._engine().refreshing
        try:
            if found.present:
                await self._in_engine(refreshing.expect, due.table, found.present)
                await asyncio.to_thread(mine.rows, due.table, names, list(found.present))
                passing("asked")
            absent = {key: place for key, place in due.places.items() if key not in found.present}
            missing = await self._answers(due, absent, found.lsn)
        finally:
            await self._in_engine(refreshing.expect_nothing)
        if missing:
            error = f"no answer from connector {self._definition(due.table).name} within {ANSWERED_WITHIN:.0f} s"
            await self._in_engine(self._engine().refreshing.complain, Due(due.table, missing), error)

    async def _answers(self, due: Due, absent: dict[Key, Any], lsn: int) -> dict[Key, Any]:
        """Wait for the rows to come and for the position to be passed; the keys that are not settled by that."""
        refreshing, deadline = self._engine().refreshing, time.monotonic() + ANSWERED_WITHIN
        changed: dict[Key, Any] = {}
        while (refreshing.awaited or absent) and time.monotonic() < deadline and not self._stopping.is_set():
            if self._engine().refreshing is not refreshing or not self._may_ask():
                break  # assigned anew: the answers may have gone by
            if absent and await self._in_engine(self._passed, due.table, lsn):
                settled = await self._in_engine(refreshing.remove, due.table, absent)
                self._applied()
                log.info("%s: %d of %d rows were gone at the source", due.table, len(settled), len(due.places))
                changed, absent = {key: place for key, place in absent.items() if key not in settled}, {}
            await self._nap(0.05)
        unanswered = await self._in_engine(refreshing.unanswered)
        return absent | changed | {key: due.places[key] for key in due.places if key in unanswered}

    def _passed(self, table: str, lsn: int) -> bool:
        return self._engine().mirror.newest_commit(self._definition(table).name) >= lsn

    async def _back(self, due: Due, why: str, after: float) -> None:
        await self._in_engine(self._engine().refreshing.give_back, due, why, after)

    async def _nap(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass
