"""What a sink can check of a document by itself, where its server would take anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from pipeline.authoring.shape import Shape

ID_BYTES = 512


def parsed(text: str, shape: Shape | None) -> dict[str, Any]:
    """The document; raises ValueError, in words, where it is no JSON object or has members that the shape lacks."""
    text.encode()  # a lone surrogate can't be sent to anyone
    document = json.loads(text, parse_constant=_no_constant)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    if shape is not None:
        _check(document, shape, "")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check(document: Mapping[str, Any], shape: Shape, above: str) -> None:
    """Refuse members that the shape does not declare, as a strict mapping does."""
    known = {member.name for member in shape.members if not member.hidden}
    unknown = [above + name for name in document if name not in known]
    if unknown:
        raise ValueError(f"the shape has no field {', '.join(unknown)}")
    for relation in shape.relations:
        inner = document.get(relation.name)
        for part in inner if isinstance(inner, list) else [inner]:
            if isinstance(part, Mapping):
                _check(part, relation.item, f"{above}{relation.name}.")
