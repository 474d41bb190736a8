"""The Redis sink: a key for each document, read through a key that says the version's prefix."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any

from connectors.sinks.documents import ID_BYTES, parsed
from connectors.sinks.parts import ONE, Parts
from connectors.sinks.redis_client import Client, Full, connect
from connectors.sinks.redis_keys import Keys
from connectors.sinks.redis_scripts import CLAIM, LEAVE, PREPARE, READ, SAVE, SWITCH, WRITE
from pipeline.authoring.shape import Shape
from pipeline.errors import NotAllowed, SinkError
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, SinkRecord, Stored, Throttled, Write, always
from pipeline.settings import RedisSettings

PAGE = 500
# Ids alone are small.
IDS = 5000
# The server does nothing else while it runs a script.
ROWS = 500
# The server's own bound of a text is 512 MB.
DOCUMENT_BYTES = 500_000_000
NOTES = ("offsets", "watermark", "state")
# The id, the text and what it is looked up by, as they are sent.
Ready = tuple[bytes, bytes, bytes]


class RedisSink:
    """Writes the documents of one projection version to keys: each part of a `write` is one script."""

    atomic = False

    def __init__(
        self,
        *,
        url: Callable[[], str],
        target: str,
        projection: str,
        shape: Shape,
        options: Mapping[str, object],
        settings: RedisSettings,
        parts: Parts = ONE,
    ) -> None:
        self._keys, self._shape, self._parts = Keys(target, projection, shape, options), shape, parts
        self._bulk_bytes, self._slots = settings.bulk_bytes, asyncio.Semaphore(settings.in_flight)
        self._client = Client(connect(settings, url), self.name, url)

    @property
    def name(self) -> str:
        return f"redis:{self._keys.target}:{self._keys.version}"

    @property
    def _records(self) -> list[str]:
        """Of the version, and of what of it this sink writes."""
        return [self._keys.record, self._parts.name(self._keys.record)]

    @property
    def _deleted(self) -> str:
        return self._parts.name(self._keys.deleted)

    async def prepare(self) -> None:
        own = self._keys
        await self._refuse_a_server_that_forgets()
        made = [own.projection, own.by, json.dumps(self._parts.suffixes)]
        found = _fields(await self._client.run(PREPARE, [own.record], made))
        holder = found[b"projection"].decode()
        if holder != own.projection:
            raise SinkError(
                f"{self.name}: the keys {own.prefix}ID are those of {holder}: give one of the two another name or key=."
            )
        self._refuse_other_lookups(found[b"lookups"])

    async def claim(self, owner: str, at_least: int) -> SinkRecord:
        await self._refuse_a_server_that_forgets()
        lookups, found = await self._client.run(CLAIM, [*self._records, self._deleted], [owner, at_least])
        self._refuse_other_lookups(lookups)
        record = _record(_fields(found))
        assert record is not None
        return record

    async def record(self) -> SinkRecord | None:
        names = self._parts.names(self._keys.record)
        found = {name: _record(await self._client.ask("HGETALL", name)) for name in names}
        return self._parts.record(self._keys.record, {name: record for name, record in found.items() if record})

    async def save(self, record: SinkRecord) -> None:
        notes = [part for name in NOTES for part in (name, json.dumps(getattr(record, name)))]
        if not await self._client.run(SAVE, self._records, [record.epoch, record.owner, *notes]):
            raise record.fenced_by(await self.record(), self.name)

    async def write(
        self, writes: Sequence[Write], epoch: int, allowed: Callable[[], bool] = always
    ) -> Sequence[Outcome]:
        found: dict[int, Outcome] = {}
        ready: dict[int, Ready] = {}
        for place, write in enumerate(writes):
            try:
                ready[place] = self._ready(write)
            except ValueError as error:
                found[place] = Rejected(f"The document can't be stored: {error}.")
        sending = (self._send(writes, ready, chunk, epoch, allowed, found) for chunk in self._chunks(ready))
        for failed in await asyncio.gather(*sending, return_exceptions=True):
            if failed is not None:
                raise failed
        return [found[place] for place in range(len(writes))]

    async def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        return {
            id: Stored(int(revision), json.loads(text))
            async for id, revision, text in self._texts(ids)
            if text is not None
        }

    async def ended(self, ids: Sequence[str]) -> Collection[str]:
        if self._keys.ttl is None:
            return ()
        return {id async for id, _, text in self._texts(ids) if text is None}

    async def scan(self, *, documents: bool = True) -> AsyncIterator[Mapping[str, Stored]]:
        async for page in self._pages(self._keys.revisions, PAGE if documents else IDS):
            if documents:
                yield await self.read([id.decode() for id in page])
            else:
                yield {id.decode(): Stored(int(revision), {}) for id, revision in page.items()}

    async def loading(self, on: bool) -> None:
        await self.refresh()
        if on and await self._client.ask("GET", self._keys.target) == self._keys.prefix.encode():
            raise SinkError(
                f"{self.name}: readers see these keys through {self._keys.target}: rebuild into a new version."
            )

    async def switch(self) -> None:
        await self._client.run(SWITCH, [self._keys.record, self._keys.target], [self._keys.prefix])

    async def drop(self) -> None:
        own = self._keys
        # whoever drops it may know another number of parts, of the version after it
        parts = json.loads(await self._client.ask("HGET", own.record, "parts") or '[""]')
        gone = [own.record, *(name + part for name in (own.record, own.deleted) for part in parts)]
        await self._client.run(LEAVE, [own.target, *gone], [own.prefix])
        async for page in self._pages(own.revisions, IDS):
            await self._client.ask("UNLINK", *map(own.document, page))
        async for page in self._pages(own.lookups, PAGE):
            await self._client.ask(
                "UNLINK", *{own.sets + name for names in page.values() for name in json.loads(names)}
            )
        await self._client.ask("UNLINK", own.revisions, own.lookups)

    async def refresh(self) -> None:
        if not await self._client.ask("HEXISTS", self._keys.record, "projection"):
            raise self._client.missing()

    async def count(self) -> int:
        await self.refresh()
        return int(await self._client.ask("HLEN", self._keys.revisions))

    async def close(self) -> None:
        await self._client.close()

    def _ready(self, write: Write) -> Ready:
        """Raises ValueError where it can't be sent."""
        id = write.id.encode()
        if not 0 < len(id) <= ID_BYTES:
            raise ValueError(f"the id has to be of 1 to {ID_BYTES} bytes")
        if self._keys.taken(write.id):
            raise ValueError(
                "an id that begins like this is the key of a set of lookups: leave that field out of lookups"
            )
        if write.document is None:
            return id, b"", b"[]" if self._keys.fields else b""
        document = parsed(write.document, self._shape)
        names = json.dumps(self._keys.looked_up(document), ensure_ascii=False) if self._keys.fields else ""
        text = write.document.encode()
        if len(text) > DOCUMENT_BYTES:
            raise ValueError(f"it has {len(text)} bytes, and Redis takes {DOCUMENT_BYTES}")
        return id, text, names.encode()

    def _chunks(self, ready: Mapping[int, Ready]) -> list[list[int]]:
        """Places in parts of bounded bytes and rows; deletes are no part of others, for they make room."""
        chunks: list[list[int]] = []
        for deletes in (True, False):
            chunk: list[int] = []
            size = 0
            for place, (_, text, _) in ready.items():
                if deletes == bool(text):
                    continue
                if not chunk or len(chunk) == ROWS or size + len(text) > self._bulk_bytes:
                    chunk, size = [], 0
                    chunks.append(chunk)
                chunk.append(place)
                size += len(text)
        return chunks

    async def _send(
        self,
        writes: Sequence[Write],
        ready: Mapping[int, Ready],
        chunk: Sequence[int],
        epoch: int,
        allowed: Callable[[], bool],
        found: dict[int, Outcome],
    ) -> None:
        own = self._keys
        keys: list[str | bytes] = [
            *self._records,
            own.revisions,
            self._deleted,
            own.lookups,
            *(own.document(ready[place][0]) for place in chunk),
        ]
        arguments: list[str | bytes | int] = [epoch, own.sets, own.ttl or ""]
        for place in chunk:
            id, text, names = ready[place]
            arguments += (id, f"{writes[place].revision:020}", text, names)
        async with self._slots:
            if not allowed():
                raise NotAllowed
            try:
                applied = {chunk[n] for n in await self._client.run(WRITE, keys, arguments)}
            except Full as error:
                found.update(dict.fromkeys(chunk, Throttled(error.words)))
                return
        found.update({place: APPLIED if place in applied else STALE for place in chunk})

    async def _texts(self, ids: Sequence[str]) -> AsyncIterator[tuple[str, bytes, bytes | None]]:
        """Id, revision and text of those that were written and not deleted."""
        own = self._keys
        for start in range(0, len(ids), PAGE):
            page = ids[start : start + PAGE]
            encoded = [id.encode() for id in page]
            keys: list[str | bytes] = [own.record, own.revisions, *map(own.document, encoded)]
            revisions, texts = await self._client.run(READ, keys, encoded)
            for id, revision, text in zip(page, revisions, texts, strict=True):
                if revision is not None:
                    yield id, revision, text

    async def _pages(self, hash: str, count: int) -> AsyncIterator[dict[bytes, bytes]]:
        """What a hash has by ids, page by page; where the server makes its table smaller meanwhile, an id may come twice."""
        cursor: Any = 0
        while True:
            cursor, page = await self._client.ask("HSCAN", hash, cursor, "COUNT", count)
            if page:
                yield page
            if not int(cursor):
                return

    def _refuse_other_lookups(self, found: bytes) -> None:
        there, wanted = found.decode(), self._keys.by
        if there != wanted:
            raise SinkError(
                f"{self.name}: its documents are looked up by {there or 'nothing'}, and not by {wanted or 'nothing'}: raise the"
                " projection's version and rebuild."
            )

    async def _refuse_a_server_that_forgets(self) -> None:
        info = await self._client.ask("INFO")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise SinkError(
                f"{self.name}: the server may throw documents away when its memory is full (maxmemory-policy {policy}):"
                " set it to noeviction, or name another server in redis.url."
            )
        if info.get("redis_mode") == "cluster":
            raise SinkError(
                f"{self.name}: the server is part of a Redis Cluster, where one step can't write several keys: name a server"
                " outside one in redis.url."
            )


def _fields(found: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash as a script gives it: names and values by turns."""
    return dict(zip(found[::2], found[1::2], strict=True))


def _record(found: Mapping[bytes, bytes]) -> SinkRecord | None:
    """The record of a hash; None where nobody has claimed it."""
    if b"epoch" not in found:
        return None
    notes = {name: json.loads(found.get(name.encode(), b"{}")) for name in NOTES}
    return SinkRecord(int(found[b"epoch"]), found[b"owner"].decode(), **notes)
