"""A first load: a mirror's rows are put in as they come, and its indexes and what is to be written are made at its end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pipeline.engine.layout import Table
from pipeline.engine.marking import Marking
from pipeline.engine.mirror import Mirror
from pipeline.engine.sourcelog import LOG_BITS
from pipeline.engine.sql import listed, quoted
from pipeline.events.sourcelog import Moment, SourceLog

ORDINAL: Final = 2
"""The place of the log whose rows are copied: the first is that of records without a label."""


def put(mirror: Mirror, table: Table, rows: Iterable[tuple[Any, ...]], position: int) -> None:
    """Rows that nobody has put in before, as a snapshot at this position has them; one checkpoint."""
    columns, marks = listed(table.columns), ", ".join("?" * len(table.columns))
    with mirror.checkpoint():
        mirror.db.executemany(
            f"INSERT INTO {quoted(table.name)}({columns}, _order, _generation) VALUES({marks}, {ORDINAL << LOG_BITS | position}, {ORDINAL})",
            rows,
        )


def end_copy(
    mirror: Mirror, offsets: Mapping[str, int], moment: Moment, sinks: Iterable[str], connector: str, log: SourceLog
) -> None:
    """All rows are in: reading begins at these offsets, and what was before that moment is left out of it.

    `log`, the connector's, has begun by then: what its snapshot did not bring is no row of these.
    """
    with mirror.checkpoint() as seq:
        mirror.db.execute("INSERT INTO source_log VALUES(?, ?, ?, ?)", (ORDINAL, connector, log.label, time.time()))
        mirror.set("log", log.number)
        mirror.set("settled", log.number)
        for sink in sinks:
            mirror.sink_id(sink)
        mirror.set_offsets(offsets)
        mirror.set("copied", moment.text)
        end_load(mirror, Marking(mirror), seq)


def end_load(mirror: Mirror, marking: Marking, seq: int) -> None:
    """Every document is to be written, and what is known to be gone deleted; inside a checkpoint."""
    mirror.create_indexes()
    marking.mark_every_root(seq, since=0)
    marking.mark_every_deleted_root(seq, since=0)
    mirror.set("loaded", 1)
