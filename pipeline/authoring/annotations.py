"""What an annotation says: the type without its marks, the marks, and the pydantic model in it."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def marks_of(annotation: Any) -> list[Any]:
    """What Annotated adds, wherever it stands: pydantic does not look into `Annotated[str, Text()] | None`."""
    found = list(getattr(annotation, "__metadata__", ()))
    inner = (annotation.__origin__,) if found else get_args(annotation)
    return found + [mark for item in inner if get_origin(annotation) is not Literal for mark in marks_of(item)]


def unwrapped(annotation: Any) -> tuple[Any, bool]:
    """The type without Annotated and None, and whether None was allowed."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in get_args(annotation) if a is not type(None)]
        if len(rest) == 1:
            return unwrapped(rest[0])[0], len(rest) < len(get_args(annotation))
        return Any, True
    return annotation, annotation is Any


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model that a value has to be, or each item of a list; None where it is another type."""
    plain, _ = unwrapped(annotation)
    if get_origin(plain) in (tuple, list) and get_args(plain):
        plain, _ = unwrapped(get_args(plain)[0])
    return plain if isinstance(plain, type) and issubclass(plain, BaseModel) else None
