"""Documents: declare the read model you want; a field named like a column is copied, `one` and `many` are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class One:
    """This row holds the foreign key `via`; follow it to at most one row."""

    via: tuple[str, ...]
    hidden: bool


@dataclass(frozen=True, slots=True)
class Many:
    """The other rows hold our key in `by`; collect them in `order_by`."""

    by: tuple[str, ...]
    order_by: tuple[str, ...]
    hidden: bool


@dataclass(frozen=True, slots=True)
class Hidden:
    """Read for Python's use, never written to a sink."""


@dataclass(frozen=True, slots=True)
class Text:
    """Index as full text. Without it a `str` is an exact-match keyword."""

    analyzer: str = "standard"


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _marked(field: Any, marker: object) -> Any:
    assert isinstance(field, FieldInfo)
    field.metadata.append(marker)
    return field


def one(*, via: str | tuple[str, ...], hidden: bool = False) -> Any:
    """Follow the foreign key in our column `via` to the other table's key; the field is that document or None."""
    return _marked(Field(default=None, exclude=hidden), One(_names(via), hidden))


def many(*, by: str | tuple[str, ...], order_by: str | tuple[str, ...] = (), hidden: bool = False) -> Any:
    """Collect the rows of the other table whose column `by` holds our key, in `order_by` (their key where not given)."""
    return _marked(Field(default_factory=tuple, exclude=hidden), Many(_names(by), _names(order_by), hidden))


def column(name: str, *, default: Any = ...) -> Any:
    """Read the field from a column with another name."""
    return Field(default=default, validation_alias=name)


def hidden(name: str | None = None) -> Any:
    """Read the column for use in Python; never write it to a sink."""
    return _marked(Field(exclude=True, validation_alias=name), Hidden())


if TYPE_CHECKING:
    derived = property
else:

    def derived(method: Any) -> Any:
        """A field computed from the others and written to the sinks."""
        return computed_field(property(method))


@dataclass_transform(kw_only_default=True, field_specifiers=(Field, one, many, column, hidden))
class Document(BaseModel):
    """One JSON document per row of `source`."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    __source__: ClassVar[str] = ""
    __key__: ClassVar[tuple[str, ...]] = ("id",)

    def __init_subclass__(cls, *, source: str = "", key: str | tuple[str, ...] = "id", **config: Any) -> None:
        super().__init_subclass__(**config)
        cls.__source__, cls.__key__ = source or cls.__source__, _names(key)

    def keep(self) -> bool:
        """Return False and the document leaves every sink; return True again and it comes back."""
        return True
