"""Columns of the source that must not go to a kind of sink, and the documents that would take them there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pipeline.authoring.shape import Shape


@dataclass(frozen=True, slots=True)
class Taken:
    """A member of a document, at any depth, that has a column which is withheld."""

    column: str
    """`shop.customers.email`."""
    shape: Shape
    member: str
    """Of the shape; empty where it is its key."""
    hidden: bool = False
    """It is not shown, but the author's code may use it for what is."""


def taken(shape: Shape, withheld: Collection[str]) -> Iterator[Taken]:
    """What documents, or the groups made of them, have of `withheld`: `shop.customers.email`, `shop.cards.*`."""
    if not withheld:
        return
    root = shape.source
    for name in root.key:  # names the document, shown or not
        if (column := _withheld(root, name, withheld)) and name not in {field.column for field in root.copied}:
            yield Taken(column, root, "")
    for level in dict.fromkeys(root.walk()):
        for field in level.copied:
            if field.column is not None and (column := _withheld(level, field.column, withheld)):
                yield Taken(column, level, field.name, field.hidden)


def _withheld(shape: Shape, column: str, withheld: Collection[str]) -> str:
    name = f"{shape.table}.{column}"
    return name if name in withheld or f"{shape.table}.*" in withheld else ""
