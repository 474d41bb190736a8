"""Event documents: one document per group of events, folded from them in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeVar, dataclass_transform

from pydantic import Field

from pipeline.authoring.aggregates import Aggregate, group
from pipeline.authoring.documents import Document

FoldedT = TypeVar("FoldedT", bound="EventDocument")
EventT = TypeVar("EventT")


@dataclass(frozen=True, slots=True)
class Told:
    """Which fields of the event's Document say what happened, and whether an event that is deleted did not happen."""

    type: str = "type"
    payload: str = "payload"
    order_by: str = "id"
    deleted: Literal["kept", "forgotten"] = "kept"


def on(
    event: type[EventT], *, name: str = ""
) -> Callable[[Callable[[FoldedT, EventT], FoldedT]], Callable[[FoldedT, EventT], FoldedT]]:
    """The method gives the document that follows an event of this type; the payload is read as that type.

    `event` is a pydantic model, a msgspec Struct, a dataclass, a TypedDict, or a type with a `name`: what the table calls
    such events, where it is not the name of the class.
    """

    def mark(method: Callable[[FoldedT, EventT], FoldedT]) -> Callable[[FoldedT, EventT], FoldedT]:
        method.__dict__.setdefault("__on__", []).append((event, name))
        return method

    return mark


@dataclass_transform(kw_only_default=True, field_specifiers=(Field, group))
class EventDocument(Aggregate):
    """One document per `group()` of the events that the rows `of` a Document are.

    Before its first event it has the group's values and its fields' defaults; each event gives the next by the method
    that is `@on` its type. An event of a type that no method is on changes nothing.
    `type`, `payload`, `order_by`: the fields of the event with its name, its JSON, and its place among those of its group.
    `deleted="kept"`: what is deleted from the source has happened all the same; "forgotten": it has not.
    """

    __told__: ClassVar[Told] = Told()

    def __init_subclass__(
        cls,
        *,
        of: type[Document] | None = None,
        type: str | None = None,
        payload: str | None = None,
        order_by: str | None = None,
        deleted: Literal["kept", "forgotten"] | None = None,
        **config: Any,
    ) -> None:
        super().__init_subclass__(of=of, **config)
        said = {"type": type, "payload": payload, "order_by": order_by, "deleted": deleted}
        cls.__told__ = replace(cls.__told__, **{k: v for k, v in said.items() if v is not None})  # type: ignore[arg-type]

    def but(self, **changes: Any) -> Self:
        """This document with other values; they are checked against the fields' types, and names against the fields."""
        unknown = changes.keys() - self.__class__.model_fields.keys()
        if unknown:
            raise TypeError(f"{self.__class__.__name__} has no field {', '.join(sorted(unknown))}.")
        return self.__class__.model_validate(
            {name: getattr(self, name) for name in self.__class__.model_fields} | changes
        )

    def keep(self) -> bool:
        """Return False and the document leaves every sink; return True again and it comes back."""
        return True


__all__ = ["EventDocument", "on"]
