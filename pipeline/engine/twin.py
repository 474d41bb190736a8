"""A Document's twin: a msgspec Struct with the author's functions, on which derived fields are computed at speed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, get_args, get_origin

import msgspec
from msgspec import UNSET, Struct, UnsetType

from pipeline.authoring.documents import Document
from pipeline.authoring.shape import FieldShape, RelationShape, Shape

_RESERVED: Final = frozenset(vars(Document)) | frozenset(
    {"__module__", "__doc__", "__qualname__", "__dict__", "__weakref__"}
)


class Twin:
    """Turns assembled JSON text into the text with derived fields in and hidden ones out, or None where it leaves."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.struct = _struct(shape)
        self._decode = msgspec.json.Decoder(self.struct).decode
        self._encode = msgspec.json.Encoder().encode
        self._finish = _finisher(shape)

    def finish(self, document: str) -> str | None:
        """The document to write; None where `keep()` says no. Raises what the author's code raises."""
        data: Any = self._decode(document)
        if self.shape.keeps and not data.keep():
            return None
        self._finish(data)
        return str(self._encode(data), "utf-8")


def _struct(shape: Shape) -> type[Struct]:
    fields: list[tuple[str, Any, Any]] = []
    namespace = _functions(shape)
    for member in shape.members:
        if isinstance(member, RelationShape):
            child: Any = _struct(member.shape)
            kind = tuple[child, ...] if member.many else child | None
            fields.append((member.name, kind | UnsetType if member.hidden else kind, msgspec.field(default=UNSET)))
        elif member.column is not None:
            plain = _plain(member.annotation)
            if member.kind == "json" and not member.repeated:
                plain = Any
            kind = plain | None if member.nullable else plain
            fields.append(
                (
                    member.name,
                    kind | UnsetType if member.hidden and kind is not Any else kind,
                    msgspec.field(default=UNSET),
                )
            )
        else:
            stored = f"_derived_{member.name}"
            fields.append((stored, Any, msgspec.field(name=member.name, default=UNSET)))
            namespace[member.name] = property(_once(namespace[member.name].fget, stored))
    return msgspec.defstruct(shape.name, fields, namespace=namespace, gc=False, kw_only=True)


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
    fields = {m.name for m in shape.members if not (isinstance(m, FieldShape) and m.column is None)}
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


def _finisher(shape: Shape) -> Callable[[Any], None]:
    """Computes the derived fields of a level after those below it, and hides the hidden."""
    derived = [f.name for f in shape.derived]
    hidden = [m.name for m in shape.members if m.hidden]
    below = [(r.name, r.many, _finisher(r.shape)) for r in shape.relations if r.shape.python and not r.hidden]
    hides_below = [
        (r.name, r.many, _finisher(r.shape)) for r in shape.relations if not r.shape.python and _hides(r.shape)
    ]

    def finish(data: Any) -> None:
        for name in derived:
            getattr(data, name)
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


def _hides(shape: Shape) -> bool:
    return any(m.hidden for level in shape.walk() for m in level.members)


def _plain(annotation: Any) -> Any:
    """The type without Annotated: msgspec would take pydantic's marks for its own."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if get_origin(annotation) in (list, tuple, set, frozenset) and get_args(annotation):
        return annotation
    return annotation


def needs_python(shape: Shape) -> bool:
    """Whether documents have to pass through a twin: something is derived, kept or hidden at any depth."""
    return shape.python or _hides(shape)
