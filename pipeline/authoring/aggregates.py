"""Aggregates: one document per group of other documents, kept current as those come, change and go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field

from pipeline.authoring.documents import Document, marked

How = Literal["count", "count_distinct", "total", "average", "minimum", "maximum", "latest", "collect"]


@dataclass(frozen=True, slots=True)
class Group:
    """Documents with the same value of `field` (the aggregate's own field's name where empty) are one group."""

    field: str


@dataclass(frozen=True, slots=True)
class Measure:
    """What is known of a group: `field` of its documents, in the order of `by`."""

    how: How
    field: str = ""
    by: str = ""
    limit: int = 0
    places: int = 0


def group(field: str | None = None) -> Any:
    """One document for each value of `field`, a field or property of the document; `customer.country` through a `one`.

    Without `field` it is the one of the same name. Null is a value like any other.
    """
    return marked(Field(), Group(field or ""))


def count() -> int:
    """How many documents the group has; never 0, for an empty group is no document."""
    number: int = marked(Field(), Measure("count"))
    return number


def count_distinct(field: str) -> int:
    """How many different values `field` has in the group; null is none."""
    number: int = marked(Field(), Measure("count_distinct", field))
    return number


def total(field: str) -> Any:
    """The exact sum of an int, Decimal or float field. Where all are null: null if the annotation allows it, else 0."""
    return marked(Field(), Measure("total", field))


def average(field: str, *, places: int = 6) -> Any:
    """The mean of what is not null: a Decimal rounded to `places` (half away from zero), a float of a float field."""
    return marked(Field(), Measure("average", field, places=places))


def minimum(field: str) -> Any:
    """The least value that is not null; texts in the order of their code points."""
    return marked(Field(), Measure("minimum", field))


def maximum(field: str) -> Any:
    """The greatest value that is not null; texts in the order of their code points."""
    return marked(Field(), Measure("maximum", field))


def latest(field: str, *, by: str | None = None) -> Any:
    """The value of `field` where `by` is greatest (then the key); a date or time is its own `by`."""
    return marked(Field(), Measure("latest", field, by or ""))


def collect(field: str, *, by: str | None = None, limit: int = 100) -> Any:
    """The first `limit` values that are not null in the order of `by` (their own), as a tuple; `-placed_at` turns it."""
    return marked(Field(), Measure("collect", field, by or "", limit))


@dataclass_transform(
    kw_only_default=True,
    field_specifiers=(Field, group, count, count_distinct, total, average, minimum, maximum, latest, collect),
)
class Aggregate(BaseModel):
    """One document per group of the documents `of` a shape; those that `keep()` lets go are not counted."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=True)

    __of__: ClassVar[type[Document] | None] = None

    def __init_subclass__(cls, *, of: type[Document] | None = None, **config: Any) -> None:
        super().__init_subclass__(**config)
        cls.__of__ = of or cls.__of__


__all__ = [
    "Aggregate",
    "average",
    "collect",
    "count",
    "count_distinct",
    "group",
    "latest",
    "maximum",
    "minimum",
    "total",
]
