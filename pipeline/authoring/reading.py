"""A stored document as an instance of the class that declares it: for who reads what a projection wrote."""

from __future__ import annotations

import base64
import json
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.authoring.aggregates import Aggregate
from pipeline.authoring.documents import Document
from pipeline.authoring.shape import FieldShape, RelationShape, Shape, shape_of
from pipeline.errors import UnsupportedValue

DocumentT = TypeVar("DocumentT", bound=BaseModel)
STORED = "_stored"
_ADAPTERS: dict[tuple[type[Any], str], TypeAdapter[Any]] = {}
_READABLE: dict[type[Any], type[Any]] = {}


def document_of(document: type[DocumentT], stored: bytes | Mapping[str, Any]) -> DocumentT:
    """The document: derived fields are as stored, hidden ones are not there; any other model takes the fields that it has.

    Raises UnsupportedValue.
    """
    data = json.loads(stored) if isinstance(stored, bytes) else stored
    declared: Any = document
    if not issubclass(document, (Document, Aggregate)):
        return _validated(document, data)
    found: DocumentT = _made(shape_of(declared), document, data)
    return found


def _validated(document: type[DocumentT], data: Mapping[str, Any]) -> DocumentT:
    try:
        return document.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise UnsupportedValue(f"{document.__name__}.{at}: {first['msg']}.") from None


def _made(shape: Shape, document: type[Any], data: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for member in shape.members:
        if member.hidden or member.name not in data:
            continue
        value = data[member.name]
        if isinstance(member, RelationShape):
            values[member.name] = _related(member, value)
        else:
            of = values if member.name in document.model_fields else stored
            of[member.name] = _value(document, member, value)
    made = _readable(document).model_construct(**values)
    made.__dict__[STORED] = stored
    return made


def _related(member: RelationShape, value: Any) -> Any:
    item = member.item
    if member.many:
        return tuple(_made(item, item.document, one) for one in value)
    return None if value is None else _made(item, item.document, value)


def _value(document: type[Any], field: FieldShape, value: Any) -> Any:
    if value is None:
        return None
    if field.kind == "bytes":
        value = [base64.b64decode(one) for one in value] if field.repeated else base64.b64decode(value)
    try:
        return _adapter(document, field).validate_python(value)
    except ValidationError as error:
        raise UnsupportedValue(
            f"{document.__name__}.{field.name}: {str(value)[:60]!r} is no value of it ({error.errors()[0]['msg']}):"
            " declare the field as str to read its text."
        ) from None


def _adapter(document: type[Any], field: FieldShape) -> TypeAdapter[Any]:
    found = _ADAPTERS.get((document, field.name))
    if found is None:
        # other types may have a configuration of their own
        config = ConfigDict(allow_inf_nan=True) if field.kind == "decimal" else None
        found = _ADAPTERS[document, field.name] = TypeAdapter(field.annotation, config=config)
    return found


def _readable(document: type[Any]) -> type[Any]:
    """The class with its derived fields read from what is stored, for what they are made of may be hidden."""
    found = _READABLE.get(document)
    if found is None:
        derived = list(document.model_computed_fields)
        found = _READABLE[document] = _with_stored(document, derived) if derived else document
    return found


def _with_stored(document: type[Any], derived: Sequence[str]) -> type[Any]:
    names = {name: property(_stored(name)) for name in derived}
    base: Any = document
    made: type[Any] = types.new_class(
        document.__name__,
        (base,),
        {"source": base.__source__, "key": base.__key__},
        lambda own: own.update({"__module__": document.__module__, **names}),
    )
    return made


def _stored(name: str) -> Callable[[Any], Any]:
    return lambda self: self.__dict__[STORED][name]
