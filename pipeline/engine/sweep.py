"""The sweep: rows that a new snapshot of the source did not bring, and no later change touched, are no more."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from typing import Final

import apsw

from pipeline.engine.apply import Applier
from pipeline.engine.inputs import Inputs
from pipeline.engine.layout import Table
from pipeline.engine.sourcelog import SourceLogs
from pipeline.engine.sql import quoted, rows

ALWAYS: Final = 100
"""So many rows of a table may be swept whatever share of it they are."""
Counts = Mapping[str, tuple[int, int]]
"""Each table's rows that are to be swept, and all it has; only tables that have some."""


def counts(db: apsw.Connection, tables: Mapping[str, Table], ordinal: int) -> Counts:
    """What a sweep of all before this log would take away; reads every row once."""
    found: dict[str, tuple[int, int]] = {}
    for name in (name for name, table in tables.items() if not table.kept):
        every, old = rows(
            db, f"SELECT count(*), count(*) FILTER (WHERE _generation < ?) FROM {quoted(name)}", (ordinal,)
        )[0]
        if old:
            found[name] = old, every
    return found


def too_much(found: Counts, limit: float) -> bool:
    """Whether somebody has to look first: a table of which the snapshot brought nothing, or a large share of one."""
    return any(old == every or old > max(ALWAYS, limit * every) for old, every in found.values())


def sweep(applier: Applier, own: Collection[str], ordinal: int, seq: int, *, mark: bool) -> int:
    """Delete these tables' rows of all logs before this one and mark their documents; inside a checkpoint. How many rows."""
    db, swept = applier.db, 0
    chosen = [table.number for table in applier.tables if not table.kept and table.name in own]
    for number in chosen:
        statements = applier.sql[number]
        db.execute(statements.clear)
        db.execute(statements.fill_old, (ordinal,))
        db.execute(statements.find_changed)
    if mark:
        applier.mark(chosen, seq, old=True)
    for number in chosen:
        swept += applier.take_away(number)
    if mark:
        applier.mark(chosen, seq, old=False)
    applier.mirror.count("swept", swept)
    return swept


def held(stored: str | None) -> tuple[int, dict[str, tuple[int, int]]] | None:
    """The log whose sweep waits for somebody's word, and what it would take away; as the mirror's meta has it."""
    if not stored:
        return None
    found = json.loads(stored)
    return int(found["log"]), {table: (old, every) for table, (old, every) in found["tables"].items()}


def hold(log: int, found: Counts) -> str:
    return json.dumps({"log": log, "tables": found, "at": time.time()})


class Beginnings:
    """What a new source log begins with. Until it is settled no watermark is published that is in it.

    `log`: of each connector the newest log whose beginning was seen.
    """

    def __init__(self, applier: Applier, logs: SourceLogs, limit: float, inputs: Inputs) -> None:
        self.applier, self.logs, self.limit, self.mirror, self.inputs = applier, logs, limit, applier.mirror, inputs
        self.log = dict.fromkeys(inputs.connectors, 0)
        self.settled = {of: int(self.mirror.get(inputs.named("settled", of)) or 0) for of in inputs.connectors}
        """Of each the newest log before which everything is swept, or held."""
        applier.marking.owed = self.mirror.get("owed")

    def begin(self, log: int, seq: int) -> bool:
        """The first END of this log is applied; whether a sweep is to follow, once its snapshot is read to the end."""
        self.log[self.logs.connectors[log]] = log
        self.logs.ordinal(log)
        if not self.logs.known[log].fresh:
            self._settled(log)
            return False
        if self.applier.marking.owed is None:
            self._owe(seq)
        return True

    def settle(self, log: int, seq: int, *, mark: bool) -> None:
        """What the log's snapshot did not bring is swept, or held where that is too much; inside a checkpoint."""
        of, waits = self.logs.connectors[log], held(self.mirror.get("held"))
        if log <= self.settled[of] or log != self.log[of]:
            return
        if waits is not None and self.logs.connectors[waits[0]] != of:
            return  # one sweep at a time waits for somebody's word; this one comes after it
        ordinal = self.logs.ordinal(log)
        own = self.inputs.tables_of(of)
        tables = {name: table for name, table in self.mirror.layout.tables.items() if name in own}
        found = {} if self.logs.oldest(log) else counts(self.mirror.db, tables, ordinal)
        if too_much(found, self.limit):
            self.mirror.set("held", hold(log, found))
        elif found:
            self._sweep(log, seq, mark=mark)
        else:
            self._swept(of)
        self._settled(log)

    @property
    def may_go(self) -> bool:
        """Somebody has said that what is held may go."""
        found = held(self.mirror.get("held"))
        return found is not None and self.mirror.get("sweep") == found[0]

    def sweep_held(self, *, mark: bool) -> int:
        """Sweep what was held back, if somebody has said so (`cdc sweep`), in a checkpoint of its own; how many rows."""
        found = held(self.mirror.get("held"))
        if found is None or not self.may_go:
            return 0
        with self.mirror.checkpoint() as seq:
            swept = self._sweep(found[0], seq, mark=mark)
            for log in self.log.values():
                self.settle(log, seq, mark=mark)
            return swept

    def _sweep(self, log: int, seq: int, *, mark: bool) -> int:
        of = self.logs.connectors[log]
        own = self.inputs.tables_of(of)
        swept = sweep(self.applier, own, self.logs.ordinal(log), seq, mark=mark)
        self._swept(of)
        return swept

    def _swept(self, of: str) -> None:
        self.mirror.set("held", None)
        if not any(newest > self.settled[other] for other, newest in self.log.items() if other != of):
            self._owe(None)

    def _settled(self, log: int) -> None:
        of = self.logs.connectors[log]
        self.settled[of] = log
        self.mirror.set(self.inputs.named("settled", of), log)

    def _owe(self, seq: int | None) -> None:
        self.applier.marking.owed = seq
        self.mirror.set("owed", seq)
