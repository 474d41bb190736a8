"""The rows of a mirror behind one document, each with its place in the source's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
from pydantic import BaseModel

from pipeline.authoring.shape import Shape
from pipeline.engine.layout import Layout
from pipeline.engine.sourcelog import LSN
from pipeline.engine.sql import listed, quoted, rows
from pipeline.events.sourcelog import parsed


class RowStory(BaseModel):
    """One row of the mirror. `commit`: the LSN of the commit before its last streamed change; 0 for a snapshot row."""

    path: str
    table: str
    columns: dict[str, Any]
    source_log: str
    """The system id and timeline of the source whose log its last change came from; empty where that was not said."""
    commit: int
    order: int


def rows_behind(db: apsw.Connection, layout: Layout, key: Sequence[Any]) -> list[RowStory]:
    """The root's row, and those that its relations reach, at most a thousand of each."""
    return _below(db, layout, layout.shape, layout.root.key, key, layout.shape.name)


def _below(
    db: apsw.Connection, layout: Layout, shape: Shape, columns: Sequence[str], values: Sequence[Any], path: str
) -> list[RowStory]:
    table = layout.tables[shape.table]
    names = [*table.columns, "_commit", "_order", "_generation"]
    logs = {n: parsed(label).identity for n, label in rows(db, "SELECT ordinal, identity FROM source_log")}
    where = " AND ".join(f"{quoted(column)} = ?" for column in columns)
    found: list[RowStory] = []
    for row in rows(db, f"SELECT {listed(names)} FROM {quoted(table.name)} WHERE {where} LIMIT 1000", tuple(values)):
        own = dict(zip(names, row, strict=True))
        commit, order, generation = own.pop("_commit"), own.pop("_order"), own.pop("_generation")
        shown = {name: "unknown" if isinstance(item, bytes) else item for name, item in own.items()}
        found.append(
            RowStory(
                path=path, table=table.name, columns=shown, source_log=logs.get(generation, ""),
                commit=commit & LSN, order=order & LSN,
            )
        )  # fmt: skip
        for relation in shape.relations:
            below = [own[name] for name in relation.local]
            found += _below(db, layout, relation.shape, relation.remote, below, f"{path}.{relation.name}")
    return found
