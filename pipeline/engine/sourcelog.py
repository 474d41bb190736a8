"""The order of the source logs that a mirror knows: a log position means nothing from one of them to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import quoted, rows
from pipeline.errors import CheckpointError
from pipeline.events.sourcelog import SourceLog, parsed

LOG_BITS: Final = 56
"""A row's commit order is its log's ordinal above the LSN: a later log starts above all before it."""
LSN: Final = (1 << LOG_BITS) - 1
MOST: Final = 127


def in_log(txid: str, log: int) -> str:
    """A transaction's id, told apart from the same id in another log."""
    return f"{log}/{txid}" if log else txid


def log_of(txid: str) -> int:
    """The log of a transaction's id."""
    return int(txid.partition("/")[0]) if "/" in txid else 0


def bare(txid: str) -> str:
    """The source's own id of a transaction."""
    return txid.rpartition("/")[2]


class SourceLogs:
    """The logs a mirror knows; `ordinal` is a log's place among them, from 1. `moved` is told when places change.

    A log of a connector that is none of `connectors`, which had another name then, is the first one's.
    """

    def __init__(self, mirror: Mirror, connectors: Sequence[str], moved: Callable[[], None]) -> None:
        self.mirror, self._moved = mirror, moved
        self._labelled = bool(mirror.get("labelled"))
        """Every row came with the label of a log; a mirror of an earlier program does not say so."""
        self.known: dict[int, SourceLog] = {0: SourceLog()}
        self.ordinals: dict[int, int] = {0: 1}
        own = connectors[0]
        self.connectors: dict[int, str] = {0: own}
        """Whose each log is."""
        for ordinal, of, label in rows(
            mirror.db, "SELECT ordinal, connector, identity FROM source_log ORDER BY ordinal"
        ):
            log = parsed(label)
            self.known[log.number], self.ordinals[log.number] = log, ordinal
            self.connectors[log.number] = of if of in connectors else own

    def see(self, label: str, connector: str) -> int:
        """The number of the log that the label of a connector's record names."""
        log = parsed(label)
        self.connectors.setdefault(log.number, connector)
        return self.known.setdefault(log.number, log).number

    def connector_of(self, txid: str) -> str:
        """Whose a transaction is."""
        return self.connectors.get(log_of(txid), self.connectors[0])

    def ordinal(self, number: int) -> int:
        """The log's place; inside a checkpoint where it is new. Partitions are read in any order: it may be an old one."""
        found = self.ordinals.get(number)
        if found is not None:
            return found
        later = [n for n in self.ordinals if n > number]
        found = min((self.ordinals[n] for n in later), default=max(self.ordinals.values()) + 1)
        if len(self.ordinals) >= MOST:
            raise CheckpointError(f"The mirror {self.mirror.path} has seen {MOST} source logs: rebuild the projection.")
        if later:
            self._make_room(found)
            for n in later:
                self.ordinals[n] += 1
            self._moved()
        self.ordinals[number] = found
        self.mirror.db.execute(
            "INSERT INTO source_log VALUES(?, ?, ?, ?)",
            (found, self.connectors[number], self.known[number].label, time.time()),
        )
        return found

    def keep(self) -> None:
        """What is staged may be the first of its log: after a restart it has to be known. Inside a checkpoint."""
        for number in self.known:
            self.ordinal(number)

    def unlabelled(self) -> None:
        """Rows without a label are applied; inside a checkpoint."""
        if self._labelled:
            self._labelled = False
            self.mirror.set("labelled", None)

    def oldest(self, number: int) -> bool:
        """Whether the mirror has no row of before this log, as far as is known without looking at them all."""
        return self._labelled and not any(0 < n < number for n in self.ordinals)

    def begun(self, number: int) -> int:
        """The place of its connector's newest log, up to this one, that began with a snapshot; 1 where none did."""
        own = self.connectors[number]
        fresh = (n for n in self.ordinals if n <= number and self.known[n].fresh and self.connectors[n] == own)
        return self.ordinals[max(fresh, default=0)]

    def _make_room(self, ordinal: int) -> None:
        """Move the positions of later logs up by one."""
        db, bound, step = self.mirror.db, ordinal << LOG_BITS, 1 << LOG_BITS
        for table in self.mirror.layout.tables.values():
            name, gone = quoted(table.name), quoted(table.name + "/deleted")
            db.execute(f"UPDATE {name} SET _commit = _commit + ? WHERE _commit >= ?", (step, bound))
            db.execute(f"UPDATE {name} SET _order = _order + ? WHERE _commit = 0 AND _order >= ?", (step, bound))
            db.execute(f"UPDATE {name} SET _generation = _generation + 1 WHERE _generation >= ?", (ordinal,))
            db.execute(f"UPDATE {gone} SET _commit = _commit + ? WHERE _commit >= ?", (step, bound))
            floor = self.mirror.get(f"truncated/{table.name}")
            if floor:
                commit, order, lsn = map(int, str(floor).split(":"))
                moved = (commit + step, order, lsn + step) if commit >= bound else (commit, order, lsn)
                self.mirror.set(f"truncated/{table.name}", ":".join(map(str, moved)))
        db.execute("UPDATE source_log SET ordinal = -ordinal - 1 WHERE ordinal >= ?", (ordinal,))
        db.execute("UPDATE source_log SET ordinal = -ordinal WHERE ordinal < 0")
