"""Groups counted anew, by pydantic and plain Python over the source's rows: the measure of what the engine kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal, localcontext
from enum import Enum
from fractions import Fraction
from functools import reduce
from operator import itemgetter
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from pipeline.authoring.aggregate_shape import AggregateShape, MeasureShape, Value
from pipeline.authoring.event_shape import EventShape, decoder_of
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
        yield id, groups | {measure.name: _measured(measure, of) for measure in shape.measures}


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


def _measured(measure: MeasureShape, members: list[Member]) -> Any:
    if measure.value is None:
        return len(members)
    value, by = measure.value, measure.by
    if by is None:
        return _UNORDERED[measure.how](measure, [v for _, d in members if (v := _get(d, value)) is not None])
    ordered = [(b, key, _get(d, value)) for key, d in members if (b := _get(d, by)) is not None]
    ordered.sort(key=lambda one: one[:2], reverse=measure.descending or measure.how in ("maximum", "latest"))
    if measure.how == "collect":
        return tuple(v for _, _, v in ordered if v is not None)[: measure.limit]
    return ordered[0][2] if ordered else None


def _total(measure: MeasureShape, values: list[Any]) -> Any:
    assert measure.value is not None
    if not values:
        return None if measure.nullable else 0
    with localcontext(prec=100_000):
        return float(sum(map(Fraction, values))) if measure.value.kind == "float" else sum(values[1:], values[0])


def _average(measure: MeasureShape, values: list[Any]) -> Any:
    assert measure.value is not None
    if not values:
        return None
    mean = sum(map(Fraction, values), Fraction()) / len(values)
    if measure.value.kind == "float":
        return float(mean)
    with localcontext(prec=1000):
        exact = Decimal(mean.numerator) / Decimal(mean.denominator)
        return exact.quantize(Decimal(1).scaleb(-measure.places), rounding=ROUND_HALF_UP)


_UNORDERED: Final[dict[str, Callable[[MeasureShape, list[Any]], Any]]] = {
    "count_distinct": lambda measure, values: len(set(values)),
    "total": _total,
    "average": _average,
}
