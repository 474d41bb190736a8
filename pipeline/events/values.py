"""Column values: the JSON tokens of an event to what the mirror stores, in one spelling for every road to a document.

Stored are ints and bools as they are, text for decimals, times, uuids and base64, and JSON text for floats, JSON and
arrays. Spelled as Postgres does: `NaN`, `Infinity`, `infinity`; without a `Z` where the source has no time zone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Raw

from pipeline.authoring.column_types import Wire, WireKind
from pipeline.errors import UnsupportedValue

Converter = Callable[[Any], Any]

_INT: Final[Any] = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""What SQLite holds."""
_NUMBERS: Final = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}
_INFINITIES: Final = {
    "+5877611-06-21": "infinity",
    "+292278994-08-16": "infinity",
    "-5877611-06-22": "-infinity",
    "-292275055-05-16": "-infinity",
    "+292269055-12-02": "-infinity",
}
"""What Debezium makes of infinite dates and timestamps, by their day: all beyond what Postgres can hold."""
# a number stays as it is written, for a float would round it
_parse: Final = msgspec.json.Decoder(float_hook=lambda text: Raw(text.encode())).decode
_strings: Final = msgspec.json.Decoder(list[Any], float_hook=lambda text: Raw(text.encode())).decode
_encode: Final = msgspec.json.Encoder().encode


def field_type(wire: Wire) -> Any:
    """The type by which msgspec reads a column's value."""
    if wire.array or wire.kind in ("float", "single", "json", "jsonb"):
        return Raw
    types: dict[WireKind | None, Any] = {
        "int": _INT | None,
        "bool": bool | None,
        "flag": _INT | bool | None,
        "unsigned": _INT | str | None,
        None: _INT | str | bool | None,
    }
    return types.get(wire.kind, str | None)


def converter(wire: Wire) -> Converter | None:
    """From what `field_type` gives (never None) to what the mirror stores; None where that is the same."""
    if wire.array:
        return _array(None if wire.kind is None else _SCALARS.get(wire.kind), wire.kind in ("json", "jsonb"))
    return None if wire.kind is None else _SCALARS.get(wire.kind)


def row_reader(wires: Iterable[Wire]) -> Callable[[Any], tuple[Any, ...]]:
    """From a Struct with the fields f0, f1, … to the tuple that the mirror stores; raises ValueError where a decimal
    has anything but digits. One compiled expression, for it runs once an event.
    """
    parts: list[str] = []
    names: dict[str, Any] = {"refuse": _refuse}
    for i, wire in enumerate(wires):
        convert = converter(wire)
        if convert is decimal:
            parts.append(f"row.f{i} if row.f{i} is None or not row.f{i}.strip('-.0123456789') else refuse(row.f{i})")
        elif convert is not None:
            names[f"c{i}"] = convert
            parts.append(f"None if row.f{i} is None else c{i}(row.f{i})")
        else:
            parts.append(f"row.f{i}")
    if not any("(" in part for part in parts):
        return msgspec.structs.astuple
    reader: Callable[[Any], tuple[Any, ...]] = eval(f"lambda row: ({', '.join(parts)},)", names)  # noqa: S307 - of numbers only
    return reader


def _refuse(text: str) -> None:
    raise ValueError(text)


def decimal(text: str) -> str:
    """Raises ValueError for what is no decimal: base64, as the connector's default modes send it."""
    text = _NUMBERS.get(text, text)
    float(text)
    return text


def date(text: str) -> str:
    text = text.removesuffix("Z")
    return text if text[:1] not in "+-" else _INFINITIES.get(text, text)


def timestamp(text: str) -> str:
    text = instant(text).removesuffix("Z")
    return text if text[:1] not in "+-" else _INFINITIES.get(text.partition("T")[0], text)


def instant(text: str) -> str:
    """In UTC, without a fraction that is zero."""
    if text[-2:] != "0Z" or "." not in text:
        return text
    if text[-8:] == ".000000Z":
        return text[:-8] + "Z"
    whole, _, fraction = text.rpartition(".")
    return text if fraction.strip("0Z") else whole + "Z"


def zoned(text: str) -> str | None:
    """MariaDB's TIMESTAMP begins a second after 1970: what comes from before that was its zero date, as null elsewhere."""
    return None if text[:19] == "1970-01-01T00:00:00" else shortest(text)


def shortest(text: str) -> str:
    """The connector writes as many decimals as the column has, or, of a column with a default, as it needs."""
    return text[:-1].rstrip("0").rstrip(".") + "Z" if "." in text else text


def unsigned(value: str | int) -> int:
    """MariaDB's BIGINT UNSIGNED; raises UnsupportedValue for what is too large for SQLite and for readers."""
    if isinstance(value, str):
        value = int.from_bytes(base64.b64decode(value, validate=True), "big", signed=True)
    if not 0 <= value < 1 << 63:
        raise UnsupportedValue(f"{value} is beyond 9223372036854775807")
    return value


def time(text: str) -> str:
    return text.removesuffix("Z")


def json_line(text: str) -> str:
    """JSON in one line, the last of equal keys; numbers as they are written. Raises UnsupportedValue."""
    try:
        return _encode(_parse(text)).decode()
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        # half of a surrogate pair, or very deep: what Postgres let in is for the sink to judge
        try:
            json.loads(text, parse_constant=_refuse)
        except ValueError:
            raise UnsupportedValue("no JSON") from None
        except RecursionError:
            pass
        # between tokens only: inside a string they are escaped
        return text.replace("\n", " ").replace("\r", " ").strip()


def _json(raw: Raw) -> str | None:
    token = bytes(raw)
    if token[:1] == b'"':
        return json_line(msgspec.json.decode(token, type=str))
    return None if token == b"null" else json_line(token.decode())


def _jsonb(raw: Raw) -> str | None:
    """As Postgres prints it, which is one line with unlike keys; a shape is an object of the event itself."""
    token = bytes(raw)
    if token[:1] == b'"':
        text = msgspec.json.decode(token, type=str)
        return text if "\n" not in text else json_line(text)
    return None if token == b"null" else token.decode()


def _float(raw: Raw) -> str | None:
    token = bytes(raw)
    if token[:1] == b'"' and token not in (b'"NaN"', b'"Infinity"', b'"-Infinity"'):
        raise UnsupportedValue(f"{token.decode()[:40]} is no number")
    return None if token == b"null" else token.decode()


def _single(raw: Raw) -> str | None:
    """MariaDB shows six digits of a FLOAT, to a snapshot too, and its log has all of them."""
    token = bytes(raw)
    return None if token == b"null" else repr(float(f"{float(token):.6g}"))


def _array(item: Converter | None, holds_json: bool) -> Converter:
    def convert(raw: Raw) -> str | None:
        token = bytes(raw)
        if token[:1] == b'"':  # a list in a JSON column
            return json_line(msgspec.json.decode(token, type=str))
        if token == b"null" or item is None or item is _float:
            return None if token == b"null" else token.decode()
        items = _strings(token)
        if holds_json:
            return "[" + ",".join(json_line(i) if isinstance(i, str) else _encode(i).decode() for i in items) + "]"
        return _encode([item(i) if isinstance(i, str) else i for i in items]).decode()

    return convert


_SCALARS: Final[dict[WireKind, Converter]] = {
    "decimal": decimal,
    "float": _float,
    "single": _single,
    "unsigned": unsigned,
    "instant": shortest,
    "zoned": zoned,
    "datetime": instant,
    "timestamp": timestamp,
    "date": date,
    "time": time,
    "json": _json,
    "jsonb": _jsonb,
}
