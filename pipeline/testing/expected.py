"""What documents have to be: built from the source's rows by pydantic alone, and compared with what a sink holds."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from msgspec import Raw
from pydantic import TypeAdapter, ValidationError

from pipeline.authoring.column_types import Wire
from pipeline.authoring.documents import Document
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape
from pipeline.engine.layout import Layout
from pipeline.errors import ScenarioError
from pipeline.events.values import converter, field_type
from pipeline.testing.source import Row, Rows


def nested(layout: Layout, row: Row, rows: Rows) -> dict[str, Any]:
    """A root's row and what hangs on it, by the names of the fields, hidden ones too; derived ones are not there."""
    return _nested(layout, layout.shape, row, rows)


def _nested(layout: Layout, shape: Shape, row: Row, rows: Rows) -> dict[str, Any]:
    found: dict[str, Any] = {}
    wires = layout.tables[shape.table].wires
    for member in shape.members:
        if isinstance(member, RelationShape):
            found[member.name] = _related(layout, member, row, rows)
        elif member.column is not None:
            held = _held(wires[member.column], row.get(member.column))
            array = wires[member.column].array or member.repeated
            found[member.name] = _python(member.kind, held, array)
            if member.mask is not None:
                found[member.name] = member.mask.of(found[member.name], layout.salt)
        elif member.fixed is not None:
            found[member.name] = member.fixed.value
        elif member.left_out_of is not None:
            relation = next(r for r in shape.relations if r.name == member.left_out_of)
            found[member.name] = max(0, len(_chosen(layout, relation, row, rows)) - (relation.limit or 0))
    return found


def _related(layout: Layout, relation: RelationShape, row: Row, rows: Rows) -> Any:
    chosen = _chosen(layout, relation, row, rows)[: relation.limit if relation.many else 1]
    parts = [_nested(layout, relation.item, other, rows) for other in chosen]
    if relation.item.keeps:
        parts = [part for part in parts if instance(relation.item, part).keep()]
    return parts if relation.many else parts[0] if parts else None


def _chosen(layout: Layout, relation: RelationShape, row: Row, rows: Rows) -> list[Row]:
    """The rows that a relation shows, in their order."""
    item, found = relation.item, _matching(row, relation, rows)
    if relation.links:
        found = [other for link in found for other in _matching(link, relation.shape.relations[0], rows)]
    found = [other for other in found if all(other.get(name) in values for name, values in relation.where)]
    wires = layout.tables[item.table].wires
    for name in reversed(list(dict.fromkeys((*relation.order_by, *item.key)))):
        found.sort(key=lambda other, n=name: _rank(wires[n], other.get(n)), reverse=name in relation.descending)  # type: ignore[misc]
    return found


def _matching(row: Row, relation: RelationShape, rows: Rows) -> list[Row]:
    wanted = [row.get(name) for name in relation.local]
    if None in wanted:
        return []
    others = rows[relation.shape.table].values()
    return [other for other in others if [other.get(name) for name in relation.remote] == wanted]


def _held(wire: Wire, value: Any) -> Any:
    """What an event's value is after decoding: a scalar, or JSON as Python has it."""
    convert = converter(wire)
    if value is None or convert is None:
        return value
    if field_type(wire) is not Raw:
        return convert(value)
    text = convert(Raw(json.dumps(value).encode()))
    return None if text is None else json.loads(text)


def _rank(wire: Wire, value: Any) -> tuple[bool, Any]:
    """As the source orders: a number by its value and a time by its moment, not as their texts are; nulls last."""
    held = _held(wire, value)
    if held is None:
        return True, 0
    if wire.kind in ("decimal", "float"):
        number = Decimal(str(held))
        return False, (number.is_nan(), 0 if number.is_nan() else number)
    if wire.kind == "interval":
        return False, _INTERVAL.validate_python(held)
    return False, held.removesuffix("Z") if isinstance(held, str) and wire.kind in ("datetime", "timestamp") else held


_INTERVAL: Final = TypeAdapter(timedelta)


def _python(kind: Kind | None, value: Any, repeated: bool) -> Any:
    """A value as the mirror or a document has it, so that pydantic takes it for what it is."""
    if value is None:
        return None
    if repeated and isinstance(value, list):
        return [_python(kind, item, False) for item in value]
    return base64.b64decode(value) if kind == "bytes" else value


def instance(shape: Shape, values: Mapping[str, Any]) -> Any:
    """The author's document; raises ScenarioError where its own class refuses the values."""
    try:
        return shape.document.model_validate(_typed(shape, values), by_alias=False, by_name=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, (shape.name, *first["loc"])))
        raise ScenarioError(f"{where}: {first['msg']}: the rows can't be read as {shape.name}.") from None


def _typed(shape: Shape, values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON by its models, whose own aliases count, where the documents' fields go by their names."""
    found = dict(values)
    for member in shape.members:
        part = found.get(member.name)
        if part is None:
            continue
        if isinstance(member, RelationShape):
            one = [_typed(member.item, row) for row in (part if member.many else [part])]
            found[member.name] = one if member.many else one[0]
        elif member.model is not None:
            found[member.name] = TypeAdapter[Any](member.annotation).validate_python(part)
    return found


def stored_values(shape: Shape, stored: Mapping[str, Any], source: Mapping[str, Any] | None) -> dict[str, Any]:
    """A sink's document by the names of the fields; hidden ones, which no sink has, come from the source's rows."""
    found: dict[str, Any] = {}
    for member in shape.members:
        if isinstance(member, FieldShape) and member.derived:
            continue
        hidden = (source or {}).get(member.name)
        if member.hidden:
            found[member.name] = hidden
        elif isinstance(member, RelationShape):
            found[member.name] = _stored_related(member, stored.get(member.name), hidden)
        else:
            found[member.name] = _python(member.kind, stored.get(member.name), member.repeated)
    return found


def _stored_related(relation: RelationShape, stored: Any, source: Any) -> Any:
    if stored is None:
        return None
    if not relation.many:
        return stored_values(relation.item, stored, source)
    sources: Sequence[Any] = source if isinstance(source, list) and len(source) == len(stored) else [None] * len(stored)
    return [stored_values(relation.item, part, other) for part, other in zip(stored, sources, strict=True)]


def derived_differences(shape: Shape, document: Document, stored: Mapping[str, Any], path: str) -> Iterator[str]:
    """Derived fields whose value in the sink is not what the class computes from the same row."""
    for field in shape.derived:
        own, there = getattr(document, field.name), stored.get(field.name)
        adapter: TypeAdapter[Any] = TypeAdapter(field.annotation)
        try:
            same = adapter.dump_python(adapter.validate_python(there), mode="json") == adapter.dump_python(
                adapter.validate_python(own), mode="json"
            )
        except ValidationError:
            same = False
        if not same:
            yield f"{path}.{field.name} is {there!r} in the sink, and {own!r} when it is computed again"
    for relation in shape.relations:
        if relation.hidden:
            continue
        part, below = getattr(document, relation.name), stored.get(relation.name)
        pairs = zip(part, below or (), strict=False) if relation.many else [(part, below)]
        for i, (own, there) in enumerate(pairs):
            if own is not None and there is not None:
                where = f"{path}.{relation.name}" + (f"[{i}]" if relation.many else "")
                yield from derived_differences(relation.item, own, there, where)


def difference(one: Any, other: Any, path: str, words: tuple[str, str] = ("", "")) -> str | None:
    """Where two JSON values first differ, in words; None where they do not."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in (*one, *(name for name in other if name not in one)):
            inner = difference(one.get(name, _ABSENT), other.get(name, _ABSENT), f"{path}.{name}", words)
            if inner:
                return inner
        return None
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        for i in range(max(len(one), len(other))):
            here, there = (own[i] if i < len(own) else _ABSENT for own in (one, other))
            inner = difference(here, there, f"{path}[{i}]", words)
            if inner:
                return inner
        return None
    return None if one == other else f"{path} is {one!r}{words[0]}, and {other!r}{words[1]}"


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()
