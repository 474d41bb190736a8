"""The Postgres sinks that the contract suites open, over a schema of their own."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sink_contract import SECRET, SHAPE

from connectors.sinks.parts import ONE, Parts
from connectors.sinks.postgres import PostgresSink
from pipeline.authoring.shape import Shape

FULL = (
    "CREATE FUNCTION {schema}.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
)


@dataclass(slots=True)
class PostgresServer:
    """The sinks' database, and a view `<schema>.orders` of which each test has its own."""

    dsn: str
    schema: str
    options: dict[str, object] = field(default_factory=dict)
    timeout: float = 10.0

    def open(
        self,
        projection: str,
        *,
        shape: Shape = SHAPE,
        bulk_bytes: int = 0,
        dsn: str = "",
        parts: Parts = ONE,
        **options: object,
    ) -> PostgresSink:
        return PostgresSink(
            dsn=lambda: dsn or self.dsn, target=f"{self.schema}.orders", projection=projection, shape=shape,
            options=self.options | options, request_timeout=self.timeout, parts=parts,
        )  # fmt: skip

    def unreachable(self, projection: str) -> PostgresSink:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return self.open(projection, dsn=f"postgresql://me:{SECRET}@127.0.0.1:{port}/none")

    async def ask(self, *statements: str) -> list[Any]:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as db:
            for statement in statements:
                cursor = await db.execute(statement.encode())
            return await cursor.fetchall() if cursor.description else []

    def table(self, projection: str) -> str:
        return f"{self.schema}.orders_{projection.rpartition('-')[2]}"

    async def lose(self, projection: str) -> None:
        await self.ask(f"DROP TABLE {self.table(projection)} CASCADE")

    async def block(self, projection: str, on: bool) -> None:
        if on:
            await self.ask(
                FULL.format(schema=self.schema),
                f"CREATE TRIGGER is_full BEFORE INSERT ON {self.table(projection)} EXECUTE FUNCTION {self.schema}.full()",
            )
        else:
            await self.ask(f"DROP FUNCTION {self.schema}.full CASCADE")

    async def visible(self) -> str | None:
        try:
            found = await self.ask(f"SELECT document ->> 'note' FROM {self.schema}.orders WHERE _id = 'which'")
        except psycopg.errors.UndefinedTable:
            return None
        return found[0][0] if found else None

    async def close(self) -> None:
        await self.ask(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")
