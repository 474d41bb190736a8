"""An event document's shape: what an EventDocument class says, as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from types import FunctionType
from typing import Any, get_type_hints

import msgspec
from pydantic import BaseModel, ValidationError

from pipeline.authoring.aggregate_shape import (
    AggregateShape,
    GroupShape,
    MeasureShape,
    Value,
    group_shape,
    source_of,
    value_of,
)
from pipeline.authoring.aggregates import Group, Measure
from pipeline.authoring.annotations import marks_of
from pipeline.authoring.event_documents import EventDocument
from pipeline.authoring.shape import FieldShape, Kind, Shape, field_shape, written_at
from pipeline.errors import BadShape

UNORDERED: frozenset[Kind] = frozenset({"json", "uuid", "bool", "bytes"})


@dataclass(frozen=True, slots=True)
class Handler:
    """The method that an event of this name goes to, read as `event`."""

    name: str
    method: str
    event: Any


@dataclass(frozen=True, slots=True)
class EventShape(AggregateShape):
    """A group whose one measure is the list of its events; its document is their fold."""

    type: Value
    payload: Value
    order: Value
    handlers: tuple[Handler, ...]
    forgets: bool
    """An event whose row is deleted is no longer one."""


def event_shape(document: type[EventDocument]) -> EventShape:
    """Compile an EventDocument class; raises BadShape with every contradiction found, one a line."""
    of, where, told = source_of(document), written_at(document), document.__told__
    wrong: list[str] = []

    def tried(make: Callable[..., Any], *given: Any) -> Any:
        try:
            return make(*given)
        except BadShape as error:
            text = str(error)
            wrong.append(text if text.startswith(where) else f"{where}: {document.__name__}.{text}")
        return None

    type_ = tried(_told, of, "type", told.type, ("text",))
    payload = tried(_told, of, "payload", told.payload, ("json", "text"))
    order = tried(_order, of, told.order_by)
    if told.deleted not in ("kept", "forgotten"):
        tried(_refuse, f"deleted is {told.deleted!r}; write deleted='kept' or deleted='forgotten'.")
    fields, groups = _members(document, of, tried)
    handlers = _handlers(document, tried)
    if wrong:
        raise BadShape("\n".join(dict.fromkeys(wrong)))
    events = MeasureShape("", "collect", payload, order, False, -1, 0, False)
    return EventShape(
        document.__name__, of.table, tuple(g.name for g in groups), tuple(fields), of.document, False,
        of, tuple(groups), (events,), document,
        type_, payload, order, tuple(handlers), told.deleted == "forgotten",
    )  # fmt: skip


def _refuse(message: str) -> None:
    raise BadShape(message)


def _told(of: Shape, what: str, name: str, kinds: tuple[Kind, ...]) -> Value:
    """The field of the event that `type=`, `payload=` or `order_by=` names."""
    value = value_of(of, FieldShape(what, "text", None), name)
    if value.kind not in kinds:
        wanted = {"text": "str", "json": "dict[str, Any]"}[kinds[0]]
        raise BadShape(f"{what}: {of.name}.{name} is {value.kind}; name a field that is {wanted}, {what}=….")
    return value


def _order(of: Shape, name: str) -> Value:
    value = value_of(of, FieldShape("order_by", "text", None), name)
    if value.kind in UNORDERED:
        raise BadShape(
            f"order_by: {of.name}.{name} is {value.kind}, which does not say what happened first; name a number that "
            "grows or a time, order_by=…."
        )
    if value.nullable:
        raise BadShape(f"order_by: {of.name}.{name} may be null, which has no place; name a field that is never null.")
    return value


def _members(
    document: type[EventDocument], of: Shape, tried: Callable[..., Any]
) -> tuple[list[FieldShape], list[GroupShape]]:
    hints = get_type_hints(document, include_extras=True)
    fields: list[FieldShape] = []
    groups: list[GroupShape] = []
    for name, info in document.model_fields.items():
        own = tried(field_shape, document, name, hints[name], None, [*info.metadata, *marks_of(hints[name])])
        if own is None:
            continue
        fields.append(own)
        mark = next((m for m in info.metadata if isinstance(m, (Group, Measure))), None)
        if isinstance(mark, Group):
            groups += filter(None, [tried(group_shape, of, own, mark)])
        elif mark is not None:
            tried(_refuse, f"{name} is {mark.how}(…), which is for an Aggregate; let the methods @on events keep it.")
        elif info.is_required():
            tried(_refuse, f"{name} has no value before the first event; give it a default, or write = group(…).")
    for name, computed in document.model_computed_fields.items():
        returns = computed.return_type
        fields += filter(None, [tried(field_shape, document, name, returns, None, marks_of(returns))])
    return fields, groups


def _handlers(document: type[EventDocument], tried: Callable[..., Any]) -> list[Handler]:
    found: dict[str, Handler] = {}
    for method, function in _marked(document).items():
        if inspect.iscoroutinefunction(function) or len(inspect.signature(function).parameters) != 2:
            tried(_refuse, f"{method} is @on an event; write def {method}(self, event) -> Self, which gives the next.")
        for event, name in function.__on__:
            named = name or (event.__name__ if isinstance(event, type) and event.__module__ != "builtins" else "")
            if not named:
                tried(_refuse, f"{method} is @on {event}, which has no name; write @on(…, name='order.placed').")
            elif named in found:
                tried(
                    _refuse, f"{method} is @on {named}, and {found[named].method} is too; an event goes to one method."
                )
            else:
                tried(_readable, method, named, event)
                found[named] = Handler(named, method, event)
    if not found:
        tried(_refuse, "handles no event; write a method that is @on a type of event.")
    return list(found.values())


def _marked(document: type[EventDocument]) -> dict[str, Any]:
    """The methods that are on events, as the last class that has the name says."""
    found = {name: item for cls in reversed(document.__mro__) for name, item in vars(cls).items()}
    return {name: item for name, item in found.items() if isinstance(item, FunctionType) and hasattr(item, "__on__")}


def _readable(method: str, named: str, event: Any) -> None:
    try:
        decoder_of(event)
    except TypeError as error:
        raise BadShape(f"{method}: {named} can't be read from JSON ({error}); declare it otherwise.") from None


def decoder_of(event: Any) -> Callable[[str], Any]:
    """Reads a payload's JSON as the type of an event: numbers exact, as in the source. Raises TypeError for what can't be."""
    return msgspec.json.Decoder(event, float_hook=Decimal, dec_hook=made).decode


def made(kind: Any, value: Any) -> Any:
    """A value of the author's own type, which msgspec does not know."""
    if not issubclass(kind, BaseModel):
        return kind(value)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or kind.__name__}: {first['msg']}") from None
