"""Measures: what one document contributes to its group, and sums that are exact whatever comes and goes."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from enum import Enum
from fractions import Fraction
from operator import attrgetter
from typing import Any, Final, Literal

import msgspec
from msgspec import Raw, Struct

from pipeline.authoring.aggregate_shape import AggregateShape, GroupShape, MeasureShape, Value
from pipeline.authoring.shape import FieldShape, Kind
from pipeline.engine import ordering
from pipeline.engine.assemble import document_id
from pipeline.engine.twin import spelled, stored_name
from pipeline.errors import OperationError, UnsupportedValue

EXACT: Final = Context(prec=200_000, traps=[Inexact, InvalidOperation, Overflow])
"""Postgres's longest numeric has 147,455 digits; a sum that would be rounded is an error."""
_encode: Final = msgspec.json.Encoder().encode

Use = Literal["sum", "distinct", "ordered", "collected"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing kept of each document: its value, and where that stands in order; measures share slots."""

    use: Use
    value: Value
    by: Value | None

    @property
    def indexed(self) -> bool:
        return self.use in ("ordered", "collected")


def slot_of(measure: MeasureShape) -> Slot | None:
    """What a measure needs of each document; nothing for a count."""
    if measure.value is None:
        return None
    if measure.how in ("total", "average"):
        return Slot("sum", measure.value, None)
    if measure.how == "count_distinct":
        return Slot("distinct", measure.value, None)
    # a collected null is left out, a latest one is not
    use: Use = "collected" if measure.how == "collect" and measure.by != measure.value else "ordered"
    return Slot(use, measure.value, measure.by)


def slots_of(aggregate: AggregateShape) -> tuple[Slot, ...]:
    """All that is kept of a document, each once."""
    return tuple(dict.fromkeys(slot for m in aggregate.measures if (slot := slot_of(m)) is not None))


# ---- values -----------------------------------------------------------------------------------------------


def reader_of(value: Value) -> Callable[[Any], Any]:
    """Reads the value from a twin: text as the source wrote it where it is copied, what Python gives where not."""
    names = [*value.path[:-1], value.path[-1] if value.field.derived else stored_name(value.field)]
    first, *rest = map(attrgetter, names)
    if not rest:
        return first

    def read(data: Any) -> Any:
        found = first(data)
        for get in rest:
            if found is None:
                return None
            found = get(found)
        return found

    return read


def json_text(value: Any) -> str | None:
    """A value as it stands in a document; None where it is null. A point in time is in UTC."""
    if isinstance(value, Raw):
        text = bytes(value).decode()
        return None if text == "null" else text
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(UTC)
    return None if value is None else _encode(spelled(value)).decode()


def sort_key(value: Any, text: str, field: FieldShape) -> Any:
    """What sorts as the values do, and is equal where they are; `text` is the value's JSON."""
    if field.kind == "bool":
        return int(value)
    if field.kind in ("int", "decimal", "float"):
        return ordering.number(text)
    if isinstance(value, timedelta):
        return ordering.number(str(Decimal(value // timedelta(microseconds=1)).scaleb(-6)))
    plain = msgspec.json.decode(text)
    if field.kind in ("datetime", "date"):
        return ordering.moment(plain)
    if field.kind == "interval":
        return ordering.period(plain)
    return base64.b64decode(plain) if field.kind == "bytes" else plain


def checked(value: Any, of: Value) -> Any:
    """The value, where it is of the kind that the code which gave it declares; raises UnsupportedValue."""
    if value is None or not of.field.derived:
        return value
    value = value.value if isinstance(value, Enum) else value
    wanted = _PYTHON.get(of.kind)
    if isinstance(value, int) and not isinstance(value, bool) and wanted in (Decimal, float):
        return wanted(value)
    if wanted is not None and not (isinstance(value, wanted) and type(value) not in _NOT.get(of.kind, ())):
        raise UnsupportedValue(f"{'.'.join(of.path)} is declared {of.kind} and gave {type(value).__name__}.")
    return value


_PYTHON: Final[dict[Kind, type]] = {
    "int": int,
    "decimal": Decimal,
    "float": float,
    "bool": bool,
    "text": str,
    "datetime": datetime,
    "date": date,
    "interval": timedelta,
}
_NOT: Final[dict[Kind, tuple[type, ...]]] = {"int": (bool,), "date": (datetime,)}
"""What Python takes for such a thing too."""


class Contributing:
    """Compiled from an aggregate: the group of a document, and what it contributes there."""

    def __init__(self, aggregate: AggregateShape) -> None:
        self.slots = slots_of(aggregate)
        self._groups = [(reader_of(g.value), g) for g in aggregate.groups]
        self._slots = [(s, reader_of(s.value), reader_of(s.by) if s.by else None) for s in self.slots]

    def group(self, data: Any) -> str:
        """The key of the document's group: a JSON list of its values; equal values have one text."""
        return group_text([(read(data), shape) for read, shape in self._groups])

    def takes(self, data: Any) -> bool:
        """Whether the document counts in its group."""
        return True

    def values(self, data: Any) -> tuple[Any, ...]:
        """The columns of `contributions`: for each slot its value, after its place in order where it has one."""
        found: list[Any] = []
        for slot, read, read_by in self._slots:
            value = checked(read(data), slot.value)
            text = json_text(value)
            if slot.use == "sum":
                found.append(None if text is None else _number(text))
            elif slot.use == "distinct":
                found.append(None if text is None else sort_key(value, text, slot.value.field))
            else:
                assert read_by is not None and slot.by is not None
                by = value if slot.by == slot.value else checked(read_by(data), slot.by)
                by_text = text if slot.by == slot.value else json_text(by)
                skipped = by_text is None or (slot.use == "collected" and text is None)
                found += (None if skipped else sort_key(by, by_text or "", slot.by.field), text)
        return tuple(found)


def columns_of(slots: Sequence[Slot]) -> list[str]:
    """The names of what `values` gives."""
    return [name for i, slot in enumerate(slots) for name in ((f"o{i}", f"v{i}") if slot.indexed else (f"v{i}",))]


def group_text(values: Sequence[tuple[Any, GroupShape]]) -> str:
    """The key of the group that has these values, each as documents have it or as Python does."""
    return "[" + ",".join(_group_text(value, shape) for value, shape in values) + "]"


def _group_text(value: Any, shape: GroupShape) -> str:
    text = json_text(checked(value, shape.value))
    return "null" if text is None else _canonical(text, shape.value.kind)


def _canonical(text: str, kind: Kind) -> str:
    """Equal values have one text: 1.1 and 1.10 are one group."""
    if kind == "decimal" and text != "null":
        number = Decimal(_number(text))
        if number.is_finite():
            number = number.normalize(EXACT)
            return f'"{number or abs(number):f}"'
    return text


def group_key(aggregate: AggregateShape, values: Sequence[Any]) -> str:
    """The key of the group with these values, Python's or as somebody types them; raises OperationError."""
    if len(values) != len(aggregate.groups):
        names = ", ".join(aggregate.key)
        raise OperationError(f"A group of {aggregate.name} is told by {names}: give {len(aggregate.groups)} values.")
    return "[" + ",".join(_typed(v, g) for v, g in zip(values, aggregate.groups, strict=True)) + "]"


def _typed(value: Any, shape: GroupShape) -> str:
    kind = shape.value.kind
    if isinstance(value, str) and kind in ("int", "bool", "decimal"):
        try:
            value = Decimal(value) if kind == "decimal" else msgspec.json.decode(value)
        except (ArithmeticError, msgspec.DecodeError):
            raise OperationError(f"{value!r} is no {kind}, as {shape.name} is.") from None
    if value == "null" and shape.value.nullable:
        value = None
    text = json_text(value)
    return _canonical("null" if text is None else text, kind)


def group_id(key: str) -> str:
    """The document's id: the value itself where there is one group field, else the JSON list; injective."""
    parts = msgspec.json.decode(key)
    if isinstance(parts, list) and len(parts) == 1:
        (part,) = parts
        if isinstance(part, str) and part and not part.startswith(("[", "{")):
            return document_id((part,))
        if isinstance(part, int):
            return key[1:-1]
    return document_id((key,))


# ---- sums -------------------------------------------------------------------------------------------------


def _number(text: str) -> str:
    return text.strip('"')


class Sum(Struct, array_like=True):
    """An exact sum of what comes and goes: `scales` and `odd` (NaN, infinities) count what is in it."""

    total: str = "0"
    n: int = 0
    scales: dict[int, int] = {}
    odd: dict[str, int] = {}

    def add(self, text: str, sign: int, *, exact: bool) -> None:
        """Put a number in (1) or take it out (-1). `exact`: it is a float, whose binary value counts."""
        number = Decimal(float(text)) if exact else Decimal(text)
        self.n += sign
        if not number.is_finite():
            _tally(self.odd, str(number), sign)
            return
        self.total = str(EXACT.add(Decimal(self.total), number if sign > 0 else number.copy_negate()))
        if not exact:
            exponent = number.as_tuple().exponent
            assert isinstance(exponent, int)
            _tally(self.scales, max(0, -exponent), sign)

    def unusual(self) -> str | None:
        """NaN or an infinity, as the source would say; None where the sum is a number."""
        if not self.odd:
            return None
        return next(iter(self.odd)) if len(self.odd) == 1 else "NaN"

    def text(self, kind: Kind) -> str:
        """The sum as JSON; a Decimal has as many places as the longest of what is in it."""
        odd = self.unusual()
        if odd is not None:
            return f'"{odd}"'
        number = Decimal(self.total)
        if kind == "float":
            return _encode(spelled(float(number))).decode()
        if kind == "int":
            return str(int(number))
        places = max(self.scales, default=0)
        return f'"{number.quantize(Decimal((0, (1,), -places)), context=EXACT):f}"'

    def mean(self, kind: Kind, places: int) -> str:
        """The mean as JSON, rounded half away from zero."""
        odd = self.unusual()
        if odd is not None:
            return f'"{odd}"'
        mean = Fraction(self.total) / self.n
        if kind == "float":
            return _encode(float(mean)).decode()
        scaled = abs(mean) * 10**places
        rounded = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
        return f'"{EXACT.create_decimal((int(mean < 0 and rounded > 0), _digits(rounded), -places)):f}"'


def _digits(number: int) -> tuple[int, ...]:
    return tuple(map(int, str(number)))


def _tally(counts: dict[Any, int], what: Any, by: int) -> None:
    counts[what] = counts.get(what, 0) + by
    if not counts[what]:
        del counts[what]


class State(Struct, array_like=True):
    """What is kept of a group beside its contributions: how many, the sums, and the counts of different values."""

    n: int = 0
    sums: dict[int, Sum] = {}
    distinct: dict[int, int] = {}


encode_state: Final = msgspec.json.Encoder().encode
decode_state: Final = msgspec.json.Decoder(State).decode
