"""What two versions of a projection differ in, as an author sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import BaseModel

from pipeline.authoring.json_columns import json_members
from pipeline.authoring.shape import FieldShape, Shape

Fields = Mapping[str, str]
"""`{"lines.unit_price": "decimal", "tags": "text[]"}`: each field that is written, by its path."""
Columns = Mapping[str, Sequence[str]]
"""The source columns that a mirror holds, by table."""


def fields_of(shape: Shape, above: str = "") -> dict[str, str]:
    """The fields of a document and the kinds of their values."""
    found: dict[str, str] = {}
    for member in shape.members:
        if member.hidden:
            continue
        path = above + member.name
        if isinstance(member, FieldShape):
            found |= _inside(member, path, ())
        else:
            found |= fields_of(member.item, f"{path}.")
    return found


def _inside(field: FieldShape, path: str, above: tuple[type[BaseModel], ...]) -> dict[str, str]:
    """A field; of JSON that a model types, the model's."""
    if field.model is None:
        return {path: field.kind + "[]" * field.repeated}
    above = (*above, field.model)
    found: dict[str, str] = {}
    for member in json_members(field.model, above):
        found |= _inside(member, f"{path}.{member.name}", above)
    return found


def columns_of(shape: Shape) -> dict[str, tuple[str, ...]]:
    return {table: tuple(sorted(columns)) for table, columns in sorted(shape.columns().items())}


def differences(old: Fields, new: Fields) -> tuple[str, ...]:
    """`+ total decimal`, `- status text`, `~ note text → json`, in the order of the new document."""
    changed = [f"~ {path} {old[path]} → {kind}" for path, kind in new.items() if path in old and old[path] != kind]
    added = [f"+ {path} {kind}" for path, kind in new.items() if path not in old]
    return (*added, *changed, *(f"- {path} {kind}" for path, kind in old.items() if path not in new))


def rebuilt_from(old: Columns, new: Columns) -> Literal["mirror", "log"]:
    """The cheapest source that has all the new version needs: the old mirror, or the topics."""
    return "mirror" if all(set(columns) <= set(old.get(table, ())) for table, columns in new.items()) else "log"
