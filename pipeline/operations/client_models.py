"""Classes for who reads a read model from another project: written from the shape, they need none of its code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pipeline.authoring.column_types import WRITTEN
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape, shape_of

HEAD: Final = '''\
"""Read models, as `cdc web client` wrote them: write them anew where they change.

Read them with `pipeline.client.Client(url, key=…)`.
"""

from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from pydantic import Base64Bytes, BaseModel, ConfigDict
'''
# as an author writes them, but for what JSON has as text
TYPES: Final[dict[Kind, str]] = {**WRITTEN, "interval": "str", "bytes": "Base64Bytes"}


def client_models(projections: Sequence[Projection[Any]]) -> str:
    """The text of a module with a class for each read model, and one for each document inside it."""
    written: dict[str, str] = {}
    for projection in projections:
        _write(written, shape_of(projection.shape), f'    __read_model__: ClassVar[str] = "{projection.name}"\n')
    return "\n\n".join([HEAD, *written.values()])


def _write(written: dict[str, str], shape: Shape, first: str = "") -> str:
    """The name of the class that was written for this level; equal ones are written once."""
    lines = [f"    {member.name}: {_type(written, member)}\n" for member in shape.members if not member.hidden]
    body = f"    model_config = ConfigDict(frozen=True, allow_inf_nan=True)\n{first}\n{''.join(lines)}"
    number, name = 1, shape.name
    while written.get(name, text := _class(name, body)) != text:
        number += 1
        name = f"{shape.name}{number}"
    written[name] = text
    return name


def _class(name: str, body: str) -> str:
    return f"class {name}(BaseModel):\n{body}"


def _type(written: dict[str, str], member: FieldShape | RelationShape) -> str:
    if isinstance(member, RelationShape):
        item = _write(written, member.item)
        return f"tuple[{item}, ...]" if member.many else f"{item} | None"
    item = TYPES[member.kind]
    found = f"tuple[{item} | None, ...]" if member.repeated else item
    return f"{found} | None" if member.nullable and found != "Any" else found
