"""Reads what the Postgres sink wrote, from the tables that readers see through the views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg

from connectors.sinks.parts import whole
from connectors.sinks.postgres import plain_id, stored_id
from connectors.sinks.postgres_client import Connections
from connectors.sinks.postgres_layout import FOUND, Layout
from connectors.sinks.postgres_query import Statement
from connectors.sinks.postgres_records import by_name, stored
from connectors.sinks.postgres_tables import SEEN, Tables
from pipeline.authoring.leaves import Leaf
from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import QueryRefused, TargetMissing
from pipeline.ports import Found, Group, Measure, Page, Query, SinkRecord

CONNECTIONS = 8


class PostgresReader:
    """Reads one view's table; what it says is of one moment."""

    def __init__(self, *, dsn: Callable[[], str], target: Target, shape: Shape, request_timeout: float) -> None:
        self._tables = Tables(target.name, "reader-v0", shape, target.options)
        self._layouts: dict[str, Layout] = {}
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._connections = Connections(dsn, self.name, timeout=request_timeout, setup=("SET TimeZone = 'UTC'",))

    @property
    def name(self) -> str:
        return f"postgres:{self._tables.schema}.{self._tables.view_name}"

    def version(self, projection: str) -> str:
        return replace(self._tables, projection=projection).table_name

    async def seen(self) -> str:
        found = await self._run(SEEN, (self._tables.view,))
        if len(found) != 1:
            raise TargetMissing(f"{self.name}: there is no such view: run `cdc apply`.")
        return str(found[0][0])

    async def record(self, version: str) -> SinkRecord | None:
        return whole(version, by_name(await self._run(stored(self._tables.checkpoints), (version, f"{version}@"))))

    async def get(self, version: str, ids: Sequence[str]) -> Mapping[str, Found]:
        own = await self._layout(version)
        query = f"SELECT _id, _revision, {own.document()}::text FROM {own.table} t WHERE _id = ANY(%s) AND NOT _deleted"
        found = await self._run(query, ([stored_id(id) for id in ids],))
        return {plain_id(id): Found(revision, document.encode()) for id, revision, document in found}

    async def search(self, version: str, query: Query) -> Page:
        own = await self._layout(version)
        sql = Statement(own)
        terms = [(*sql.ordered(one, query), one.descending or one.leaf is None) for one in query.order]
        where = sql.where(query)
        if query.after is not None:
            where += f" AND {sql.behind(terms, query.after)}"
        order = "".join(f"{term}{' DESC' if falls else ''} NULLS LAST, " for term, _, falls in terms)
        shown = "".join(f", ({term})::text" for term, _, _ in terms)
        found = await self._run(
            f"SELECT {own.document()}::text{shown}, _id FROM {own.table} t WHERE {where} ORDER BY {order}_id"
            f" LIMIT {query.limit + 1}",
            sql.values,
        )
        documents = [row[0].encode() for row in found[: query.limit]]
        return Page(documents, tuple(found[query.limit - 1][1:]) if len(found) > query.limit else None)

    async def count(self, version: str, query: Query) -> int:
        own = await self._layout(version)
        sql = Statement(own)
        found = await self._run(f"SELECT count(*) FROM {own.table} t WHERE {sql.where(query)}", sql.values)
        return int(found[0][0])

    async def groups(
        self, version: str, query: Query, by: Leaf | None, limit: int, measures: Sequence[Measure] = ()
    ) -> Sequence[Group]:
        own = await self._layout(version)
        sql = Statement(own)
        shown = "".join(f", {sql.measured(measure)}" for measure in measures)
        where = sql.where(query)
        if by is None:
            statement = f"SELECT NULL, count(*){shown} FROM {own.table} t WHERE {where}"
        else:
            value = f"SELECT DISTINCT i AS v FROM {sql.items(by)} WHERE i <> 'null'"
            statement = (
                f"SELECT v, count(*){shown} FROM {own.table} t LEFT JOIN LATERAL ({value}) s ON true"
                f' WHERE {where} GROUP BY v ORDER BY 2 DESC, v::text COLLATE "C" LIMIT {limit}'
            )
        return [
            Group(value, int(count), tuple(map(_result, measures, texts)))
            for value, count, *texts in await self._run(statement, sql.values)
        ]

    async def refresh(self, version: str) -> None:
        """What is committed is found."""

    async def close(self) -> None:
        await self._connections.close()

    async def _layout(self, version: str) -> Layout:
        """The version's tables: they stay as they were made."""
        if (known := self._layouts.get(version)) is None:
            wanted = Layout(self._tables.schema, self._tables.view_name, version)
            known = wanted.found(await self._run(FOUND, wanted.names))
            if known.columns:
                self._layouts[version] = known
        return known

    async def _run(self, query: str, values: Sequence[Any] | Mapping[str, Any]) -> list[tuple[Any, ...]]:
        async with self._slots, self._connections.use() as db:
            try:
                return await self._connections.run(db, query, values)
            except (psycopg.errors.DataError, psycopg.errors.ProgramLimitExceeded) as error:
                refused = QueryRefused(f"{self.name} refuses: {type(error).__name__}.")
        raise refused


def _result(measure: Measure, text: str | None) -> Any:
    """A result as documents spell it."""
    kind = measure.leaf.kind
    if text is None or kind in ("decimal", "date"):
        return text
    if kind == "datetime":
        return text.replace(".000000Z", "Z")
    return int(Decimal(text)) if kind == "int" and measure.function != "avg" else float(text)
