"""A Document's twin: a msgspec Struct with the author's functions, on which derived fields are computed at speed.

A copied value keeps its JSON text and becomes a Python object only where the author's code reads it. So both roads to a
document give the same text, and what Python can't hold (the year 44 BC, a month) hurts only code that reads it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from functools import partial
from operator import attrgetter
from typing import Any, Final, get_origin

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from pipeline.authoring.annotations import unwrapped
from pipeline.authoring.documents import Document
from pipeline.authoring.event_shape import decoder_of, made
from pipeline.authoring.shape import FieldShape, RelationShape, Shape
from pipeline.errors import UnsupportedValue

_RESERVED: Final = frozenset(vars(Document)) | frozenset(
    {"__module__", "__doc__", "__qualname__", "__dict__", "__weakref__"}
)
_EAGER: Final = (int, bool, str)
_PERIOD: Final = re.compile(r"P(-?\d+)Y(-?\d+)M(-?\d+)DT(-?\d+)H(-?\d+)M(-?[\d.]+)S")


class Twin:
    """Turns assembled JSON text into the text with derived fields in and hidden ones out, or None where it leaves."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.struct = _struct(shape)
        self._decode = msgspec.json.Decoder(self.struct).decode
        self._encode = msgspec.json.Encoder().encode
        self._check, self._leave_out, self._finish = _checker(shape), _keeper(shape), _finisher(shape)

    def finish(self, document: str) -> str | None:
        """The document to write; None where `keep()` says no. Raises what the author's code raises."""
        data = self.read(document)
        if data is None:
            return None
        self._finish(data)
        return str(self._encode(data), "utf-8")

    def read(self, document: str) -> Any:
        """The document as the author's code sees it; None where `keep()` says no."""
        data: Any = self._decode(document)
        if self._check is not None:
            self._check(data)
        if self._leave_out is not None:
            self._leave_out(data)
        return None if self.shape.keeps and not data.keep() else data


def _struct(shape: Shape) -> type[Struct]:
    fields: list[tuple[str, Any, Any]] = []
    namespace = _functions(shape)
    for member in shape.members:
        if isinstance(member, RelationShape):
            child: Any = _struct(member.item)
            kind = tuple[child, ...] if member.many else child | None
            fields.append((member.name, kind | UnsetType if member.hidden else kind, msgspec.field(default=UNSET)))
            continue
        stored = stored_name(member)
        if member.derived:
            fields.append((stored, Any, msgspec.field(name=member.name, default=UNSET)))
            namespace[member.name] = property(_once(namespace[member.name].fget, stored))
        elif stored == member.name:
            fields.append((stored, _plain(member.annotation) | None | UnsetType, msgspec.field(default=UNSET)))
        else:
            fields.append((stored, _held(member), msgspec.field(name=member.name, default=UNSET)))
            namespace[member.name] = property(_read(shape, member, stored))
    for name, info in shape.document.model_fields.items():
        if all(name != member.name for member in shape.members):
            # a document that contains itself, at its deepest level
            namespace[name] = () if info.default_factory is tuple else None
    return msgspec.defstruct(shape.name, fields, namespace=namespace, gc=False, kw_only=True)


def stored_name(field: FieldShape) -> str:
    """The name by which the twin holds a field's value."""
    if field.derived:
        return f"_derived_{field.name}"
    return field.name if _plain(field.annotation) in _EAGER else f"_raw_{field.name}"


def _held(field: FieldShape) -> Any:
    """What the twin holds of a value that is read later: its text, or its JSON."""
    return Raw if field.repeated or field.kind in ("float", "json") else str | None | UnsetType


def _read(shape: Shape, field: FieldShape, stored: str) -> Callable[[Any], Any]:
    """Reads a copied value as the Python type that the author declared."""
    plain, held = _plain(field.annotation), attrgetter(stored)
    convert = _converter(field, plain)

    def get(self: Any) -> Any:
        value = held(self)
        try:
            return None if value is None else convert(value)
        except (msgspec.MsgspecError, ValueError, ArithmeticError) as error:
            text = value if isinstance(value, str) else bytes(value).decode(errors="replace")
            raise UnsupportedValue(
                f"{shape.name}.{field.name}: {text[:60]} is no {_name(plain)} of Python"
                f" ({error}); {'mend the row, or the model' if field.model else 'declare the field as str to read its text'}."
            ) from None

    return get


def _converter(field: FieldShape, plain: Any) -> Callable[[Any], Any]:
    """From what the twin holds to what the author's code gets."""
    if field.kind == "decimal" and plain is Decimal:
        return Decimal
    if field.repeated and field.kind in ("interval", "float"):
        one = _period if field.kind == "interval" else _float
        return _list(get_origin(plain) or tuple, one)
    if field.repeated or field.kind == "json":
        # a number of JSON that is no int is a Decimal, unless the author says float
        return decoder_of(plain | None)
    if field.kind == "float":
        return lambda raw: None if bytes(raw) == b"null" else _float(bytes(raw).strip(b'"').decode())
    if field.kind == "interval":
        return _period
    return partial(msgspec.convert, type=plain, strict=False, dec_hook=made)


def reader_of_text(field: FieldShape) -> Callable[[Any], Any]:
    """From a single value's JSON, decoded, to the Python type that the author declared."""
    return _converter(field, _plain(field.annotation))


def _float(text: Any) -> float:
    return float(text)


def _list(holder: Callable[[Any], Any], one: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(raw: Any) -> Any:
        items = msgspec.json.decode(raw)
        return None if items is None else holder(None if item is None else one(item) for item in items)

    return convert


def _name(plain: Any) -> str:
    return plain.__name__ if isinstance(plain, type) else str(plain)


def _period(text: str) -> timedelta:
    """Raises ValueError for an interval of months: how long that is only a calendar knows."""
    found = _PERIOD.fullmatch(text)
    if found is None:
        raise ValueError("it has another form")
    years, months, days, hours, minutes = map(int, found.groups()[:5])
    if years or months:
        raise ValueError("a timedelta has no months")
    return timedelta(days, 0, int(Decimal(found[6]) * 1_000_000), 0, minutes, hours)


def _once(function: Callable[[Any], Any], stored: str) -> Callable[[Any], Any]:
    """Computed at most once a document, however many other fields use it."""

    def get(self: Any) -> Any:
        found = getattr(self, stored)
        if found is UNSET:
            found = function(self)
            setattr(self, stored, found)
        return found

    return get


def _functions(shape: Shape) -> dict[str, Any]:
    """The author's own methods, properties and constants, from the class and the bases between it and Document."""
    found: dict[str, Any] = {}
    fields = {m.name for m in shape.members if not (isinstance(m, FieldShape) and m.derived)}
    for cls in reversed(shape.document.__mro__):
        if not issubclass(cls, Document) or cls is Document:
            continue
        for name, item in vars(cls).items():
            if name in _RESERVED or name in fields or name.startswith(("__", "model_", "_abc_")):
                continue
            found[name] = getattr(item, "wrapped", item)
    if shape.keeps:
        found["keep"] = shape.document.keep
    return found


def _checker(shape: Shape) -> Callable[[Any], None] | None:
    """Reads, at every level, the JSON that a model types, so that what the model refuses is raised; None where there is none."""
    typed = [(f.name, f.nullable) for f in shape.fields if f.model is not None]
    below = [(r.name, r.many, inner) for r in shape.relations if (inner := _checker(r.item)) is not None]
    if not typed and not below:
        return None

    def check(data: Any) -> None:
        for name, nullable in typed:
            if getattr(data, name) is None and not nullable:
                raise UnsupportedValue(f"{shape.name}.{name} is null, and the field may not be; write | None.")
        for name, many, inner in below:
            rows = getattr(data, name)
            for row in rows if many else () if rows is None else (rows,):
                inner(row)

    return check


def _keeper(shape: Shape) -> Callable[[Any], None] | None:
    """Leaves out, from below, the rows whose own `keep()` says no; None where no level has one."""
    below = [(r.name, r.many, r.item.keeps, _keeper(r.item)) for r in shape.relations]
    below = [level for level in below if level[2] or level[3] is not None]
    if not below:
        return None

    def leave_out(data: Any) -> None:
        for name, many, keeps, inner in below:
            rows = getattr(data, name)
            items = rows if many else () if rows is None else (rows,)
            if inner is not None:
                for item in items:
                    inner(item)
            kept = tuple(item for item in items if item.keep()) if keeps else items
            if len(kept) < len(items):
                setattr(data, name, kept if many else None)

    return leave_out


def _finisher(shape: Shape) -> Callable[[Any], None]:
    """Computes a level's derived fields, then those below it, which it has read by then; and hides the hidden."""
    derived = [(f.name, stored_name(f), f.repeated or f.kind in _SPELLED) for f in shape.derived]
    hidden = [stored_name(m) if isinstance(m, FieldShape) else m.name for m in shape.members if m.hidden]
    below = [(r.name, r.many, _finisher(r.item)) for r in shape.relations if r.item.python and not r.hidden]
    hides_below = [
        (r.name, r.many, _finisher(r.item))
        for r in shape.relations
        if not r.item.python and not r.hidden and _hides(r.item)
    ]

    def finish(data: Any) -> None:
        for name, _, _ in derived:
            getattr(data, name)
        for _, stored, by_python in derived:
            if by_python:
                setattr(data, stored, spelled(getattr(data, stored)))
        for name, many, inner in (*below, *hides_below):
            item = getattr(data, name)
            if many:
                for one in item:
                    inner(one)
            elif item is not None:
                inner(item)
        for name in hidden:
            setattr(data, name, UNSET)

    return finish


_SPELLED: Final = ("decimal", "float", "json")


def spelled(value: Any) -> Any:
    """Numbers as the source writes them: no exponent, and NaN by its name, where JSON would have null."""
    if isinstance(value, Decimal):
        text = str(value)
        return text if "E" not in text else format(value, "f")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return [spelled(item) for item in value]
    return value


def _hides(shape: Shape) -> bool:
    return any(m.hidden for level in shape.walk() for m in level.members)


def _plain(annotation: Any) -> Any:
    """The type without Annotated and None: msgspec would take pydantic's marks for its own."""
    return unwrapped(annotation)[0]


def needs_python(shape: Shape) -> bool:
    """Whether documents have to pass through a twin: something is derived, kept or hidden at any depth."""
    return shape.python or _hides(shape)
