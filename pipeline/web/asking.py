"""What a request asks for: filters, order and place out of its parameters, each checked against the document's fields."""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from pipeline.authoring.catalog import did_you_mean
from pipeline.authoring.leaves import Leaf
from pipeline.authoring.shape import Kind
from pipeline.ports import Condition, Function, Measure, Operator, Order, Query
from pipeline.web.problems import Problem, bad

OPERATORS: Final[dict[str, Operator]] = {
    "eq": "eq", "in": "eq", "gt": "gt", "gte": "gte", "lt": "lt", "lte": "lte", "null": "null",
}  # fmt: skip
FRESHNESS: Final = ("after", "wait")
LISTING: Final = ("q", "sort", "fields", "limit", "cursor", *FRESHNESS)
FUNCTIONS: Final[tuple[Function, ...]] = ("sum", "avg", "min", "max")
COUNTING: Final = ("q", "by", "limit", *FUNCTIONS, *FRESHNESS)
LIMIT, MOST = 50, 1000
CONDITIONS, VALUES, MEASURES = 20, 100, 20
TEXT: Final = 500
# The longest text that Elasticsearch compares.
COMPARED: Final = 8191
GROUPED: Final[tuple[Kind, ...]] = ("int", "text", "bool", "uuid", "date")

Parameters = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, the fields to show (None: all), and what tells it from another query."""

    query: Query
    fields: tuple[Leaf, ...] | None
    digest: str


def asked(known: Mapping[str, Leaf], parameters: Parameters, own: Sequence[str]) -> Asked:
    """`known`: the fields that may be asked for; `own`: the parameters that are no filters. Raises Problem."""
    single = _single([(name, value) for name, value in parameters if name in own])
    filters: dict[tuple[str, Operator], list[str]] = {}
    for name, value in parameters:
        if name not in own:
            leaf, operator = _filter(known, own, name)
            values = value.split(",") if name.endswith(".in") and leaf.name != name else [value]
            filters.setdefault((leaf.name, operator), []).extend(values)
    conditions = tuple(_condition(known[name], operator, values) for (name, operator), values in filters.items())
    if len(conditions) > CONDITIONS:
        raise bad("too-many-filters", f"{len(conditions)} filters are more than {CONDITIONS}.")
    text = _text(known, single.get("q", ""))
    order = _order(known, single.get("sort", ""), text)
    digest = _digest(sorted(filters), [c.values for c in conditions], text, single.get("sort", ""))
    texts = tuple(leaf for leaf in known.values() if leaf.text) if text else ()
    query = Query(conditions, text, texts, order, _place(single.get("cursor"), digest), _limit(single.get("limit")))
    return Asked(query, shown(known, single.get("fields")), digest)


def shown(known: Mapping[str, Leaf], text: str | None) -> tuple[Leaf, ...] | None:
    """`id,customer` as the leaves to show; None: all. A relation stands for all below it."""
    if text is None:
        return None
    found: list[Leaf] = []
    for name in text.split(","):
        below = [leaf for leaf in known.values() if leaf.name == name or leaf.name.startswith(f"{name}.")]
        if not below:
            raise _unknown(known, name, "fields")
        found += below
    return tuple(found)


def compared(known: Mapping[str, Leaf], name: str, parameter: str) -> Leaf:
    """The field to put in order or to group by, of which each document has one."""
    leaf = known.get(name)
    if leaf is None:
        raise _unknown(known, name, parameter)
    if not leaf.compared or (leaf.several and parameter == "sort"):
        why = (
            "a document has several of it" if leaf.several else "it is full text" if leaf.text else f"it is {leaf.kind}"
        )
        raise bad("not-comparable", f"{parameter}={name}: {why}; take another field.", field=name)
    return leaf


def grouped(known: Mapping[str, Leaf], name: str | None) -> Leaf | None:
    """The field of `by`, whose values are few."""
    if name is None:
        return None
    leaf = compared(known, name, "by")
    if leaf.kind not in GROUPED:
        raise bad("not-comparable", f"by={name}: a {leaf.kind} has too many values; take another field.", field=name)
    return leaf


def measured(known: Mapping[str, Leaf], parameters: Parameters) -> list[Measure]:
    """`sum=charged,total`, `max=placed_at`: what is made of which fields; raises Problem."""
    found = []
    single = _single([(name, value) for name, value in parameters if name in FUNCTIONS])
    for function in FUNCTIONS:
        for name in filter(None, single.get(function, "").split(",")):
            leaf = compared(known, name, function)
            if not measurable(leaf, function):
                why = "a document has several of it" if leaf.several else f"it is {leaf.kind}"
                raise bad("not-comparable", f"{function}={name}: {why}; take another field.", field=name)
            found.append(Measure(function, leaf))
    if len(found) > MEASURES:
        raise bad("too-many-values", f"{len(found)} results are more than {MEASURES}.")
    return found


def measurable(leaf: Leaf, function: Function) -> bool:
    """Whether a document has one value of it at most, of a kind that the function takes."""
    kinds: tuple[Kind, ...] = ("int", "decimal", "float")
    return not leaf.several and leaf.kind in (kinds if function in ("sum", "avg") else (*kinds, "datetime", "date"))


def cursor(digest: str, place: Sequence[Any]) -> str:
    """The place in a query as clients hand it back."""
    return base64.urlsafe_b64encode(msgspec.json.encode([digest, *place])).decode().rstrip("=")


def _place(text: str | None, digest: str) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        own, *place = msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=list[Any])
    except (msgspec.DecodeError, binascii.Error, ValueError):
        raise bad("bad-cursor", "That is no cursor: take `next` of the page before, as it is.") from None
    if own != digest or not all(value is None or isinstance(value, (str, int, float)) for value in place):
        raise bad("bad-cursor", "The cursor is of another query: leave filters, q and sort as they were.")
    return tuple(place)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode(errors="replace")).hexdigest()[:12]


def _single(given: Parameters) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in given:
        if name in found:
            raise bad("given-twice", f"{name} is given twice.", parameter=name)
        found[name] = value
    return found


def _filter(known: Mapping[str, Leaf], own: Sequence[str], name: str) -> tuple[Leaf, Operator]:
    leaf, operator = known.get(name), "eq"
    if leaf is None:
        path, _, operator = name.rpartition(".")
        leaf = known.get(path)
        if leaf is not None and operator not in OPERATORS:
            raise bad(
                "unknown-operator",
                f"{path} has no comparison {operator!r}{did_you_mean(operator, OPERATORS)}", parameter=name,
            )  # fmt: skip
    if leaf is None:
        names = [*known, *own] if "." not in name or not operator or operator not in OPERATORS else known
        wanted = name.removesuffix(f".{operator}") if operator in OPERATORS else name
        raise bad("unknown-parameter", f"There is no field or parameter {wanted[:100]!r}{did_you_mean(wanted, names)}")
    if not leaf.compared and not (leaf.text and operator == "null"):
        why = "is full text: search it by q" if leaf.text else f"is {leaf.kind}, which is not compared"
        raise bad("not-comparable", f"{leaf.name} {why}.", field=leaf.name)
    return leaf, OPERATORS[operator]


def _condition(leaf: Leaf, operator: Operator, values: Sequence[str]) -> Condition:
    if operator != "eq" and len(values) > 1:
        raise bad("given-twice", f"{leaf.name}.{operator} is given twice.", field=leaf.name)
    if len(values) > VALUES:
        raise bad("too-many-values", f"{leaf.name}: {len(values)} values are more than {VALUES}.", field=leaf.name)
    kind: Kind = "bool" if operator == "null" else leaf.kind
    return Condition(leaf, operator, tuple(value_of(kind, value, leaf.name) for value in values))


def value_of(kind: Kind, text: str, name: str) -> Any:
    """A value as it was written in a parameter; raises Problem."""
    try:
        return _VALUES[kind](text)
    except (ValueError, ArithmeticError):
        raise bad("bad-value", f"{name}: {text[:100]!r} is no {kind}.", field=name) from None


def _text(known: Mapping[str, Leaf], text: str) -> str:
    if text and not any(leaf.text for leaf in known.values()):
        raise bad("no-full-text", "No field of these documents is full text, so there is nothing to search by q.")
    if len(text) > TEXT or "\0" in text:
        raise bad("bad-value", f"q may have {TEXT} characters, and no NUL among them.")
    return text.strip()


def _order(known: Mapping[str, Leaf], sort: str, text: str) -> tuple[Order, ...]:
    if not sort:
        return (Order(None),) if text else ()
    names = sort.split(",")
    if len(names) > 5 or len({name.lstrip("-") for name in names}) < len(names):
        raise bad("bad-sort", "sort takes up to 5 fields, each once.")
    return tuple(Order(compared(known, name.removeprefix("-"), "sort"), name.startswith("-")) for name in names)


def _limit(text: str | None) -> int:
    if text is None:
        return LIMIT
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MOST:
        raise bad("bad-value", f"limit is a number from 1 to {MOST}.")
    return int(text)


def _unknown(known: Mapping[str, Leaf], name: str, parameter: str) -> Problem:
    return bad(
        "unknown-field", f"{parameter}: there is no field {name[:100]!r}{did_you_mean(name, known)}", field=name[:100]
    )


def _checked(pattern: str, then: Callable[[str], Any]) -> Callable[[str], Any]:
    compiled = re.compile(pattern, re.ASCII)

    def check(text: str) -> Any:
        if compiled.fullmatch(text) is None:
            raise ValueError
        return then(text)

    return check


def _int(text: str) -> int:
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise ValueError
    return number


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _plain(text: str) -> str:
    if len(text) > COMPARED or "\0" in text:
        raise ValueError
    return text


def _datetime(text: str) -> str:
    # the + of an offset is a space in a query string where nobody quoted it
    moment = datetime.fromisoformat(re.sub(r" (\d\d:?\d\d)$", r"+\1", text))
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")


def _none(text: str) -> Any:
    raise ValueError


_VALUES: Final[dict[Kind, Callable[[str], Any]]] = {
    "int": _checked(r"-?\d{1,19}", _int),
    "decimal": _checked(r"-?\d{1,60}(\.\d{1,60})?", Decimal),
    "float": _checked(r"-?\d{1,60}(\.\d{1,60})?([eE][-+]?\d{1,3})?", _float),
    "bool": _checked(r"true|false", lambda text: text == "true"),
    "text": _plain,
    "uuid": lambda text: str(UUID(text)),
    "datetime": _datetime,
    "date": lambda text: date.fromisoformat(text).isoformat(),
    "time": _checked(r"\d\d:\d\d:\d\d(\.\d{1,6})?Z?", str),
    "interval": _none,
    "bytes": _none,
    "json": _none,
}
