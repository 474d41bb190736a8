"""Leaves: the single values that a document shows, each by its dotted path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pipeline.authoring.shape import FieldShape, Kind, Shape


@dataclass(frozen=True, slots=True)
class Leaf:
    """`lines.product.sku`. `lists` are the places of lists on the way, the leaf's own among them."""

    path: tuple[str, ...]
    field: FieldShape
    lists: tuple[bool, ...]

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def kind(self) -> Kind:
        return self.field.kind

    @property
    def several(self) -> bool:
        """A document may have more than one of it."""
        return any(self.lists)

    @property
    def text(self) -> bool:
        """It is searched by its words, and not compared."""
        return self.field.kind == "text" and self.field.text is not None

    @property
    def compared(self) -> bool:
        """Values of its kind are equal, less or greater in every sink."""
        return self.kind not in ("json", "bytes", "interval") and not self.text


@cache
def leaves(shape: Shape) -> dict[str, Leaf]:
    """What documents of the shape show, in their order; what is hidden is not among it."""
    return {leaf.name: leaf for leaf in _leaves(shape, (), ())}


def _leaves(shape: Shape, above: tuple[str, ...], lists: tuple[bool, ...]) -> list[Leaf]:
    found: list[Leaf] = []
    for member in shape.members:
        path = (*above, member.name)
        if member.hidden:
            continue
        if isinstance(member, FieldShape):
            found.append(Leaf(path, member, (*lists, member.repeated)))
        else:
            found += _leaves(member.item, path, (*lists, member.many))
    return found
