"""Groups counted anew, by pydantic and plain Python over the source's rows: the measure of what the engine kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import reduce
from operator import itemgetter
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from pipeline.authoring.aggregate_shape import AggregateShape, MeasureShape, Value
from pipeline.authoring.event_shape import EventShape, decoder_of
from pipeline.authoring.measured import Taken, measured
from pipeline.engine.layout import Layout
from pipeline.engine.measures import group_id, group_key
from pipeline.errors import ScenarioError
from pipeline.testing.expected import instance, nested
from pipeline.testing.source import Key, Rows, SourceModel

_JSON: Final[TypeAdapter[Any]] = TypeAdapter(Any)
Member = tuple[Key, Any]
"""A root key, and the author's document of it."""


def counted(layout: Layout, source: SourceModel) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each group's id and fields, by the source's rows; a document that can't be read is left out."""
    kept = {table.name: source.ever(table.name) for table in layout.tables.values() if table.kept}
    rows: Rows = {**source.states[-1], **kept}
    shape = layout.aggregate
    assert shape is not None
    members: dict[str, tuple[tuple[Any, ...], list[Member]]] = {}
    for key, row in rows[shape.table].items():
        try:
            document = instance(shape.of, nested(layout, row, rows))
            if not document.keep():
                continue
            values = tuple(_get(document, group.value) for group in shape.groups)
        except ScenarioError:
            continue
        members.setdefault(group_id(group_key(shape, values)), (values, []))[1].append((key, document))
    for id, (values, of) in members.items():
        groups = dict(zip(shape.key, values, strict=True))
        if isinstance(shape, EventShape):
            yield from ((id, found) for found in _folded(shape, groups, of))
            continue
        yield id, groups | {measure.name: measured(measure, _taken(measure, of)) for measure in shape.measures}


def read_group(shape: AggregateShape, stored: Mapping[str, Any]) -> Any:
    """The author's aggregate of a stored document."""
    try:
        return shape.aggregate.model_validate(stored)
    except ValidationError as error:
        raise ScenarioError(f"{shape.name} can't hold what the sink has, {json.dumps(stored)}: {error}") from None


def wrong_group(id: str, shape: AggregateShape, stored: Mapping[str, Any], right: Mapping[str, Any]) -> str | None:
    """The first field that is not as counted, in words."""
    held = read_group(shape, stored)
    for name, value in right.items():
        if getattr(held, name) != value:
            return f"{id}.{name} is {getattr(held, name)!r} in the sink, and {value!r} by the source's rows"
    return None


def _folded(shape: EventShape, groups: Mapping[str, Any], members: list[Member]) -> Iterator[dict[str, Any]]:
    """The group's document, where it has one: its events by their order and key, each given to the author's method."""
    handlers = {handler.name: handler for handler in shape.handlers}
    told = [(_get(d, shape.order), key, _plain(_get(d, shape.type)), _get(d, shape.payload)) for key, d in members]
    events = [
        (handlers[name], payload) for _, _, name, payload in sorted(told, key=itemgetter(0, 1)) if name in handlers
    ]
    found: Any = shape.aggregate.model_validate(groups)
    try:
        for handler, payload in events:
            text = payload if isinstance(payload, str) else _JSON.dump_json(payload).decode()
            found = getattr(found, handler.method)(decoder_of(handler.event)(text))
        shown = bool(events) and found.keep()
    except Exception:  # the author's code, or a payload that does not fit: this document waits
        return
    if shown:
        yield {member.name: getattr(found, member.name) for member in shape.fields}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _get(document: Any, value: Value) -> Any:
    return reduce(lambda at, name: None if at is None else getattr(at, name), value.path, document)


def _taken(measure: MeasureShape, members: list[Member]) -> list[Taken]:
    value, by = measure.value, measure.by
    return [(_get(d, value) if value else None, _get(d, by) if by else None, key) for key, d in members]
