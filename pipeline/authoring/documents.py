"""Documents: declare the read model you want; a field named like a column is copied, `one` and `many` are joined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.fields import FieldInfo

from pipeline.authoring.masks import Mask
from pipeline.errors import BadShape

Constant = str | int | bool | None
"""What a column is compared with in `where`."""


@dataclass(frozen=True, slots=True)
class One:
    """This row holds the foreign key `via`; follow it to at most one row, by that table's columns `to`."""

    via: tuple[str, ...]
    to: tuple[str, ...]
    where: tuple[tuple[str, tuple[Constant, ...]], ...]
    depth: int | None
    hidden: bool


@dataclass(frozen=True, slots=True)
class Many:
    """The other rows hold our columns `to` in `by`; collect them in `order_by`.

    With `through`, `by` is in that table, whose column `via` leads on to the rows to collect.
    """

    by: tuple[str, ...]
    to: tuple[str, ...]
    through: str
    via: tuple[str, ...]
    where: tuple[tuple[str, tuple[Constant, ...]], ...]
    order_by: tuple[str, ...]
    limit: int | None
    depth: int | None
    hidden: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many rows the relation `of` has beyond its limit."""

    of: str


@dataclass(frozen=True, slots=True)
class Fixed:
    """The same value in every document."""

    value: Any


@dataclass(frozen=True, slots=True)
class Hidden:
    """Read for Python's use, never written to a sink."""


@dataclass(frozen=True, slots=True)
class Text:
    """Index as full text. Without it a `str` is an exact-match keyword."""

    analyzer: str = "standard"


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def marked(field: Any, marker: object) -> Any:
    """A pydantic field that carries a mark of ours."""
    assert isinstance(field, FieldInfo)
    field.metadata.append(marker)
    return field


def _where(where: Mapping[str, Constant | tuple[Constant, ...]] | None) -> tuple[tuple[str, tuple[Constant, ...]], ...]:
    return tuple((name, value if isinstance(value, tuple) else (value,)) for name, value in (where or {}).items())


def one(
    *,
    via: str | tuple[str, ...],
    to: str | tuple[str, ...] = (),
    where: Mapping[str, Constant | tuple[Constant, ...]] | None = None,
    depth: int | None = None,
    hidden: bool = False,
) -> Any:
    """Follow the foreign key in our column `via` to the other table's key; the field is that document or None.

    `to`: the other table's columns that `via` refers to, where they are not its key (they must be unique).
    `where`: only a row whose columns have these values, or one of a tuple of values.
    `depth`: for a document that contains itself (a category's parent): how many levels.
    """
    mark = One(_names(via), _names(to), _where(where), depth, hidden)
    return marked(Field(default=None, exclude=hidden), mark)


def many(
    *,
    by: str | tuple[str, ...],
    to: str | tuple[str, ...] = (),
    through: str = "",
    via: str | tuple[str, ...] = (),
    where: Mapping[str, Constant | tuple[Constant, ...]] | None = None,
    order_by: str | tuple[str, ...] = (),
    limit: int | None = None,
    depth: int | None = None,
    hidden: bool = False,
) -> Any:
    """Collect the rows of the other table whose column `by` holds our key, in `order_by` (their key where not given).

    `to`: our columns that `by` refers to, where they are not our key.
    `through` and `via`: a link table; `by` is its reference to us and `via` its reference to the rows to collect.
    `where`: only rows whose columns have these values, or one of a tuple of values.
    `order_by`: columns; one with a minus before it (`"-placed_at"`) descends.
    `limit`: only the first so many; `left_out("lines")` is a field with the number of the others.
    `depth`: for a document that contains itself (a category's children): how many levels.
    """
    mark = Many(
        _names(by), _names(to), through, _names(via), _where(where), _names(order_by), limit, depth, hidden
    )  # fmt: skip
    return marked(Field(default_factory=tuple, exclude=hidden), mark)


def left_out(of: str) -> Any:
    """How many rows the relation `of` has beyond its `limit`; 0 where all are there."""
    return marked(Field(default=0), LeftOut(of))


def constant(value: Any) -> Any:
    """The same value in every document: a text, a number, a boolean."""
    return marked(Field(default=value), Fixed(value))


def column(name: str, *, default: Any = ...) -> Any:
    """Read the field from a column with another name."""
    return Field(default=default, validation_alias=name)


def hidden(name: str | None = None) -> Any:
    """Read the column for use in Python; never write it to a sink."""
    return marked(Field(exclude=True, validation_alias=name), Hidden())


def hashed(name: str | None = None) -> Any:
    """Write the hash of the column's text, 64 hex digits, never the text: SHA-256 of the setting `mask.salt` and it."""
    return marked(Field(validation_alias=name), Mask("hash"))


def masked(name: str | None = None, *, keep: int = 0) -> Any:
    """Write three stars and the last `keep` characters of the column's text; the stars alone where it has no more."""
    if keep < 0:
        raise BadShape(f"masked(keep={keep}) keeps less than nothing; write keep=0 or more.")
    return marked(Field(validation_alias=name), Mask("keep", keep))


if TYPE_CHECKING:
    derived = property
else:

    def derived(method: Any) -> Any:
        """A field computed from the others and written to the sinks."""
        return computed_field(property(method))


@dataclass_transform(
    kw_only_default=True, field_specifiers=(Field, one, many, column, hidden, hashed, masked, left_out, constant)
)
class Document(BaseModel):
    """One JSON document per row of `source`."""

    # a numeric may be NaN or infinite, which pydantic refuses of a Decimal unless told
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=True)

    __source__: ClassVar[str] = ""
    __key__: ClassVar[tuple[str, ...]] = ("id",)

    def __init_subclass__(cls, *, source: str = "", key: str | tuple[str, ...] = "id", **config: Any) -> None:
        super().__init_subclass__(**config)
        cls.__source__, cls.__key__ = source or cls.__source__, _names(key)

    def keep(self) -> bool:
        """Return False and the document leaves every sink; return True again and it comes back."""
        return True
