"""An aggregate's shape: what an Aggregate class says, as plain data for the engine, the sinks and `check`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from pipeline.authoring.aggregates import Aggregate, Group, How, Measure
from pipeline.authoring.annotations import marks_of
from pipeline.authoring.catalog import did_you_mean
from pipeline.authoring.documents import Document
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape, field_shape, shape_of, written_at
from pipeline.errors import BadShape

NUMBERS: Final = frozenset({"int", "decimal", "float"})
TIMES: Final = frozenset({"datetime", "date"})


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the summarised document: a field or property, reached through `one` relations."""

    path: tuple[str, ...]
    field: FieldShape
    nullable: bool

    @property
    def kind(self) -> Kind:
        return self.field.kind


@dataclass(frozen=True, slots=True)
class GroupShape:
    """A field that tells groups apart."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class MeasureShape:
    """What is known of a group; `by` orders `value` where that matters."""

    name: str
    how: How
    value: Value | None
    by: Value | None
    descending: bool
    limit: int
    places: int
    nullable: bool


@dataclass(frozen=True, slots=True)
class AggregateShape(Shape):
    """The document of a group: its members are the JSON's; tables, columns and levels are those of the source."""

    of: Shape
    groups: tuple[GroupShape, ...]
    measures: tuple[MeasureShape, ...]
    aggregate: type[Aggregate]

    @property
    def source(self) -> Shape:
        return self.of

    def walk(self) -> Iterator[Shape]:
        return self.of.walk()

    def shown(self) -> Iterator[Shape]:
        return self.of.shown()

    def columns(self) -> dict[str, dict[str, Kind | None]]:
        return self.of.columns()


def aggregate_shape(aggregate: type[Aggregate]) -> AggregateShape:
    """Compile an Aggregate class; raises BadShape with every contradiction found, one a line."""
    where, of = written_at(aggregate), source_of(aggregate)
    hints = get_type_hints(aggregate, include_extras=True)
    fields: list[FieldShape] = []
    groups: list[GroupShape] = []
    measures: list[MeasureShape] = []
    wrong = [f"{where}: {aggregate.__name__}.{line}" for line in _unread(aggregate)]
    for name, info in aggregate.model_fields.items():
        try:
            own = field_shape(aggregate, name, hints[name], None, [*info.metadata, *marks_of(hints[name])])
            mark = next((m for m in info.metadata if isinstance(m, (Group, Measure))), None)
            if mark is None:
                raise BadShape(f"{name} has neither group() nor a measure; write one, as in {name}: int = count().")
            if isinstance(mark, Group):
                groups.append(group_shape(of, own, mark))
            else:
                measures.append(_measure(of, own, mark))
            fields.append(own)
        except BadShape as error:
            text = str(error)
            wrong.append(text if text.startswith(where) else f"{where}: {aggregate.__name__}.{text}")
    if wrong:
        raise BadShape("\n".join(dict.fromkeys(wrong)))
    return AggregateShape(
        aggregate.__name__, of.table, tuple(g.name for g in groups), tuple(fields), of.document, False,
        of, tuple(groups), tuple(measures), aggregate,
    )  # fmt: skip


def source_of(aggregate: type[Aggregate]) -> Shape:
    """The shape of the documents that it is of."""
    if not (isinstance(aggregate.__of__, type) and issubclass(aggregate.__of__, Document)):
        name, base = aggregate.__name__, aggregate.__bases__[0].__name__
        raise BadShape(
            f"{written_at(aggregate)}: {name} does not say what it is of; write class {name}({base}, of=MyDocument)."
        )
    return shape_of(aggregate.__of__)


def _unread(aggregate: type[Aggregate]) -> Iterator[str]:
    """What works on a Document, and would silently do nothing here."""
    for name in aggregate.model_computed_fields:
        yield f"{name} is @derived, which an aggregate has not; compute it in {aggregate.__of__.__name__}."  # type: ignore[union-attr]
    if hasattr(aggregate, "keep"):
        yield f"keep is never asked; write it in {aggregate.__of__.__name__}: what it lets go leaves its group."  # type: ignore[union-attr]


def group_shape(of: Shape, own: FieldShape, mark: Group) -> GroupShape:
    value = value_of(of, own, mark.field or own.name, group=True)
    if value.kind in ("float", "json"):
        raise BadShape(f"{own.name} groups by a {value.kind}, whose values are not told apart; group by another field.")
    _same_kind(own, value)
    if value.nullable and not own.nullable:
        raise BadShape(f"{own.name} groups by {_said(value)}, which may be null; write {_type(own)} | None.")
    return GroupShape(own.name, value)


def _measure(of: Shape, own: FieldShape, mark: Measure) -> MeasureShape:
    if mark.how == "count":
        _wants(own, "int", "count()")
        return MeasureShape(own.name, "count", None, None, False, 0, 0, False)
    value = value_of(of, own, mark.field)
    check = _CHECKS[mark.how]
    check(own, value)
    by = _by(of, own, mark, value)
    if mark.how == "collect" and mark.limit < 1:
        raise BadShape(f"{own.name} collects {mark.limit} values; write limit=1 or more.")
    if mark.how == "average" and not 0 <= mark.places <= 100:
        raise BadShape(f"{own.name} is rounded to {mark.places} places; write places=0 to 100.")
    return MeasureShape(
        own.name, mark.how, value, by, mark.by.startswith("-"), mark.limit, mark.places, own.nullable
    )  # fmt: skip


def _by(of: Shape, own: FieldShape, mark: Measure, value: Value) -> Value | None:
    """What puts the values in order; None where no order is needed."""
    if mark.how not in ("minimum", "maximum", "latest", "collect"):
        return None
    if not mark.by:
        if mark.how == "latest" and value.kind not in TIMES:
            raise BadShape(
                f"{own.name}: {_said(value)} is no date or time, so nobody knows which is the latest; "
                f"name what orders them, latest({mark.field!r}, by=…)."
            )
        if value.kind == "json":
            raise BadShape(f"{own.name}: {_said(value)} has no order; name one, {mark.how}({mark.field!r}, by=…).")
        return value
    by = value_of(of, own, mark.by.removeprefix("-") if mark.how == "collect" else mark.by)
    if by.kind == "json":
        raise BadShape(f"{own.name}: {_said(by)} is {by.kind}, which has no order; order by another field.")
    return by


# ---- what a measure takes ---------------------------------------------------------------------------------


def _distinct(own: FieldShape, value: Value) -> None:
    _wants(own, "int", "count_distinct(…)")
    if value.kind == "json":
        raise BadShape(f"{own.name}: {_said(value)} is json, whose values are not told apart; count another field.")


def _total(own: FieldShape, value: Value) -> None:
    if value.kind not in NUMBERS:
        raise BadShape(f"{own.name} adds up {_said(value)}, which is {value.kind}; total an int, Decimal or float.")
    _same_kind(own, value)


def _average(own: FieldShape, value: Value) -> None:
    if value.kind not in NUMBERS:
        raise BadShape(f"{own.name} averages {_said(value)}, which is {value.kind}; average an int, Decimal or float.")
    _wants(own, "float" if value.kind == "float" else "decimal", f"the average of a {value.kind}")
    _may_be_null(own, value)


def _ordered(own: FieldShape, value: Value) -> None:
    if value.kind == "json":
        raise BadShape(f"{own.name}: {_said(value)} is json, which has no order; name another field.")
    _same_kind(own, value)
    _may_be_null(own, value)


def _latest(own: FieldShape, value: Value) -> None:
    _same_kind(own, value)
    _may_be_null(own, value)


def _collect(own: FieldShape, value: Value) -> None:
    if not own.repeated or own.kind != value.kind:
        raise BadShape(f"{own.name} collects {_said(value)}; write tuple[{_type(value.field)}, ...].")


_CHECKS: Final = {
    "count_distinct": _distinct,
    "total": _total,
    "average": _average,
    "minimum": _ordered,
    "maximum": _ordered,
    "latest": _latest,
    "collect": _collect,
}


def _wants(own: FieldShape, kind: Kind, what: str) -> None:
    if own.kind != kind or own.repeated:
        name = {"int": "int", "decimal": "Decimal", "float": "float"}[kind]
        raise BadShape(f"{own.name} is {_type(own)}, and {what} gives {name}; write {own.name}: {name}.")


def _same_kind(own: FieldShape, value: Value) -> None:
    if own.kind != value.kind or own.repeated:
        wanted = _type(value.field)
        raise BadShape(f"{own.name} is {_type(own)}, and {_said(value)} is {wanted}; write {own.name}: {wanted}.")


def _may_be_null(own: FieldShape, value: Value) -> None:
    if value.nullable and not own.nullable:
        raise BadShape(f"{own.name}: {_said(value)} may be null for all of a group; write {_type(own)} | None.")


def _said(value: Value) -> str:
    return ".".join(value.path)


def _type(field: FieldShape) -> str:
    text = getattr(field.annotation, "__name__", None) if isinstance(field.annotation, type) else None
    return text or str(field.annotation).replace("typing.", "").removesuffix(" | None")


# ---- values of the document -------------------------------------------------------------------------------


def value_of(of: Shape, own: FieldShape, dotted: str, *, group: bool = False) -> Value:
    """Find a field or property by its name, or `customer.name` through a `one`; raises BadShape."""
    level, nullable = of, False
    *above, last = path = tuple(dotted.split("."))
    for name in above:
        relation = next((r for r in level.relations if r.name == name), None)
        if relation is None:
            raise _unknown(own, level, name, {r.name: r for r in level.relations})
        if relation.many:
            raise BadShape(f"{own.name}: {level.name}.{name} is a list; name a field of {of.name} itself, or a one.")
        level, nullable = relation.shape, nullable or relation.nullable
    field = _field(level, own, last)
    if field.repeated and group:
        raise BadShape(f"{own.name} groups by {dotted}, which is a list; group by a single value.")
    if field.repeated:
        raise BadShape(f"{own.name}: {dotted} is a list; compute one value of it, @derived in {level.name}.")
    return Value(path, field, nullable or field.nullable)


def _field(level: Shape, own: FieldShape, name: str) -> FieldShape:
    known: dict[str, FieldShape | RelationShape | property] = {m.name: m for m in level.members}
    for cls in reversed(level.document.__mro__):
        if issubclass(cls, Document) and cls is not Document:
            known |= {n: item for n, item in vars(cls).items() if isinstance(item, property) and n not in known}
    found = known.get(name)
    if isinstance(found, RelationShape):
        what = "a list of documents" if found.many else "a document"
        first = next(iter(found.shape.fields), None)
        advice = f"name a field of it, {name}.{first.name}" if first and not found.many else "name a single value"
        raise BadShape(f"{own.name}: {level.name}.{name} is {what}; {advice}.")
    if isinstance(found, property):
        hints: dict[str, Any] = get_type_hints(found.fget)
        if "return" not in hints:
            raise BadShape(f"{own.name}: {level.name}.{name} does not say what it gives; write its type, -> date.")
        return field_shape(level.document, name, hints["return"], None, ())
    if found is None:
        raise _unknown(own, level, name, known)
    return found


def _unknown(own: FieldShape, level: Shape, name: str, known: Mapping[str, object]) -> BadShape:
    return BadShape(f"{own.name}: {level.name} has no field {name!r}{did_you_mean(name, known)}")
