"""What operations are told of a kind of sink, so that they need not know its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError

Mapper = Callable[[Shape, Mapping[str, object]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class SinkRules:
    """The names a kind of sink takes, and the schema it makes of a shape; either raises DefinitionError."""

    mapping: Mapper | None = None
    name: re.Pattern[str] = re.compile(r".+")
    name_rule: str = "it is empty"

    def complaints(self, target: Target, shape: Shape) -> Iterator[str]:
        """What is wrong with a target."""
        if not self.name.fullmatch(target.name):
            yield f"{target.name!r} can't name a target of {target.kind}; {self.name_rule}."
        if self.mapping is not None:
            try:
                self.mapping(shape, target.options)
            except DefinitionError as error:
                yield str(error)
