"""Rows read from MariaDB, with their values written as Debezium writes them in events."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from connectors.sources.mariadb_client import Session, connected
from connectors.sources.mariadb_config import quoted
from connectors.sources.masks import in_python
from pipeline.addresses import MariadbAddress
from pipeline.authoring.catalog import Column, Table

DAY: Final = timedelta(days=1)
SNAPSHOT: Final = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"


class MariadbRows:
    """Reads rows of one state of the source; of tables without transactions (MyISAM, Aria) the newest."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def first(self, table: Table, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
        """The first rows in the order of the primary key."""
        order = ", ".join(map(quoted, table.primary_key or columns[:1]))
        return self._read(table, columns, f"ORDER BY {order} LIMIT {int(limit)}", [])

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        """The rows whose `match` columns have one of these values, as MariaDB compares: texts in any case, mostly."""
        if not values:
            return []
        one = f"({', '.join(['%s'] * len(match))})"
        kinds = [table.column(name) for name in match]
        given = [_parameter(column, value) for row in values for column, value in zip(kinds, row, strict=True)]
        return self._read(
            table, columns, f"WHERE ({', '.join(map(quoted, match))}) IN ({', '.join([one] * len(values))})", given
        )

    def after(self, table: Table, columns: Sequence[str], last: Sequence[Any], limit: int) -> list[dict[str, Any]]:
        """The rows that follow a primary key, in its order; the first ones where none is given."""
        key = table.primary_key
        names = f"({', '.join(map(quoted, key))})"
        rest = f"WHERE {names} > ({', '.join(['%s'] * len(key))})" if last else ""
        given = [_parameter(table.column(name), value) for name, value in zip(key, last, strict=False)]
        return self._read(table, columns, f"{rest} ORDER BY {', '.join(map(quoted, key))} LIMIT {int(limit)}", given)

    def _read(self, table: Table, columns: Sequence[str], rest: str, given: Sequence[Any]) -> list[dict[str, Any]]:
        named = ", ".join(quoted(name) for name in columns)
        writers = [writer(table.column(name)) for name in columns]
        found = self.session.rows(f"SELECT {named} FROM {quoted(table.name)} {rest}", given)
        return [{name: write(value) for name, write, value in zip(columns, writers, row, strict=True)} for row in found]


@contextmanager
def open_rows(dsn: str) -> Iterator[MariadbRows]:
    """A reader whose every answer is from the same moment."""
    with connected(MariadbAddress.of(dsn)) as session:
        session.rows("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.rows(SNAPSHOT)
        yield MariadbRows(session)


def writer(column: Column) -> Callable[[Any], Any]:
    """From what the client gives of this column to its value in an event."""
    return in_python(column, _clear(column))


def _clear(column: Column) -> Callable[[Any], Any]:
    kind, zero = plain(column.type), not column.nullable
    if kind == "bit":
        return _or_null(_truth if column.type == "bit(1)" else _reversed)
    if kind in ("date", "datetime", "timestamp"):
        dated = _date if kind == "date" else _moment
        return _or_null(lambda value: dated(value, zero))
    return _or_null(_WRITERS.get(kind, _same))


def plain(written: str) -> str:
    """A type's name without its length and its sign: `decimal(10,2) unsigned` is `decimal`."""
    return written.partition("(")[0].partition(" ")[0]


def _or_null(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else write(value)


def _same(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _truth(value: bytes) -> bool:
    return value != b"\0"


def _reversed(value: bytes) -> str:
    return base64.b64encode(value[::-1]).decode()


def _decimal(value: Decimal) -> str:
    return format(value, "f")


def _year(value: int) -> int:
    return value or 1900


def _date(value: Any, zero: bool) -> str | None:
    """What is no date is null, or the first of 1970 where the column can't be null."""
    if isinstance(value, str):
        return "1970-01-01Z" if zero else None
    return f"{value.isoformat()}Z"


def _moment(value: Any, zero: bool) -> str | None:
    if isinstance(value, str):
        return "1970-01-01T00:00:00Z" if zero else None
    whole, shown = value.replace(microsecond=0).isoformat(), f"{value.microsecond:06}".rstrip("0")
    return f"{whole}.{shown}Z" if shown else whole + "Z"


def _time(value: timedelta) -> str | None:
    """What is no time of a day is lost; the day's end is its beginning."""
    if not timedelta() <= value <= DAY:
        return None
    seconds, shown = value.seconds, f"{value.microseconds:06}".rstrip("0")
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{shown}Z" if shown else text + "Z"


_WRITERS: Final[dict[str, Callable[[Any], Any]]] = {"decimal": _decimal, "year": _year, "time": _time}


def _parameter(column: Column, value: Any) -> Any:
    """A value of an event, or a text, as a statement's parameter."""
    kind = plain(column.type)
    if kind in ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"):
        return base64.b64decode(value)
    if kind == "bit" and not isinstance(value, bool):
        return int.from_bytes(base64.b64decode(value), "little")
    if kind in ("date", "datetime", "timestamp", "time") and isinstance(value, str):
        return value.removesuffix("Z").replace("T", " ")
    return value
