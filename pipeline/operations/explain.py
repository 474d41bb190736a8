"""The story of one document: the rows behind it with their positions, and what each sink holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import apsw
from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.assemble import document_id
from pipeline.engine.dirty import Reader
from pipeline.engine.layout import Layout
from pipeline.engine.measures import group_id, group_key
from pipeline.engine.owners import Owners
from pipeline.engine.revision import split
from pipeline.engine.sql import connect, rows, value
from pipeline.engine.story import RowStory, rows_behind
from pipeline.errors import CdcError, OperationError
from pipeline.operations.expected import FieldDifference, differences
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
    differences: list[FieldDifference] = []
    """Where not: `source` is what would be written, `document` what the sink has; the first of them."""
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
    contributions: int | None = None
    """Of an aggregate: how many documents the group has; `rows` are those behind the first of them."""


SHOWN = 20
"""Contributions of a group whose rows are shown, and differences of a document."""


async def explain(
    settings: Settings,
    projection: Projection[Any],
    key: Sequence[Any],
    sinks: Sequence[Sink],
    layout: Layout,
) -> DocumentStory:
    """`layout`: the mirror's, as the worker has it. Raises OperationError where there is no mirror."""
    root = _written_key(projection, layout, key)
    id = group_id(root[0]) if layout.aggregate is not None else document_id(root)
    path = mirror_file(settings, projection.parts[Owners(layout, projection.workers).of_key(root)])
    if not path.exists():
        raise OperationError(f"{projection.name} has no mirror yet: start it with cdc run.")
    db = connect(str(path), readonly=True)
    reader = Reader(str(path), layout)
    try:
        text = reader.documents([root])[root]
        document = None if text is None else json.loads(text)
        behind, contributions = _behind(db, layout, root)
        found = [row for one in behind for row in rows_behind(db, layout, one)]
        stories = [await _sink(db, sink, root, id, document) for sink in sinks]
    finally:
        reader.close()
        db.close()
    return DocumentStory(
        projection=projection.name, id=id, rows=found, document=document, sinks=stories, contributions=contributions
    )


def _written_key(projection: Projection[Any], layout: Layout, key: Sequence[Any]) -> tuple[Any, ...]:
    """The key as `dirty` has it."""
    if layout.aggregate is not None:
        return (group_key(layout.aggregate, key),)
    if len(key) != len(layout.root.key):
        raise OperationError(
            f"The key of {projection.name} is {', '.join(layout.root.key)}: give {len(layout.root.key)} values."
        )
    return tuple(key)


def _behind(db: apsw.Connection, layout: Layout, key: tuple[Any, ...]) -> tuple[list[tuple[Any, ...]], int | None]:
    """The root keys behind what is written under a key, and of a group how many there are."""
    if layout.aggregate is None:
        return [key], None
    names = ", ".join(layout.root_key)
    some = rows(db, f"SELECT {names} FROM contributions WHERE g = ? ORDER BY {names} LIMIT {SHOWN}", key)
    return some, int(value(db, "SELECT n FROM grouped WHERE g = ?", key) or 0)


async def _sink(
    db: apsw.Connection, sink: Sink, root: tuple[Any, ...], name: str, document: dict[str, Any] | None
) -> SinkStory:
    story = SinkStory(sink=sink.name)
    same = " AND ".join(f"k{i} = ?" for i in range(len(root)))
    which = "sink = (SELECT id FROM sinks WHERE name = ?)"
    story.dirty = bool(rows(db, f"SELECT 1 FROM dirty WHERE {which} AND {same}", (sink.name, *root)))
    refused = rows(db, f"SELECT kind || ': ' || error FROM quarantine WHERE {which} AND {same}", (sink.name, *root))
    story.quarantined = refused[0][0] if refused else None
    try:
        stored = (await sink.read([name])).get(name)
        if stored is None and await sink.ended([name]):
            story.error = "The document has ended: its ttl is over since it was last written."
            return story
    except CdcError as error:
        story.error = f"{type(error).__name__}: {error}"
        return story
    if stored is not None:
        story.epoch, story.sequence = split(stored.revision)
        story.document = dict(stored.document)
    story.equal = story.document == document
    if document is not None and story.document is not None:
        story.differences = list(islice(differences(document, story.document), SHOWN))
    return story
