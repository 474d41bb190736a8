"""Values by what they mean: two spellings of one value are one value, so that documents are compared and not texts."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from pydantic import TypeAdapter

from pipeline.authoring.shape import Kind

SPECIAL: Final = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}
_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)
_DURATION = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)W)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?[\d.]+)S)?)?"
)


def canonical(value: Any, kind: Kind, *, repeated: bool = False) -> Any:
    """A value of Python or JSON as one JSON value; what is of another kind stays as it is, and so is equal to none."""
    if value is None:
        return None
    if repeated and isinstance(value, (list, tuple, set, frozenset)):
        return [canonical(item, kind, repeated=isinstance(item, (list, tuple))) for item in value]
    if isinstance(value, Enum):
        value = value.value
    try:
        return _BY_KIND[kind](value)
    except (ValueError, TypeError, ArithmeticError, binascii.Error):
        return _json(value)


def parsed(value: Any, kind: Kind) -> Any:
    """A value as the source sends it, as the Python object that an author's code works on."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and kind != "json":
        return [parsed(item, kind) for item in value]
    return _PARSERS[kind](value)


def _decimal(value: Any) -> Any:
    number = value if isinstance(value, Decimal) else Decimal(SPECIAL.get(str(value), str(value)))
    if not number.is_finite():
        return str(number)
    text = format(number, "f")  # normalize() would round to the context's precision
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _datetime(value: Any) -> Any:
    if not isinstance(value, datetime):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return _beyond(value)
    if value.tzinfo is not None:
        value = value.astimezone(UTC).replace(tzinfo=None)
    return value.isoformat(timespec="microseconds")


def _date(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value.removesuffix("Z"))
        except ValueError:
            return _beyond(value)
    return value.isoformat()


def _time(value: Any) -> Any:
    if isinstance(value, str):
        value = value.replace("24:00:00", "00:00:00")  # which Debezium sends for both
        try:
            value = time.fromisoformat(value.removesuffix("Z"))
        except ValueError:
            return _beyond(value)
    return value.replace(tzinfo=None).isoformat(timespec="microseconds")


def _beyond(text: str) -> str:
    """A time that Python has no object for: its text, without what two writers may differ in."""
    head, point, rest = text.removeprefix("+").removesuffix("Z").partition(".")
    return f"{head}.{rest.rstrip('0')}".removesuffix(".") if point else head


def _interval(value: Any) -> Any:
    if isinstance(value, timedelta):
        return [0, value.days, value.seconds * 1_000_000 + value.microseconds]
    found = _DURATION.fullmatch(value)
    if found is None:
        return value
    years, months, weeks, days, hours, minutes = (int(part or 0) for part in found.groups()[:-1])
    seconds = Decimal(found[7] or 0)
    return [years * 12 + months, weeks * 7 + days, int((hours * 3600 + minutes * 60 + seconds) * 1_000_000)]


def _bytes(value: Any) -> str:
    return base64.b64encode(_to_bytes(value)).decode()


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return bytes.fromhex(value[2:]) if value.startswith("\\x") else base64.b64decode(value, validate=True)
    return bytes(value)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, (int, float, Decimal)):
        return _number(value)
    return _json(_ANY.dump_python(value, mode="json"))


def _number(value: int | float | Decimal) -> Any:
    """JSON has one kind of number, and its readers have doubles."""
    if isinstance(value, int) and abs(value) < 1 << 63:
        return value
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    whole = number.is_integer() and abs(number) < 1 << 53
    return int(number) if whole else repr(number)


def _loaded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _exact(kind: type) -> Callable[[Any], Any]:
    def same(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value

    return same


_BY_KIND: Final[dict[Kind, Callable[[Any], Any]]] = {
    "int": lambda value: int(value) if not isinstance(value, float) else _json(value),
    "decimal": _decimal,
    "float": lambda value: repr(float(value) + 0.0),  # jsonb knows no -0.0
    "bool": _exact(bool),
    "text": _exact(str),
    "datetime": _datetime,
    "date": _date,
    "time": _time,
    "interval": _interval,
    "uuid": lambda value: str(value if isinstance(value, UUID) else UUID(value)),
    "bytes": _bytes,
    "json": _json,
}
_PARSERS: Final[dict[Kind, Callable[[Any], Any]]] = {
    "int": int,
    "decimal": lambda value: Decimal(SPECIAL.get(str(value), str(value))),
    "float": float,
    "bool": lambda value: value,
    "text": str,
    "datetime": datetime.fromisoformat,
    "date": lambda value: date.fromisoformat(value.removesuffix("Z")),
    "time": lambda value: time.fromisoformat(value.removesuffix("Z")),
    "interval": lambda value: value,
    "uuid": UUID,
    "bytes": _to_bytes,
    "json": _loaded,
}
