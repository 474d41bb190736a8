"""Connections to the Postgres of a sink: few, kept, with the server's errors in this project's words."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.errors import SettingsError, SinkError, SinkUnavailable, TargetMissing

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
CHECK = "check postgres.dsn"
MISSING = frozenset({"42P01", "3F000"})
# Of these classes nobody knows that a document is at fault: no room, a lost race, an operator at work, a standby.
PASSING = ("08", "40", "53", "55", "57", "58", "25")
# Data that can't be converted, a broken constraint, more than the server's limits.
DOCUMENT = ("22", "23", "54")
# The client waits a little longer than the server, whose words say more.
GRACE = 2.0
CONNECT_SECONDS = 4


class Connections:
    """Connections that were used before, or new ones; whoever asks for one has it alone.

    `dsn` is asked for each new one: its password may be another one by then.
    """

    def __init__(self, dsn: Callable[[], str], sink: str, *, timeout: float, setup: Sequence[str] = ()) -> None:
        self._dsn, self._sink, self._timeout, self._setup = dsn, sink, timeout, setup
        self._password = _password(dsn())
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        """A connection in autocommit; what goes wrong with it is a SinkError without the password."""
        db: Connection | None = None
        try:
            db = self._kept() or await self._connect()
            yield db
        except psycopg.Error as error:
            raise self.failed(error) from None
        finally:
            if db is not None and db.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                self._idle.append(db)
            elif db is not None:
                await db.close()

    async def run(
        self, db: Connection, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """One statement, and its rows if it has any."""
        with self._limited(db):
            cursor = await db.execute(query.encode(), parameters)
            return await cursor.fetchall() if cursor.description is not None else []

    @asynccontextmanager
    async def transaction(self, db: Connection) -> AsyncIterator[None]:
        """A transaction, or within one a savepoint; its beginning and its end are limited in time too."""
        own = db.transaction()
        with self._limited(db):
            await own.__aenter__()
        try:
            yield
        except BaseException as error:
            with self._limited(db):
                await own.__aexit__(type(error), error, error.__traceback__)
            raise
        with self._limited(db):
            await own.__aexit__(None, None, None)

    async def copy(self, db: Connection, query: str, data: bytes) -> None:
        with self._limited(db):
            async with db.cursor() as cursor, cursor.copy(query.encode()) as copy:
                await copy.write(data)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    def failed(self, error: psycopg.Error) -> SinkError:
        code = error.sqlstate or ""
        if code in MISSING:
            return TargetMissing(f"{self._sink}: the table or the checkpoint table is missing: run `cdc apply`.")
        said = self._scrubbed(words(error))
        if not code or code.startswith(PASSING):
            return SinkUnavailable(f"{self._sink}: Postgres can't be reached or can't do it now ({said}).")
        if code.startswith("28") or code == "3D000":
            return SinkError(f"{self._sink}: Postgres lets nobody in ({said}): {CHECK}.")
        if code == "42501":
            return SinkError(
                f"{self._sink}: not allowed ({said}): give the user of postgres.dsn the right, CREATE on the schema among them."
            )
        return SinkError(f"{self._sink}: Postgres refuses: {code} {said}.")

    def _kept(self) -> Connection | None:
        while self._idle:
            db = self._idle.pop()
            if not db.closed:
                return db
        return None

    async def _connect(self) -> Connection:
        milliseconds = int(self._timeout * 1000)
        dsn = await asyncio.to_thread(self._dsn)
        try:
            self._password = _password(dsn)
        except SettingsError as error:
            raise SinkError(f"{self._sink}: {error}") from None
        db = await psycopg.AsyncConnection.connect(
            dsn, autocommit=True, prepare_threshold=None, client_encoding="utf8", application_name="cdc",
            connect_timeout=CONNECT_SECONDS, tcp_user_timeout=milliseconds, keepalives_idle=10,
        )  # fmt: skip
        try:
            # a worker that is stopped in the middle must not keep the next one from claiming
            for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
                await self.run(db, f"SET {setting} = {milliseconds}")
            for statement in self._setup:
                await self.run(db, statement)
        except BaseException:
            await db.close()
            raise
        return db

    @contextmanager
    def _limited(self, db: Connection) -> Iterator[None]:
        """Ends a connection whose server says nothing: cancelling would wait for the answer to the cancellation."""
        end = asyncio.get_running_loop().call_later(self._timeout + GRACE, _cut, db)
        try:
            yield
        finally:
            end.cancel()

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._password, "**********") if self._password else text


def _password(dsn: str) -> str:
    try:
        return str(conninfo_to_dict(dsn).get("password") or "")
    except psycopg.ProgrammingError:
        raise SettingsError(
            "postgres.dsn is no libpq URI (postgresql://user@host:5432/database): set it again."
        ) from None


def _cut(db: Connection) -> None:
    with socket.socket(fileno=os.dup(db.fileno())) as own:
        own.shutdown(socket.SHUT_RDWR)


def words(error: psycopg.Error) -> str:
    """The server's words; of a document at fault the place too, never the row."""
    diagnosis = error.diag
    if diagnosis.message_primary is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[0].rstrip(".") if lines else type(error).__name__
    said = diagnosis.message_primary
    if (error.sqlstate or "").startswith("22"):
        place = next((line for line in (diagnosis.context or "").splitlines() if line.startswith("JSON data")), "")
        said = "; ".join(part for part in (said, diagnosis.message_detail or "", place) if part)
    return said[:600]
