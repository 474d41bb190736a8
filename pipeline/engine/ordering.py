"""Ordering: stored values to texts that sort as the source sorts the values, for ORDER BY over text columns."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import apsw

from pipeline.authoring.column_types import WireKind

_BIAS: Final = 500_000
"""Above any exponent of a numeric (131,071 digits before the point, 16,383 behind it)."""
_YEARS: Final = 10**9
_COMPLEMENT: Final = str.maketrans("0123456789", "9876543210")
_PERIOD: Final = re.compile(r"P(-?\d+)Y(-?\d+)M(-?\d+)DT(-?\d+)H(-?\d+)M(-?[\d.]+)S")


def number(text: str) -> str:
    """Exactly, whatever the digits; 1.1 and 1.10 are equal, NaN is the greatest."""
    value = Decimal(text.strip('"'))
    if not value.is_finite():
        return "5" if value.is_nan() else "4" if value > 0 else "0"
    if not value:
        return "2"
    digits = "".join(map(str, value.as_tuple().digits)).rstrip("0")
    if value > 0:
        return f"3{_BIAS + value.adjusted():07}{digits}"
    return f"1{_BIAS - value.adjusted():07}{digits.translate(_COMPLEMENT)}~"


def moment(text: str) -> str:
    """Dates and timestamps; years before Christ and beyond 9999 have a sign."""
    if text[:1].isdigit():
        return "2" + text.removesuffix("Z")
    if text.endswith("infinity"):
        return "0" if text[0] == "-" else "4"
    year, _, rest = text[1:].removesuffix("Z").partition("-")
    return f"1{_YEARS - int(year):010}-{rest}" if text[0] == "-" else f"3{int(year):010}-{rest}"


def period(text: str) -> str:
    """Intervals as Postgres compares them: a month is 30 days."""
    found = _PERIOD.fullmatch(text)
    if found is None:
        return text
    years, months, days, hours, minutes = map(int, found.groups()[:5])
    days += 30 * (12 * years + months)
    return number(str(Decimal((days * 24 + hours) * 60 + minutes) * 60 + Decimal(found[6])))


_FUNCTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "by_number": number,
    "by_moment": moment,
    "by_period": period,
    "by_bytes": base64.b64decode,
}
_OF_KIND: Final[dict[WireKind, str]] = {
    "decimal": "by_number",
    "float": "by_number",
    "single": "by_number",
    "datetime": "by_moment",
    "instant": "by_moment",
    "zoned": "by_moment",
    "timestamp": "by_moment",
    "date": "by_moment",
    "interval": "by_period",
    "bytes": "by_bytes",
}


def order_key(column: str, kind: WireKind | None) -> str:
    """The SQL expression by which a column with such values is ordered."""
    function = None if kind is None else _OF_KIND.get(kind)
    return column if function is None else f"{function}({column})"


def register(db: apsw.Connection) -> None:
    """Make the functions of `order_key` known to a connection."""
    for name, function in _FUNCTIONS.items():
        db.create_scalar_function(name, _or_null(function), 1, deterministic=True)


def _or_null(function: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        (value,) = values
        # what is no text is null, a number already, or a value that is not known yet
        return function(value) if isinstance(value, str) else value

    return call
