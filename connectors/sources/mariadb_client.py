"""Connections to a MariaDB source, with the server's errors in this project's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.addresses import MariadbAddress
from pipeline.errors import SettingsError, SourceError, SourceUnavailable

try:
    import pymysql
except ImportError:
    raise SettingsError("A MariaDB source needs an extra: pip install 'cdc-pipeline[mariadb]'.") from None

CONNECT_TIMEOUT = 10
GONE = frozenset({1053, 1152, 1158, 1159, 1160, 1161, 1205, 1213, 1927, 2006, 2013})
"""The server stops, a lock or a deadlock, a connection that broke: another time it may go."""


class Session:
    """One connection; every session reads times in UTC."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def rows(self, statement: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """The rows of one statement."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def one(self, statement: str, parameters: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """The first row of a statement that has one."""
        return self.rows(statement, parameters)[0]

    def mappings(self, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows by the names of their columns."""
        with self._connection.cursor(pymysql.cursors.DictCursor) as cursor:
            cursor.execute(statement, parameters)
            return list(cursor.fetchall())

    def literal(self, text: str) -> str:
        """A text as SQL has it, where no parameter may be."""
        return f"'{pymysql.converters.escape_string(text)}'"


@contextmanager
def connected(address: MariadbAddress) -> Iterator[Session]:
    """A session that commits by itself; what goes wrong is a SourceError without the password."""
    try:
        connection = pymysql.connect(
            host=address.host, port=address.port, user=address.user, database=address.database,
            password=address.password.get_secret_value(), autocommit=True, charset="utf8mb4",
            connect_timeout=CONNECT_TIMEOUT, init_command="SET time_zone = '+00:00'",
        )  # fmt: skip
    except (pymysql.Error, OSError) as error:
        raise SourceUnavailable(
            f"The source database {address} can't be reached ({reason(error)}): check its dsn and that it is up."
        ) from None
    try:
        yield Session(connection)
    except pymysql.Error as error:
        if error.args and error.args[0] in GONE:
            raise SourceUnavailable(f"The source database {address} broke off ({reason(error)}): try again.") from None
        raise SourceError(
            f"The source database {address} refused ({reason(error)}): check the rights of the user in its dsn."
        ) from None
    finally:
        connection.close()


def reason(error: Exception) -> str:
    """The database's own words, which have no password."""
    return str(error.args[-1] if error.args else error).strip().rstrip(".") or type(error).__name__


__all__ = ["Session", "connected"]
