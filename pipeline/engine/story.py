"""The rows of a mirror behind one document, each with its place in the source's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
from pydantic import BaseModel

from pipeline.authoring.shape import Shape
from pipeline.engine.layout import Layout
from pipeline.engine.sourcelog import LOG_BITS
from pipeline.engine.sql import listed, quoted, rows


class RowStory(BaseModel):
    """One row of the mirror. `commit`: the LSN of the commit before its last streamed change; 0 for a snapshot row."""

    path: str
    table: str
    columns: dict[str, Any]
    source_log: int
    commit: int
    order: int


def rows_behind(db: apsw.Connection, layout: Layout, key: Sequence[Any]) -> list[RowStory]:
    """The root's row, and those that its relations reach, at most a thousand of each."""
    return _below(db, layout, layout.shape, layout.root.key, key, layout.shape.name)


def _below(
    db: apsw.Connection, layout: Layout, shape: Shape, columns: Sequence[str], values: Sequence[Any], path: str
) -> list[RowStory]:
    table = layout.tables[shape.table]
    names = [*table.columns, "_commit", "_order"]
    where = " AND ".join(f"{quoted(column)} = ?" for column in columns)
    found: list[RowStory] = []
    for row in rows(db, f"SELECT {listed(names)} FROM {quoted(table.name)} WHERE {where} LIMIT 1000", tuple(values)):
        own = dict(zip(names, row, strict=True))
        commit, order = own.pop("_commit"), own.pop("_order")
        shown = {name: "unknown" if isinstance(item, bytes) else item for name, item in own.items()}
        found.append(
            RowStory(
                path=path, table=table.name, columns=shown, source_log=commit >> LOG_BITS,
                commit=commit & ((1 << LOG_BITS) - 1), order=order,
            )
        )  # fmt: skip
        for relation in shape.relations:
            below = [own[name] for name in relation.local]
            found += _below(db, layout, relation.shape, relation.remote, below, f"{path}.{relation.name}")
    return found
