"""A JSON column that a pydantic model types: the members that its JSON has."""

from __future__ import annotations

from pydantic import BaseModel

from pipeline.authoring.annotations import marks_of
from pipeline.authoring.shape import FieldShape, field_shape
from pipeline.errors import BadShape


def json_members(model: type[BaseModel], above: tuple[type[BaseModel], ...] = ()) -> tuple[FieldShape, ...]:
    """The model's fields by the names that they have in the JSON; those that no single name finds are left out.

    What the model says with a type that no column has, or by containing itself (it is in `above`), is plain JSON.
    """
    found = []
    for name, info in model.model_fields.items():
        alias = info.validation_alias or name
        if not isinstance(alias, str):
            continue
        try:
            member = field_shape(model, alias, info.annotation, alias, [*info.metadata, *marks_of(info.annotation)])
        except BadShape:
            member = FieldShape(alias, "json", alias)
        found.append(FieldShape(alias, "json", alias) if member.model in (*above, model) else member)
    return tuple(found)
