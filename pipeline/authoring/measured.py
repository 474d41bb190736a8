"""Measures computed anew over all values of a group, by plain Python: what tests and verify compare the engine's with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from enum import Enum
from fractions import Fraction
from typing import Any, Final

from pipeline.authoring.aggregate_shape import MeasureShape

Taken = tuple[Any, Any, Any]
"""Of one document: the measure's value, what puts it in order (None where nothing does), and the document's key."""


def measured(measure: MeasureShape, taken: Sequence[Taken]) -> Any:
    """What the group's documents come to."""
    if measure.value is None:
        return len(taken)
    if measure.by is None:
        return _UNORDERED[measure.how](measure, [value for value, _, _ in taken if value is not None])
    ordered = [(_rank(by), key, value) for value, by, key in taken if by is not None]
    ordered.sort(key=lambda one: one[:2], reverse=measure.descending or measure.how in ("maximum", "latest"))
    if measure.how == "collect":
        return tuple(v for _, _, v in ordered if v is not None)[: measure.limit]
    return ordered[0][2] if ordered else None


def _rank(value: Any) -> tuple[bool, Any]:
    """NaN is above all numbers."""
    return (True, 0) if _is_nan(value) else (False, value.value if isinstance(value, Enum) else value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, Decimal | float) and value != value


def _unusual(values: Sequence[Any]) -> Any:
    """What a sum is that has NaN or infinities in it; None where it is a number."""
    odd = {str(Decimal(value)) for value in values if isinstance(value, Decimal | float) and not _finite(value)}
    if not odd:
        return None
    return type(next(v for v in values if not isinstance(v, int)))(odd.pop() if len(odd) == 1 else "NaN")


def _finite(value: Decimal | float) -> bool:
    return Decimal(value).is_finite()


def _total(measure: MeasureShape, values: list[Any]) -> Any:
    assert measure.value is not None
    if not values:
        return None if measure.nullable else 0
    if (odd := _unusual(values)) is not None:
        return odd
    with localcontext(prec=100_000):
        return float(sum(map(Fraction, values))) if measure.value.kind == "float" else sum(values[1:], values[0])


def _average(measure: MeasureShape, values: list[Any]) -> Any:
    assert measure.value is not None
    if not values:
        return None
    if (odd := _unusual(values)) is not None:
        return odd
    mean = sum(map(Fraction, values), Fraction()) / len(values)
    if measure.value.kind == "float":
        return float(mean)
    with localcontext(prec=1000):
        exact = Decimal(mean.numerator) / Decimal(mean.denominator)
        return exact.quantize(Decimal(1).scaleb(-measure.places), rounding=ROUND_HALF_UP)


_UNORDERED: Final[dict[str, Callable[[MeasureShape, list[Any]], Any]]] = {
    "count_distinct": lambda measure, values: len({"NaN" if _is_nan(value) else value for value in values}),
    "total": _total,
    "average": _average,
}
