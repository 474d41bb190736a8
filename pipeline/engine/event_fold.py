"""An event document is the events of its group, folded in their order by the author's methods."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, cast

import msgspec
from msgspec import Raw
from pydantic import ValidationError

from pipeline.authoring.event_documents import EventDocument
from pipeline.authoring.event_shape import EventShape, decoder_of
from pipeline.engine.measures import Contributing, checked, json_text, reader_of, sort_key
from pipeline.engine.twin import reader_of_text
from pipeline.errors import UnsupportedValue

_events: Final = msgspec.json.Decoder(list[tuple[str, Raw]]).decode
_fragments: Final = msgspec.json.Decoder(list[Any]).decode


class EventContributing(Contributing):
    """What an event gives to its group: its name and payload, at its place."""

    def __init__(self, shape: EventShape) -> None:
        super().__init__(shape)
        self._shape = shape
        self._type, self._payload, self._order = map(reader_of, (shape.type, shape.payload, shape.order))
        self._decoders = decoders_of(shape)

    def takes(self, data: Any) -> bool:
        return checked(self._type(data), self._shape.type) in self._decoders

    def values(self, data: Any) -> tuple[Any, ...]:
        """Raises UnsupportedValue for a payload that its type can't hold: told of now, with the event's key."""
        name, payload = checked(self._type(data), self._shape.type), self._payload(data)
        text = payload if isinstance(payload, str) else json_text(payload) or "null"
        self._decoders[name](text)
        order = checked(self._order(data), self._shape.order)
        place = json_text(order)
        if place is None:
            raise UnsupportedValue(f"{'.'.join(self._shape.order.path)} is null, and gives the event no place.")
        return sort_key(order, place, self._shape.order.field), f"[{json.dumps(name)},{text}]"


class EventFold:
    """Folds the events of a group."""

    def __init__(self, shape: EventShape) -> None:
        self._document = cast("type[EventDocument]", shape.aggregate)
        self._decoders = decoders_of(shape)
        self._methods = {h.name: (h.method, getattr(shape.aggregate, h.method)) for h in shape.handlers}
        self._groups = [(g.name, reader_of_text(g.value.field)) for g in shape.groups]

    def document(self, key: str, events: str) -> str | None:
        """The document's JSON, None where `keep()` says no; raises what the author's code raises."""
        values = zip(self._groups, _fragments(key), strict=True)
        found = self._document(**{name: None if value is None else read(value) for (name, read), value in values})
        for name, payload in _events(events):
            method, function = self._methods[name]
            found = function(found, self._decoders[name](payload))
            if not isinstance(found, self._document):
                raise UnsupportedValue(
                    f"{method} gave {type(found).__name__} for {name}; return the next document, self.but(…) or self."
                )
        if not found.keep():
            return None
        return "{" + ",".join(f"{json.dumps(n)}:{json_text(v) or 'null'}" for n, v in found.model_dump().items()) + "}"


def decoders_of(shape: EventShape) -> dict[str, Callable[[Any], Any]]:
    return {h.name: _telling(h.name, decoder_of(h.event)) for h in shape.handlers}


def _telling(name: str, decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(payload: Any) -> Any:
        try:
            return decode(payload)
        except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError) as error:
            raise UnsupportedValue(f"the payload is no {name}: {_said(error)}") from None

    return read


def _said(error: Exception) -> str:
    """In one line, and without the payload, which pydantic would show."""
    cause = error.__cause__
    if not isinstance(cause, ValidationError):
        return str(error)
    first = cause.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
