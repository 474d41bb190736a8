"""A shape: what a Document class says, as plain data for the engine, the sinks and `check`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from uuid import UUID

from pydantic import BaseModel

from pipeline.authoring.aggregates import Aggregate
from pipeline.authoring.annotations import marks_of, model_in, unwrapped
from pipeline.authoring.documents import Constant, Document, Fixed, Hidden, LeftOut, Many, One, Text
from pipeline.authoring.event_documents import EventDocument
from pipeline.authoring.masks import Mask
from pipeline.errors import BadShape

Kind = Literal[
    "int", "decimal", "float", "bool", "text", "datetime", "date", "time", "interval", "uuid", "bytes", "json"
]

SCALARS: dict[type, Kind] = {
    bool: "bool",
    int: "int",
    Decimal: "decimal",
    float: "float",
    str: "text",
    datetime: "datetime",
    date: "date",
    time: "time",
    timedelta: "interval",
    UUID: "uuid",
    bytes: "bytes",
}


@dataclass(frozen=True, slots=True)
class FieldShape:
    """One field: copied from `column`, fixed, the number of rows that `left_out_of` left out, or derived in Python."""

    name: str
    kind: Kind
    column: str | None
    nullable: bool = False
    hidden: bool = False
    repeated: bool = False
    """A list of scalars in one column (a Postgres array); its kind is that of the items."""
    text: Text | None = None
    annotation: Any = None
    fixed: Fixed | None = None
    left_out_of: str | None = None
    mask: Mask | None = None
    """What documents and the author's code have in place of the column's text."""

    @property
    def derived(self) -> bool:
        """Computed by the author's Python."""
        return self.column is None and self.fixed is None and self.left_out_of is None

    @property
    def model(self) -> type[BaseModel] | None:
        """What the JSON in the column has to be, or each item of a list there, where the author wrote a pydantic model."""
        return model_in(self.annotation) if self.column is not None and self.kind == "json" else None


@dataclass(frozen=True, slots=True)
class RelationShape:
    """Rows of another table inside the document: those whose `remote` columns equal our `local` ones.

    Where `links`, that table only links: the document shows the rows that its rows lead on to.
    """

    name: str
    many: bool
    local: tuple[str, ...]
    remote: tuple[str, ...]
    order_by: tuple[str, ...]
    shape: Shape
    hidden: bool = False
    nullable: bool = True
    descending: frozenset[str] = frozenset()
    where: tuple[tuple[str, tuple[Constant, ...]], ...] = ()
    limit: int | None = None
    links: bool = False

    @property
    def item(self) -> Shape:
        """What the document shows of each row."""
        return self.shape.relations[0].shape if self.links else self.shape


@dataclass(frozen=True, slots=True)
class Shape:
    """One level of a document: its table, the key, and its members in the order of the JSON."""

    name: str
    table: str
    key: tuple[str, ...]
    members: tuple[FieldShape | RelationShape, ...]
    document: type[Document]
    keeps: bool
    """The author wrote `keep()`."""

    @property
    def source(self) -> Shape:
        """The shape of the documents that the rows make; an aggregate has another."""
        return self

    @property
    def fields(self) -> tuple[FieldShape, ...]:
        return tuple(m for m in self.members if isinstance(m, FieldShape))

    @property
    def relations(self) -> tuple[RelationShape, ...]:
        return tuple(m for m in self.members if isinstance(m, RelationShape))

    @property
    def copied(self) -> tuple[FieldShape, ...]:
        return tuple(f for f in self.fields if f.column is not None)

    @property
    def derived(self) -> tuple[FieldShape, ...]:
        return tuple(f for f in self.fields if f.derived)

    @property
    def python(self) -> bool:
        """Whether a document has to pass through Python: something is derived, kept or read by a model, at any depth."""
        own = self.keeps or any(field.derived or field.model for field in self.fields)
        return own or any(relation.shape.python for relation in self.relations)

    @property
    def masks(self) -> set[str]:
        """How fields are masked, at any depth; `hash` needs the salt."""
        return {field.mask.way for level in self.walk() for field in level.fields if field.mask is not None}

    def walk(self) -> Iterator[Shape]:
        """This level and all below it."""
        yield self
        for relation in self.relations:
            yield from relation.shape.walk()

    def shown(self) -> Iterator[Shape]:
        """This level and all below it that the document shows: without the link tables."""
        yield self
        for relation in self.relations:
            yield from relation.item.shown()

    def columns(self) -> dict[str, dict[str, Kind | None]]:
        """Per table, the columns that the document depends on, with the kind where a field declares it.

        The engine skips changes to all others.
        """
        used: dict[str, dict[str, Kind | None]] = {}
        for shape in self.walk():
            own = used.setdefault(shape.table, {})
            for name in shape.key:
                own.setdefault(name, None)
            for field in shape.copied:
                assert field.column is not None
                own[field.column] = own.get(field.column) or ("json" if field.repeated else field.kind)
            for relation in shape.relations:
                for name in relation.local:
                    own.setdefault(name, None)
                remote = used.setdefault(relation.shape.table, {})
                for name in relation.remote:
                    remote.setdefault(name, None)
                shown = used.setdefault(relation.item.table, {})
                for name in (*relation.order_by, *(name for name, _ in relation.where)):
                    shown.setdefault(name, None)
        return used


def shape_of(document: type[Document] | type[Aggregate]) -> Shape:
    """Compile a Document or Aggregate class; raises BadShape with every contradiction found, one a line."""
    return _compiled(document)


@cache
def _compiled(document: type[Document] | type[Aggregate]) -> Shape:
    if issubclass(document, EventDocument):
        from pipeline.authoring.event_shape import event_shape  # which stands on this module

        return event_shape(document)
    if issubclass(document, Aggregate):
        from pipeline.authoring.aggregate_shape import aggregate_shape  # which stands on this module

        return aggregate_shape(document)
    return _shape(document, (), {})


Depths = dict[tuple[type[Document], str], int]
"""How many levels a relation of a document that contains itself still has."""


def _shape(document: type[Document], above: tuple[type[Document], ...], depths: Depths) -> Shape:
    if not document.__source__:
        raise BadShape(
            f'{written_at(document)}: {document.__name__} names no table: write class {document.__name__}(Document, source="schema.table").'
        )
    hints = get_type_hints(document, include_extras=True)
    members: list[FieldShape | RelationShape] = []
    wrong: list[str] = []
    for name in (*document.model_fields, *document.model_computed_fields):
        if depths.get((document, name)) == 0:
            continue
        try:
            members.append(_member(document, name, hints, above, depths))
        except BadShape as error:
            wrong += str(error).splitlines()
    wrong += _supers(document)
    if wrong:
        raise BadShape("\n".join(dict.fromkeys(wrong)))
    keeps = document.keep is not Document.keep
    return Shape(document.__name__, document.__source__, document.__key__, tuple(members), document, keeps)


def _supers(document: type[Document]) -> list[str]:
    """Functions that say `super()`: the twin on which they run has the author's functions, and no bases."""
    own = (cls for cls in document.__mro__ if issubclass(cls, Document) and cls is not Document)
    found = []
    for cls in own:
        for name, item in vars(cls).items():
            function = getattr(getattr(item, "wrapped", item), "fget", item)
            if "__class__" in getattr(getattr(function, "__code__", None), "co_freevars", ()):
                found.append(
                    f"{written_at(cls)}: {cls.__name__}.{name} uses super(), which documents can't; "
                    "put what is shared into a function of its own and call that."
                )
    return found


def _member(
    document: type[Document], name: str, hints: dict[str, Any], above: tuple[type[Document], ...], depths: Depths
) -> FieldShape | RelationShape:
    computed = document.model_computed_fields.get(name)
    if computed is not None:
        return field_shape(document, name, computed.return_type, None, marks_of(computed.return_type))
    info = document.model_fields[name]
    marks = [*info.metadata, *marks_of(hints[name])]
    join = next((m for m in marks if isinstance(m, (One, Many))), None)
    if join is not None:
        return _relation(document, name, hints[name], join, above, depths)
    other = model_in(hints[name])
    if other is not None and issubclass(other, Document):
        raise BadShape(
            f"{written_at(document)}: {document.__name__}.{name} shows {other.__name__} and does not say which rows; "
            "write = one(via=…) or = many(by=…), or make it a BaseModel where the column's JSON is meant."
        )
    alias = info.validation_alias
    column = alias if isinstance(alias, str) else name
    return field_shape(document, name, hints[name], column, marks)


def _relation(
    document: type[Document],
    name: str,
    annotation: Any,
    join: One | Many,
    above: tuple[type[Document], ...],
    depths: Depths,
) -> RelationShape:
    where = f"{written_at(document)}: {document.__name__}.{name}"
    item, nullable = _item(where, annotation, join)
    if item in (*above, document):
        if join.depth is None:
            raise BadShape(f"{where}: {item.__name__} contains itself; say how deep: depth=2, for example.")
        depths = {**depths, (document, name): depths.get((document, name), join.depth) - 1}
    child = _shape(item, (*above, document), depths)
    if isinstance(join, Many):
        return _many(where, document, name, join, child)
    remote = join.to or child.key
    _matched(where, join.via, remote)
    if join.where and not nullable:
        raise BadShape(
            f"{where}: no row may meet `where`, and the field may not be null; write {item.__name__} | None."
        )
    return RelationShape(name, False, join.via, remote, (), child, join.hidden, nullable, where=join.where)


def _item(where: str, annotation: Any, join: One | Many) -> tuple[type[Document], bool]:
    """The Document that a relation shows, and whether it may be None."""
    plain, nullable = unwrapped(annotation)
    many = isinstance(join, Many)
    if many:
        if get_origin(plain) not in (tuple, list):
            raise BadShape(f"{where}: many(...) needs tuple[Other, ...], not {annotation}.")
        plain = get_args(plain)[0]
    if not (isinstance(plain, type) and issubclass(plain, Document)):
        raise BadShape(f"{where}: {'many' if many else 'one'}(...) needs a Document, not {annotation}.")
    if join.depth is not None and join.depth < 1:
        raise BadShape(f"{where}: depth={join.depth}: at least one level, please.")
    return plain, nullable


def _many(where: str, document: type[Document], name: str, join: Many, child: Shape) -> RelationShape:
    local = join.to or document.__key__
    _matched(where, local, join.by)
    if join.limit is not None and join.limit < 1:
        raise BadShape(f"{where}: limit={join.limit}: at least one row, please.")
    if bool(join.through) != bool(join.via):
        raise BadShape(f"{where}: `through` names a link table and `via` its column that leads on; give both.")
    order = tuple(column.removeprefix("-") for column in join.order_by) or child.key
    descending = frozenset(column[1:] for column in join.order_by if column.startswith("-"))
    shown = child
    if join.through:
        _matched(where, join.via, child.key)
        onward = RelationShape("", False, join.via, child.key, (), child, nullable=True)
        keys = tuple(dict.fromkeys((*join.by, *join.via)))
        shown = Shape(document.__name__, join.through, keys, (onward,), document, keeps=False)
    return RelationShape(
        name, True, local, join.by, order, shown, join.hidden,
        descending=descending, where=join.where, limit=join.limit, links=bool(join.through),
    )  # fmt: skip


def _matched(where: str, left: tuple[str, ...], right: tuple[str, ...]) -> None:
    if len(left) != len(right):
        raise BadShape(f"{where}: joins {left} with {right}: as many columns on both sides, please.")


def field_shape(
    document: type[BaseModel], name: str, annotation: Any, column: str | None, marks: Sequence[Any]
) -> FieldShape:
    plain, nullable = unwrapped(annotation)
    repeated = get_origin(plain) in (tuple, list, frozenset, set)
    item = plain
    if repeated and get_args(plain):
        item, _ = unwrapped(get_args(plain)[0])
    kind = _kind(item)
    if kind is None:
        raise BadShape(
            f"{written_at(document)}: {document.__name__}.{name} has the type {annotation}, which no column can hold; "
            f"known are {', '.join(sorted(t.__name__ for t in SCALARS))}, Literal, Enum, dict, list, tuple and Any."
        )
    text = next((m for m in marks if isinstance(m, Text)), None)
    is_hidden = any(isinstance(m, Hidden) for m in marks)
    fixed = next((m for m in marks if isinstance(m, Fixed)), None)
    counts = next((m for m in marks if isinstance(m, LeftOut)), None)
    if (mask := next((m for m in marks if isinstance(m, Mask)), None)) is not None:
        _masked(document, name, plain, column)
    if counts is not None:
        _counted(document, name, counts.of)
    return FieldShape(
        name, kind, None if fixed or counts else column, nullable, is_hidden, repeated, text, annotation,
        fixed, counts.of if counts else None, mask,
    )  # fmt: skip


def _masked(document: type[BaseModel], name: str, plain: Any, column: str | None) -> None:
    where = f"{written_at(document)}: {document.__name__}.{name}"
    if plain is not str:
        raise BadShape(f"{where} is hashed or masked, and is no text; write {name}: str, or leave it out.")
    if column in getattr(document, "__key__", ()):
        raise BadShape(
            f"{where} is of the document's key, by which it is found; take another key, or leave it as it is."
        )


def _counted(document: type[BaseModel], name: str, of: str) -> None:
    info = document.model_fields.get(of)
    if info is None or not any(isinstance(m, Many) and m.limit is not None for m in info.metadata):
        raise BadShape(
            f"{written_at(document)}: {document.__name__}.{name} counts what {of!r} leaves out, "
            "and there is no relation of that name with a limit: many(..., limit=100)."
        )


def _kind(item: Any) -> Kind | None:
    if item is Any or get_origin(item) is dict or item in (dict, list, tuple, object):
        return "json"
    if get_origin(item) is Literal:
        kinds = {_kind(type(value)) for value in get_args(item)}
        return kinds.pop() if len(kinds) == 1 else "json"
    if get_origin(item) in (tuple, list, set, frozenset):
        return "json"
    if isinstance(item, type):
        if item in SCALARS:
            return SCALARS[item]
        if issubclass(item, Enum):
            return "int" if issubclass(item, int) else "text"
        if issubclass(item, BaseModel):
            return "json"
        return next((kind for base, kind in SCALARS.items() if issubclass(item, base)), None)
    return None


def written_at(document: type[BaseModel]) -> str:
    """`orders.py:12`: where the class was written, as far as Python knows."""
    try:
        file = inspect.getsourcefile(document)
        return f"{Path(file or '?').name}:{inspect.getsourcelines(document)[1]}"
    except (OSError, TypeError):
        return document.__module__
