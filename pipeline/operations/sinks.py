"""What operations are told of a kind of sink, so that they need not know its code."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError

Mapper = Callable[[Shape, Mapping[str, object]], Mapping[str, Any]]
Writer = Callable[[Target, str, Shape], str]
Namer = Callable[[Target], Collection[str]]


@dataclass(frozen=True, slots=True)
class SinkRules:
    """The names a kind of sink takes, and the schema it makes of a shape; `mapping` and `ddl` raise DefinitionError."""

    mapping: Mapper | None = None
    name: re.Pattern[str] = re.compile(r".+")
    name_rule: str = "it is empty"
    ddl: Writer | None = None
    """The SQL that makes the table, or comments of SQL, of the target, the projection's id and the shape."""
    also: Namer | None = None
    """Names beside its own that readers see a target by."""

    def names(self, target: Target) -> tuple[str, ...]:
        """All names that no other target may have."""
        return (target.name, *(self.also(target) if self.also is not None else ()))

    def complaints(self, target: Target, shape: Shape, id: str) -> Iterator[str]:
        """What is wrong with a target of the projection `id`, `orders-v3`."""
        if not self.name.fullmatch(target.name):
            yield f"{target.name!r} can't name a target of {target.kind}; {self.name_rule}."
        try:
            if self.mapping is not None:
                self.mapping(shape, target.options)
            if self.ddl is not None:
                self.ddl(target, id, shape)
        except DefinitionError as error:
            yield str(error)
