"""The story of one document: the rows behind it with their positions, and what each sink holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import apsw
from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.assemble import document_id
from pipeline.engine.dirty import Reader
from pipeline.engine.layout import Layout
from pipeline.engine.revision import split
from pipeline.engine.sql import connect, rows
from pipeline.engine.story import RowStory, rows_behind
from pipeline.errors import CdcError, OperationError
from pipeline.operations.status import mirror_file
from pipeline.ports import Sink
from pipeline.settings import Settings


class SinkStory(BaseModel):
    """What one sink holds, and whether it is what would be written now."""

    sink: str
    epoch: int | None = None
    sequence: int | None = None
    document: dict[str, Any] | None = None
    equal: bool | None = None
    dirty: bool = False
    quarantined: str | None = None
    error: str | None = None


class DocumentStory(BaseModel):
    """All that is known of one document. `document` is what would be written now; None: none."""

    projection: str
    id: str
    rows: list[RowStory]
    document: dict[str, Any] | None
    sinks: list[SinkStory]


async def explain(
    settings: Settings,
    projection: Projection[Any],
    key: Sequence[Any],
    sinks: Sequence[Sink],
    layout: Layout,
) -> DocumentStory:
    """`layout`: the mirror's, as the worker has it. Raises OperationError where there is no mirror."""
    path = mirror_file(settings, projection.id)
    if not path.exists():
        raise OperationError(f"{projection.name} has no mirror yet: start it with cdc run.")
    root = tuple(key)
    if len(root) != len(layout.root.key):
        raise OperationError(
            f"The key of {projection.name} is {', '.join(layout.root.key)}: give {len(layout.root.key)} values."
        )
    db = connect(str(path), readonly=True)
    reader = Reader(str(path), layout)
    try:
        text = reader.documents([root])[root]
        document = None if text is None else json.loads(text)
        found = rows_behind(db, layout, root)
        stories = [await _sink(db, sink, root, document) for sink in sinks]
    finally:
        reader.close()
        db.close()
    return DocumentStory(projection=projection.name, id=document_id(root), rows=found, document=document, sinks=stories)


async def _sink(db: apsw.Connection, sink: Sink, root: tuple[Any, ...], document: dict[str, Any] | None) -> SinkStory:
    story = SinkStory(sink=sink.name)
    same = " AND ".join(f"k{i} = ?" for i in range(len(root)))
    which = "sink = (SELECT id FROM sinks WHERE name = ?)"
    story.dirty = bool(rows(db, f"SELECT 1 FROM dirty WHERE {which} AND {same}", (sink.name, *root)))
    refused = rows(db, f"SELECT kind || ': ' || error FROM quarantine WHERE {which} AND {same}", (sink.name, *root))
    story.quarantined = refused[0][0] if refused else None
    name = document_id(root)
    try:
        stored = (await sink.read([name])).get(name)
    except CdcError as error:
        story.error = f"{type(error).__name__}: {error}"
        return story
    if stored is not None:
        story.epoch, story.sequence = split(stored.revision)
        story.document = dict(stored.document)
    story.equal = story.document == document
    return story
