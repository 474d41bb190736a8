"""Values as foreign topics have them, by what their schemas say, to the spellings that the mirror stores (values.py)."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec import Raw

from pipeline.authoring.column_types import Wire
from pipeline.errors import UnsupportedValue
from pipeline.events.values import date as date_text
from pipeline.events.values import decimal, instant, json_line, shortest, timestamp

Reader = Callable[[Any], Any]
"""From a value that is not null to what is stored; raises ValueError, TypeError, or UnsupportedValue with the reason."""

CONNECT: Final = "org.apache.kafka.connect.data."
DEBEZIUM: Final = "io.debezium."
_PER_SECOND: Final = {
    **dict.fromkeys(("millis", "timestamp-millis", "local-timestamp-millis", "time-millis"), 1000),
    **dict.fromkeys(
        (f"{DEBEZIUM}time.Timestamp", f"{DEBEZIUM}time.Time", f"{CONNECT}Timestamp", f"{CONNECT}Time"), 1000
    ),
    **dict.fromkeys(("micros", "timestamp-micros", "local-timestamp-micros", "time-micros"), 1_000_000),
    **dict.fromkeys((f"{DEBEZIUM}time.MicroTimestamp", f"{DEBEZIUM}time.MicroTime"), 1_000_000),
    **dict.fromkeys(("nanos", "timestamp-nanos", "local-timestamp-nanos"), 1_000_000_000),
    **dict.fromkeys((f"{DEBEZIUM}time.NanoTimestamp", f"{DEBEZIUM}time.NanoTime"), 1_000_000_000),
}
"""The units of numbers that stand for moments and times of day."""
_LOSSY: Final = (f"{DEBEZIUM}time.MicroDuration", f"{DEBEZIUM}time.NanoDuration")
_INFINITE: Final = {
    **dict.fromkeys(((1 << 63) - 1, 9223372036825200000), "infinity"),
    **dict.fromkeys((-(1 << 63), -9223372036832400000), "-infinity"),
}
"""Postgres' infinite timestamps, as they are counted."""
_NO_UNIT: Final = "a number whose unit no schema tells: set plain_times in the topics' definition"
_SCALES: Final = 131_072
_EPOCH: Final = date(1970, 1, 1).toordinal()
_CYCLE: Final = 146_097
"""Days of 400 years."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a record's schema says of a column; nothing where it has none."""

    name: str = ""
    """A semantic type: Debezium's or Connect's name, Avro's logical type, or `millis`, `micros`, `nanos`, `base64`."""
    base: str = ""
    """How it is encoded: `float` is a number of 32 bits, `double` one of 64."""
    scale: int | None = None
    item: Told | None = None


def reader(wire: Wire, told: Told) -> Reader:
    """How a column's values are read."""
    if wire.array:
        return _array(reader(replace(wire, array=False), told.item or Told()))
    kind = wire.kind
    if kind in ("timestamp", "datetime"):
        return _moment(kind == "datetime", _PER_SECOND.get(told.name))
    if kind == "time":
        return _time_of_day(_PER_SECOND.get(told.name))
    if kind == "decimal":
        return _decimal(told)
    if kind == "float":
        return _float32 if told.base in ("float", "float32") else _float
    if kind == "interval" and told.name in _LOSSY:
        return _refused(f"{told.name} counts a month as 30.4 days: have the producer set interval.handling.mode=string")
    return _BY_KIND.get(kind, _as_it_is)


def _refused(reason: str) -> Reader:
    def refuse(value: Any) -> Any:
        raise UnsupportedValue(reason)

    return refuse


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} instead of a text")
    return value


def _integer(value: Any) -> int:
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise TypeError(f"{_short(value)} is no integer of 64 bits")
    return value


def _boolean(value: Any) -> bool:
    if value not in (0, 1) or not isinstance(value, int):
        raise TypeError(f"{_short(value)} is neither true nor false")
    return bool(value)


def _as_it_is(value: Any) -> int | str | bool:
    if not isinstance(value, int | str):
        raise TypeError(f"{type(value).__name__} is not read")
    return value


def _bytes(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    base64.b64decode(_text(value), validate=True)
    return str(value)


def _json(value: Any) -> str:
    return json_line(value) if isinstance(value, str) else _json_of(value)


def _jsonb(value: Any) -> str:
    return value if isinstance(value, str) and "\n" not in value else _json(value)


def _json_of(value: Any) -> str:
    return msgspec.json.encode(value).decode()


# ---- numbers ----------------------------------------------------------------------------------------------


def _decimal(told: Told) -> Reader:
    scale, encoded = told.scale, told.name == "base64"

    def read(value: Any) -> str:
        if isinstance(value, Mapping):  # Debezium's VariableScaleDecimal
            return unscaled(_octets(value["value"]), int(value["scale"]))
        if isinstance(value, float) or told.base in ("double", "float"):
            raise UnsupportedValue(
                "a float is not exact: have the producer set decimal.handling.mode=string or precise"
            )
        if isinstance(value, Raw):
            return decimal(bytes(value).decode())
        if isinstance(value, bytes) or (isinstance(value, str) and (scale is not None or encoded)):
            if scale is None:
                raise UnsupportedValue("the scale of its bytes is not told: declare it, numeric(12,2)")
            return unscaled(_octets(value), scale)
        return str(_integer(value)) if isinstance(value, int) else decimal(_text(value))

    return read


def _octets(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else base64.b64decode(value, validate=True)


def unscaled(octets: bytes, scale: int) -> str:
    """A number in two's complement, `scale` of its digits behind the point; as Postgres writes it."""
    if abs(scale) > _SCALES:
        raise UnsupportedValue(f"a number with {scale} digits behind the point is none of Postgres'")
    number = int.from_bytes(octets, "big", signed=True)
    if scale <= 0:
        return str(number * 10**-scale)
    digits = str(abs(number)).rjust(scale + 1, "0")
    return f"{'-' if number < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"


def _float(value: Any) -> str:
    return _spelled(value, _shortest64)


def _float32(value: Any) -> str:
    return _spelled(value, _shortest32)


def _spelled(value: Any, digits: Callable[[float], str]) -> str:
    if isinstance(value, Raw):
        return bytes(value).decode()
    if isinstance(value, str):
        if value not in ("NaN", "Infinity", "-Infinity"):
            raise TypeError(f"{value[:40]} is no number")
        return f'"{value}"'
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{type(value).__name__} instead of a number")
    if not math.isfinite(value):
        return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'
    return as_java(digits(float(value)))


def _shortest64(value: float) -> str:
    """Java writes two digits at least, so 4.9E-324 where one would do."""
    text = f"{value:.2g}"
    return text if float(text) == value else repr(value)


def _shortest32(value: float) -> str:
    """The fewest digits that lead to this number of 32 bits."""
    packed = struct.pack("f", value)
    return next(text for n in range(2, 10) if _packed(text := f"{value:.{n}g}") == packed)


def _packed(text: str) -> bytes | None:
    try:
        return struct.pack("f", float(text))
    except OverflowError:
        return None


def as_java(text: str) -> str:
    """A float's digits as Java writes them, which is how they are in JSON: 1.0E10, 0.001, 1.0E-4."""
    sign, text = ("-", text[1:]) if text[0] == "-" else ("", text)
    mantissa, _, power = text.partition("e")
    whole, _, fraction = mantissa.partition(".")
    exponent = int(power or 0) + len(whole)
    digits = (whole + fraction).lstrip("0")
    exponent -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    if not digits:
        return f"{sign}0.0"
    if -3 < exponent <= 7:
        padded = "0" * max(0, 1 - exponent) + digits.ljust(exponent, "0")
        point = max(exponent, 1)
        return f"{sign}{padded[:point]}.{padded[point:] or '0'}"
    return f"{sign}{digits[0]}.{digits[1:] or '0'}E{exponent - 1}"


# ---- times ------------------------------------------------------------------------------------------------


def _date(value: Any) -> str:
    return date_text(value) if isinstance(value, str) else _day(_integer(value))


def _day(days: int) -> str:
    """As ISO 8601 and Java count: the year 0 is there, and years beyond 9999 have a sign."""
    cycles, rest = divmod(days + _EPOCH - 1, _CYCLE)
    found = date.fromordinal(rest + 1)
    year = found.year + 400 * cycles
    written = f"{year:04}" if 0 <= year <= 9999 else f"{year:+05}"
    return f"{written}-{found.month:02}-{found.day:02}"


def _moment(zoned: bool, unit: int | None) -> Reader:
    spelled = instant if zoned else _shortest

    def read(value: Any) -> str:
        if isinstance(value, str):
            text = _in_utc(value)
            return instant(text) if zoned else timestamp(shortest(text))
        if unit is None:
            raise UnsupportedValue(_NO_UNIT)
        if value in _INFINITE:
            return _INFINITE[value]
        seconds, part = divmod(_integer(value), unit)
        days, second = divmod(seconds, 86_400)
        return spelled(f"{_day(days)}T{_clock(second, part, unit)}Z")

    return read


def _shortest(text: str) -> str:
    return shortest(text)[:-1]


def _in_utc(text: str) -> str:
    """With a Z, whatever its zone; a text without one is in UTC."""
    if text[-6:-5] not in ("+", "-") or text[-3:-2] != ":":
        return text if text[-1:] == "Z" or text.endswith("infinity") else text + "Z"
    whole, _, fraction = text[:-6].partition(".")
    offset = timedelta(hours=int(text[-5:-3]), minutes=int(text[-2:])) * (1 if text[-6] == "+" else -1)
    moment = (datetime.fromisoformat(whole) - offset).isoformat()
    return f"{moment}.{fraction}Z" if fraction else f"{moment}Z"


def _time_of_day(unit: int | None) -> Reader:
    def read(value: Any) -> str:
        if isinstance(value, str):
            return _shortest(value if value[-1:] == "Z" else value + "Z")
        if unit is None:
            raise UnsupportedValue(_NO_UNIT)
        return _shortest(_clock(*divmod(_integer(value), unit), unit) + "Z")

    return read


def _clock(second: int, part: int, unit: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.{part:0{len(str(unit)) - 1}}"


def _array(item: Reader) -> Reader:
    def read(value: Any) -> str:
        if isinstance(value, str):  # a list in a JSON column
            return json_line(value)
        return "[" + ",".join(map(spell, value)) + "]"

    def spell(value: Any) -> str:
        if value is None:
            return "null"
        found = item(value)
        return found if item in _WRITTEN_AS_JSON else _json_of(found)

    return read


_BY_KIND: Final[Mapping[Any, Reader]] = {
    "int": _integer,
    "bool": _boolean,
    "text": _text,
    "uuid": _text,
    "interval": _text,
    "timetz": _text,
    "bytes": _bytes,
    "json": _json,
    "jsonb": _jsonb,
    "date": _date,
}
_WRITTEN_AS_JSON: Final = (_float, _float32, _json, _jsonb)


def _short(value: Any) -> str:
    return repr(value)[:40]
