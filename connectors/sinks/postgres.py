"""The Postgres sink: one table for each projection version, and one for each list that has its own, read through views."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from connectors.sinks.parts import ONE, Parts
from connectors.sinks.postgres_client import DOCUMENT, PASSING, Connection, Connections, words
from connectors.sinks.postgres_columns import quoted
from connectors.sinks.postgres_layout import ASIDE, FOUND, VIEWS, Layout
from connectors.sinks.postgres_records import OF_VERSION, RECORD, by_name, stored
from connectors.sinks.postgres_tables import SEEN, STAGING, Tables, view_ddl
from pipeline.authoring.shape import Shape
from pipeline.errors import NotAllowed, SinkError
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, SinkRecord, Stored, Throttled, Write, always

ID_BYTES = 512
PAGE = 500
# Ids alone are small.
IDS = 5000
AGAIN = "raise the projection's version and rebuild."
# Marks an id that Postgres can't keep as text.
ODD = "\x01hex:"
COPY = f"COPY {STAGING} FROM STDIN"
# Any number will do: two that prepare at once would both create.
PREPARING = 7_061_904


class PostgresSink:
    """Writes the documents of one projection version to its table: one `write` is one transaction."""

    atomic = True

    def __init__(
        self,
        *,
        dsn: Callable[[], str],
        target: str,
        projection: str,
        shape: Shape,
        options: Mapping[str, object],
        in_flight: int = 2,
        request_timeout: float = 20.0,
        parts: Parts = ONE,
    ) -> None:
        self._tables, self._slots = Tables(target, projection, shape, options), asyncio.Semaphore(in_flight)
        self._key, self._parts = self._tables.table_name, parts
        self._writers = Connections(dsn, self.name, timeout=request_timeout, setup=self._tables.staging)
        self._others = Connections(dsn, self.name, timeout=request_timeout)

    @property
    def name(self) -> str:
        return f"postgres:{self._tables.schema}.{self._key}"

    @property
    def _record(self) -> str:
        return self._parts.name(self._key)

    async def prepare(self) -> None:
        own = self._tables
        async with self._others.use() as db, self._others.transaction(db):
            await self._run(db, f"SELECT pg_advisory_xact_lock({PREPARING})")
            ((encoding, there),) = await self._run(
                db,
                "SELECT current_setting('server_encoding'), to_regnamespace(quote_ident(%s)) IS NOT NULL",
                (own.schema,),
            )
            if encoding != "UTF8":
                raise SinkError(
                    f"{self.name}: the database is in {encoding}, which can't hold every document: take one in UTF8."
                )
            if not there:
                await self._run(db, own.create_schema)
            found = await self._layout(db)
            if not found.columns:
                # without the documents their items are of no use
                await self._drop_lists(db, found)
                await self._free(db, own.layout, [child.table_name for child in own.children])
            else:
                self._same_lists(found)
                self._same_columns(found)
            for statement in own.ddl():
                await self._run(db, statement)
            await self._free(db, own.layout, [])
            self._same_columns(await self._layout(db))

    async def claim(self, owner: str, at_least: int) -> SinkRecord:
        own = self._tables
        async with self._others.use() as db, self._others.transaction(db):
            await self._check(db)
            self._same_lists(await self._layout(db))
            # waits for the writes that are under way: each holds the row until it is through
            names = self._parts.names(self._key)
            of_all = f"FROM {own.checkpoints} WHERE target = ANY(%(names)s)"
            (found,) = await self._run(
                db,
                f"INSERT INTO {own.checkpoints} AS c(target, epoch, owner, state)"
                f" SELECT %(name)s, greatest(max(epoch), %(at_least)s) + 1, %(owner)s, %(state)s::jsonb {of_all}"
                " ON CONFLICT (target) DO UPDATE SET epoch = greatest(c.epoch + 1, excluded.epoch),"
                f" owner = excluded.owner, state = c.state || excluded.state RETURNING {RECORD}",
                {"name": self._record, "names": names, "at_least": at_least, "owner": owner,
                 "state": Jsonb(self._parts.state(self._key))},
            )  # fmt: skip
            # no older epoch writes from here on, in none of the partitions, so what it deleted need not be remembered
            query = f"DELETE FROM {own.table} WHERE _deleted AND _epoch < (SELECT min(epoch) {of_all})"
            await self._run(db, query, {"names": names})
        return SinkRecord(*found)

    async def record(self) -> SinkRecord | None:
        own = self._tables
        async with self._others.use() as db:
            try:
                found = await self._run(db, stored(own.checkpoints), (self._key, f"{self._key}@"))
            except psycopg.errors.UndefinedTable:
                return None
        return self._parts.record(self._key, by_name(found))

    async def save(self, record: SinkRecord) -> None:
        query = (
            f"UPDATE {self._tables.checkpoints} SET offsets = %s, watermark = %s, state = %s"
            " WHERE target = %s AND epoch = %s AND owner = %s RETURNING 1"
        )
        notes = [Jsonb(part) for part in (record.offsets, record.watermark, record.state)]
        async with self._others.use() as db:
            saved = await self._run(db, query, (*notes, self._record, record.epoch, record.owner))
        if not saved:
            raise record.fenced_by(await self.record(), self.name)

    async def write(
        self, writes: Sequence[Write], epoch: int, allowed: Callable[[], bool] = always
    ) -> Sequence[Outcome]:
        lines, refused = encode(writes)
        if not lines:
            return [refused[position] for position in range(len(writes))]
        data, positions = b"".join(lines), {stored_id(w.id): n for n, w in enumerate(writes) if n not in refused}
        async with self._slots, self._writers.use() as db:
            try:
                try:
                    done = await self._land(db, data, len(writes), epoch, allowed, alone=False)
                except psycopg.Error as error:
                    if not (error.sqlstate or "").startswith(DOCUMENT):
                        raise
                    done = await self._land(db, data, len(writes), epoch, allowed, alone=True)
            except psycopg.Error as error:
                # one that ended the connection is an absent server, not a busy one
                if db.closed or not (error.sqlstate or "").startswith(PASSING):
                    raise
                return [refused.get(n, Throttled(words(error))) for n in range(len(writes))]
        applied, bad = done
        found = refused | bad | {positions[id]: APPLIED for id in applied}
        return [found.get(position, STALE) for position in range(len(writes))]

    async def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        async with self._others.use() as db:
            whole = (await self._layout(db)).document()
            query = f"SELECT _id, _revision, {whole} FROM {self._tables.table} t WHERE _id = ANY(%s) AND NOT _deleted"
            found = await self._run(db, query, ([stored_id(id) for id in ids],))
        return {plain_id(id): Stored(revision, document) for id, revision, document in found}

    async def ended(self, ids: Sequence[str]) -> Collection[str]:
        return ()

    async def scan(self, *, documents: bool = True) -> AsyncIterator[Mapping[str, Stored]]:
        fetch = f"FETCH {PAGE if documents else IDS} FROM cdc_scan"
        async with self._others.use() as db, self._others.transaction(db):
            # whoever scans may take his time from page to page
            await self._run(db, "SET LOCAL idle_in_transaction_session_timeout = 0")
            shown = (await self._layout(db)).document() if documents else "'{}'::jsonb"
            query = f"SELECT _id, _revision, {shown} FROM {self._tables.table} t WHERE NOT _deleted"
            await self._run(db, f"DECLARE cdc_scan CURSOR FOR {query}")
            while page := await self._run(db, fetch):
                yield {plain_id(id): Stored(revision, document) for id, revision, document in page}

    async def loading(self, on: bool) -> None:
        async with self._others.use() as db:
            await self._check(db)
            if on and self._key in await self._seen(db):
                raise SinkError(
                    f"{self.name}: readers see this table through the view {self._tables.target}: rebuild into a new version."
                )

    async def switch(self) -> None:
        own = self._tables
        async with self._others.use() as db, self._others.transaction(db):
            await self._check(db)
            await self._run(db, f"SELECT pg_advisory_xact_lock({PREPARING})")
            found = await self._layout(db)
            await self._free(db, found, [])
            shown = dict(found.views())
            for name in await self._list_views(db):
                plain = name.removesuffix(ASIDE)
                wanted = plain if plain in shown else plain + ASIDE
                if name != wanted:
                    await self._run(db, f"ALTER VIEW {quoted(own.schema, name)} RENAME TO {quoted(wanted)}")
            for name, select in shown.items():
                await self._show(db, name, select)

    async def drop(self) -> None:
        own = self._tables
        async with self._others.use() as db, self._others.transaction(db):
            if self._key in await self._seen(db):
                await self._run(db, f"DROP VIEW {own.view}")
            await self._drop_lists(db, await self._layout(db))
            await self._run(db, f"DROP TABLE IF EXISTS {own.table}")
            ((there,),) = await self._run(db, "SELECT to_regclass(%s) IS NOT NULL", (own.checkpoints,))
            if there:
                await self._run(db, f"DELETE FROM {own.checkpoints} WHERE {OF_VERSION}", (self._key, f"{self._key}@"))

    async def refresh(self) -> None:
        async with self._others.use() as db:
            await self._check(db)

    async def count(self) -> int:
        async with self._others.use() as db:
            ((count,),) = await self._run(db, f"SELECT count(*) FROM {self._tables.table} WHERE NOT _deleted")
        return int(count)

    async def close(self) -> None:
        await self._writers.close()
        await self._others.close()

    async def _land(
        self, db: Connection, data: bytes, end: int, epoch: int, allowed: Callable[[], bool], *, alone: bool
    ) -> tuple[list[str], dict[int, Outcome]]:
        """The ids written and the documents refused, in one transaction; `alone`: what is refused holds up no other."""
        bad: dict[int, Outcome] = {}
        async with self._others.transaction(db):
            if not allowed():
                raise NotAllowed
            # before the lock: a worker stopped in the middle of a COPY is one that the server waits for
            await self._writers.copy(db, COPY, data)
            if not allowed():
                raise NotAllowed
            query = f"SELECT epoch FROM {self._tables.checkpoints} WHERE target = %s FOR SHARE"
            owned = await self._run(db, query, (self._record,))
            if owned and owned[0][0] > epoch:
                return [], bad
            if alone:
                return await self._insert_alone(db, epoch, 0, end, bad), bad
            return await self._insert(db, epoch, 0, end), bad

    async def _insert(self, db: Connection, epoch: int, start: int, end: int) -> list[str]:
        parameters = {"epoch": epoch, "start": start, "end": end}
        ids = [id for (id,) in await self._run(db, self._tables.insert(), parameters)]
        if ids:
            for statement in self._tables.replace():
                await self._run(db, statement, (ids,))
        return ids

    async def _insert_alone(
        self, db: Connection, epoch: int, start: int, end: int, bad: dict[int, Outcome]
    ) -> list[str]:
        """In halves, and those in halves, until what is refused is alone."""
        try:
            async with self._others.transaction(db):
                return await self._insert(db, epoch, start, end)
        except psycopg.Error as error:
            if not (error.sqlstate or "").startswith(DOCUMENT):
                raise
            if end - start == 1:
                bad[start] = Rejected(words(error))
                return []
        half = (start + end) // 2
        return [
            *await self._insert_alone(db, epoch, start, half, bad),
            *await self._insert_alone(db, epoch, half, end, bad),
        ]

    async def _run(
        self, db: Connection, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        return await self._others.run(db, query, parameters)

    async def _check(self, db: Connection) -> None:
        """Raises TargetMissing where there is no table."""
        await self._run(db, f"SELECT FROM {self._tables.table} LIMIT 0")

    async def _seen(self, db: Connection) -> list[str]:
        """The table that readers see through the view."""
        found = await self._run(db, SEEN, (self._tables.view,))
        return [name for (name,) in found]

    async def _layout(self, db: Connection) -> Layout:
        """The version's tables as they are."""
        wanted = self._tables.layout
        return wanted.found(await self._run(db, FOUND, wanted.names))

    def _same_lists(self, found: Layout) -> None:
        """Raises SinkError where the version was made with other lists in tables of their own."""
        ours, theirs = ([own.name for own in one.lists] for one in (self._tables.layout, found))
        if set(ours) != set(theirs):
            raise SinkError(
                f"{self.name}: the lists in tables of their own are {', '.join(theirs) or 'none'}, and the projection's"
                f" children are {', '.join(ours) or 'none'}: {AGAIN}"
            )

    def _same_columns(self, found: Layout) -> None:
        """Raises SinkError where the version was made with other columns; its lists are the same."""
        wanted = self._tables.layout.tables()
        for name, columns in found.tables().items():
            if other := set(columns) ^ set(wanted[name]):
                raise SinkError(
                    f"{self.name}: the table {name} has other columns than the projection ({', '.join(sorted(other))}): {AGAIN}"
                )

    async def _free(self, db: Connection, layout: Layout, tables: Sequence[str]) -> None:
        """Raises SinkError where these tables, or the views of the lists, would take the name of what is not ours."""
        names = {*tables, *(layout.list_view(own.name) for own in layout.lists)} - set(await self._list_views(db))
        query = (
            "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(quote_ident(%s)) AND relname = ANY(%s)"
        )
        for (name,) in await self._run(db, query, (layout.schema, sorted(names))):
            raise SinkError(
                f"{self.name}: {layout.schema}.{name} is there already and is no list of this read model: drop it or call"
                " it otherwise, or the target."
            )

    async def _list_views(self, db: Connection) -> dict[str, str]:
        """The views of the target's lists, those put aside too, and the table of each."""
        found = await self._run(db, VIEWS, self._tables.layout.of_target)
        return {str(view): str(table) for view, table in found}

    async def _drop_lists(self, db: Connection, layout: Layout) -> None:
        views = {table: view for view, table in (await self._list_views(db)).items()}
        for own in layout.lists:
            if own.table_name in views:
                await self._run(db, f"DROP VIEW {quoted(layout.schema, views[own.table_name])}")
            await self._run(db, f"DROP TABLE {quoted(layout.schema, own.table_name)}")

    async def _show(self, db: Connection, name: str, select: str) -> None:
        """Point a view at the version, whatever columns it has; who may read it stays, and a new one whoever may read the documents."""
        schema, view = self._tables.schema, quoted(self._tables.schema, name)
        ((there,),) = await self._run(db, "SELECT to_regclass(%s) IS NOT NULL", (view,))
        try:
            async with self._others.transaction(db):
                await self._run(db, view_ddl(schema, name, select))
            if there:
                return
            statements = []
        except psycopg.errors.InvalidTableDefinition:  # the other version has other columns
            statements = [f"DROP VIEW {view}", view_ddl(schema, name, select, replace=False)]
        granted = await self._run(
            db,
            "SELECT format('GRANT %%s ON %%s TO %%s', privilege_type, %s::text, CASE grantee WHEN 0 THEN 'PUBLIC'"
            " ELSE grantee::regrole::text END) FROM pg_class c, aclexplode(c.relacl) WHERE c.oid = to_regclass(%s)",
            (view, view if there else self._tables.view),
        )
        for statement in (*statements, *(grant for (grant,) in granted)):
            await self._run(db, statement)


def encode(writes: Sequence[Write]) -> tuple[list[bytes], dict[int, Outcome]]:
    """The lines that COPY takes, and the outcome of those that can't be sent at all."""
    lines: list[bytes] = []
    refused: dict[int, Outcome] = {}
    for n, write in enumerate(writes):
        document = write.document
        try:
            if not 0 < len(write.id.encode()) <= ID_BYTES:
                raise ValueError(f"the id has to be of 1 to {ID_BYTES} bytes")
            if document is None:
                text = "\\N"
            elif "\0" in document:
                raise ValueError("it is no JSON object")
            else:
                text = _escaped(document)
            lines.append(f"{n}\t{_escaped(stored_id(write.id))}\t{write.revision}\t{text}\n".encode())
        except ValueError as error:
            refused[n] = Rejected(f"The document can't be sent: {error}.")
    return lines, refused


def stored_id(id: str) -> str:
    """The id as Postgres can keep it: it has no NUL in text."""
    return ODD + id.encode().hex() if "\0" in id or id.startswith(ODD) else id


def plain_id(stored: str) -> str:
    return bytes.fromhex(stored.removeprefix(ODD)).decode() if stored.startswith(ODD) else stored


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
