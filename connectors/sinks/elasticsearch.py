"""The Elasticsearch sink: one index for each projection version, read through an alias."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import quote

from elasticsearch import ApiError, AsyncElasticsearch

from connectors.sinks.elasticsearch_bulk import FILTER, encode, outcomes, split_bulk
from connectors.sinks.elasticsearch_client import call, connect, kind, reason
from connectors.sinks.elasticsearch_mapping import difference, flat, known, mapping, settings
from connectors.sinks.elasticsearch_records import record_of, stored_records
from connectors.sinks.parts import ONE, Parts, named
from pipeline.authoring.shape import Shape
from pipeline.errors import NotAllowed, SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import Outcome, Rejected, SinkRecord, Stored, Write, always

__all__ = ["ElasticsearchSink", "connect", "mapping", "split_bulk"]

CHECKPOINTS = "cdc-checkpoints"
CHECKPOINT_SETTINGS = {"number_of_shards": 1, "auto_expand_replicas": "0-1"}
CHECKPOINT_MAPPING = {"dynamic": False, "properties": {"epoch": {"type": "long"}, "owner": {"type": "keyword"}}}
# Attempts at a compare-and-set: each lost one means that another worker won.
CLAIMS = 20
MGET = 500
# Ids alone are small.
IDS = 5000
# How long a scan may take from page to page.
KEEP = "5m"


class ElasticsearchSink:
    """Writes the documents of one projection version to its index."""

    atomic = False

    def __init__(
        self,
        *,
        client: AsyncElasticsearch,
        alias: str,
        projection: str,
        shape: Shape,
        options: Mapping[str, object],
        bulk_bytes: int = 2_000_000,
        in_flight: int = 2,
        gc_deletes: str = "15m",
        bulk_timeout: str = "20s",
        checkpoints: str = CHECKPOINTS,
        parts: Parts = ONE,
    ) -> None:
        known(options)
        self._client, self._alias, self._index, self._shape = client, alias, projection, shape
        self._options, self._gc_deletes = dict(options), gc_deletes
        self._bulk_bytes, self._slots = bulk_bytes, asyncio.Semaphore(in_flight)
        self._bulk = {"require_alias": "true", "timeout": bulk_timeout, "filter_path": FILTER}
        self._checkpoints = checkpoints
        self._parts = parts
        self._stored_at: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"elasticsearch:{self._index}"

    async def prepare(self) -> None:
        await self._create(self._checkpoints, CHECKPOINT_SETTINGS, CHECKPOINT_MAPPING)
        wanted = mapping(self._shape, self._options)
        index = settings(self._shape, self._options, gc_deletes=self._gc_deletes)
        if not await self._create(self._index, index, wanted):
            await self._extend(wanted)

    async def claim(self, owner: str, at_least: int) -> SinkRecord:
        for _ in range(CLAIMS):
            stored, at = await self._get_record()
            record = stored or SinkRecord()
            record.epoch, record.owner = max(record.epoch, at_least) + 1, owner
            record.state |= self._parts.state(self._index)
            if await self._put_record(record, at):
                return record
        raise SinkUnavailable(f"{self.name}: {CLAIMS} others claimed it at the same time; try again.")

    async def record(self) -> SinkRecord | None:
        if self._parts.own is not None:
            return (await self._get_record())[0]
        try:
            names = self._parts.names(self._index)
            return self._parts.record(
                self._index, await stored_records(self._client, self.name, self._checkpoints, names)
            )
        except ApiError as error:
            if error.meta.status == 404:
                return None
            raise self._failed(error) from None

    async def save(self, record: SinkRecord) -> None:
        if self._stored_at is not None and await self._put_record(record, self._stored_at):
            return
        for _ in range(CLAIMS):
            stored, at = await self._get_record()
            if stored is None or (stored.epoch, stored.owner) != (record.epoch, record.owner):
                raise record.fenced_by(stored, self.name)
            if await self._put_record(record, at):
                return
        raise SinkUnavailable(
            f"{self.name}: the checkpoint record changed {CLAIMS} times while it was saved; try again."
        )

    async def write(
        self, writes: Sequence[Write], epoch: int, allowed: Callable[[], bool] = always
    ) -> Sequence[Outcome]:
        lines, found = encode(writes, epoch)
        chunks = list(split_bulk([len(line) for line in lines], self._bulk_bytes))
        if len(chunks) == 1:
            await self._send(lines, chunks[0], found, allowed)
        else:
            await self._send_all(lines, chunks, found, allowed)
        return [found[position] for position in range(len(writes))]

    async def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        found: dict[str, Stored] = {}
        for start in range(0, len(ids), MGET):
            body = {"ids": list(ids[start : start + MGET])}
            for item in (await self._call("POST", f"/{self._index}/_mget", body=body))["docs"]:
                if item.get("found"):
                    found[item["_id"]] = Stored(item["_version"], _plain(item["_source"]))
                elif "error" in item:
                    self._missing(item["error"].get("type", ""))
                    raise SinkUnavailable(f"{self.name}: a document can't be read ({item['error'].get('reason')}).")
        return found

    async def ended(self, ids: Sequence[str]) -> Collection[str]:
        return ()

    async def scan(self, *, documents: bool = True) -> AsyncIterator[Mapping[str, Stored]]:
        opened = await self._call("POST", f"/{self._index}/_pit?keep_alive={KEEP}")
        body = {
            "size": MGET if documents else IDS, "pit": {"id": opened["id"], "keep_alive": KEEP}, "sort": ["_shard_doc"],
            "track_total_hits": False, "version": True, "_source": documents,
        }  # fmt: skip
        try:
            while hits := (await self._call("POST", "/_search", body=body))["hits"]["hits"]:
                yield {hit["_id"]: Stored(hit["_version"], _plain(hit.get("_source", {}))) for hit in hits}
                body["search_after"] = hits[-1]["sort"]
        finally:
            await self._call("DELETE", "/_pit", body={"id": opened["id"]})

    async def loading(self, on: bool) -> None:
        if on and self._index in await self._readable():
            raise SinkError(
                f"{self.name}: readers see this index through the alias {self._alias}, so it can't be loaded without "
                "refresh: rebuild into a new version."
            )
        load = {"refresh_interval": "-1", "number_of_replicas": 0}
        usual = settings(self._shape, self._options, gc_deletes=self._gc_deletes)
        # None gives back the server's default.
        wanted = load if on else {setting: usual.get(setting) for setting in load}
        await self._call("PUT", f"/{self._index}/_settings", body={"index": wanted})

    async def switch(self) -> None:
        actions: list[dict[str, Any]] = [
            {"remove": {"index": "*", "alias": self._alias, "must_exist": False}},
            {"add": {"index": self._index, "alias": self._alias}},
        ]
        await self._call("POST", "/_aliases", body={"actions": actions})

    async def drop(self) -> None:
        # whoever drops it may know another number of parts, of the version after it
        first = await stored_records(self._client, self.name, self._checkpoints, [f"{self._index}@0"])
        names = sorted({self._index, *self._parts.names(self._index), *named(first)})
        records = [f"/{self._checkpoints}/_doc/{quote(name, safe='')}" for name in names]
        for path in (f"/{self._index}", *records):
            try:
                await call(self._client, self.name, "DELETE", path)
            except ApiError as error:
                if error.meta.status != 404:
                    raise self._failed(error) from None
        self._stored_at = None

    async def refresh(self) -> None:
        await self._call("POST", f"/{self._index}/_refresh")

    async def count(self) -> int:
        await self.refresh()
        return int((await self._call("GET", f"/{self._index}/_count"))["count"])

    async def close(self) -> None:
        await self._client.close()

    async def _create(self, index: str, own: Mapping[str, Any], mappings: Mapping[str, Any]) -> bool:
        """Create the index if it is not there; says whether it did."""
        # Writes go through a hidden alias, so that a lost index is missed instead of made anew without its mapping.
        writer = _writer(index)
        body = {"settings": {"index": own}, "mappings": mappings, "aliases": {writer: {"is_hidden": True}}}
        try:
            if not await self._exists(index):
                await call(self._client, self.name, "PUT", f"/{index}", body=body)
                return True
        except ApiError as error:
            if kind(error) != "resource_already_exists_exception":
                raise self._failed(error, self._where(reason(error), mappings)) from None
        add = {"index": index, "alias": writer, "is_hidden": True}
        await self._call("POST", "/_aliases", body={"actions": [{"add": add}]})
        return False

    async def _exists(self, index: str) -> bool:
        try:
            await call(self._client, self.name, "GET", f"/{index}/_alias")
        except ApiError as error:
            if error.meta.status == 404:
                return False
            raise
        return True

    async def _extend(self, wanted: Mapping[str, Any]) -> None:
        """Add fields to the index; one that is of another kind needs another index."""
        (answer,) = (await self._call("GET", f"/{self._index}/_mapping")).values()
        added, other = difference(answer["mappings"], wanted)
        if other:
            raise SinkError(
                f"{self.name}: the index has another mapping of {', '.join(other)}, which can't be changed in place: "
                "raise the projection's version and rebuild."
            )
        if added:
            await self._call("PUT", f"/{self._index}/_mapping", body=wanted)

    @staticmethod
    def _where(said: str, mappings: Mapping[str, Any]) -> str:
        """` (fields a, b)`: those with the analyzer that the server's words name."""
        named = [path for path, own in flat(mappings).items() if f"[{own.get('analyzer', '?')}]" in said]
        return f" (field{'s' if len(named) > 1 else ''} {', '.join(named)})" if named else ""

    async def _readable(self) -> list[str]:
        """The indices that the readers' alias points to."""
        try:
            return list(await call(self._client, self.name, "GET", f"/_alias/{self._alias}"))
        except ApiError as error:
            if error.meta.status == 404:
                return []
            raise self._failed(error) from None

    async def _send_all(
        self,
        lines: Sequence[bytes],
        chunks: Sequence[list[int]],
        found: dict[int, Outcome],
        allowed: Callable[[], bool],
    ) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for chunk in chunks:
                    group.create_task(self._send(lines, chunk, found, allowed), name=f"bulk {self._index}")
        except* SinkError as failed:
            error: BaseException = failed
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
        else:
            return
        raise error

    async def _send(
        self, lines: Sequence[bytes], chunk: Sequence[int], found: dict[int, Outcome], allowed: Callable[[], bool]
    ) -> None:
        """One bulk request; in halves where the server refuses it as a whole."""
        body = b"".join([lines[position] for position in chunk])
        try:
            async with self._slots:
                if not allowed():
                    raise NotAllowed
                answer = await call(
                    self._client, self.name, "POST", f"/{_writer(self._index)}/_bulk", params=self._bulk, body=body
                )
        except ApiError as error:
            if error.meta.status not in (400, 413, 429):
                raise self._failed(error) from None
            if len(chunk) == 1:
                found[chunk[0]] = Rejected(f"{error.meta.status} {reason(error)} ({len(body)} bytes)")
                return
        else:
            found.update(zip(chunk, outcomes(answer, len(chunk), len(body), self.name), strict=True))
            return
        for half in (chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]):
            await self._send(lines, half, found, allowed)

    async def _get_record(self) -> tuple[SinkRecord | None, tuple[int, int] | None]:
        path = f"/{self._checkpoints}/_doc/{quote(self._parts.name(self._index), safe='')}"
        try:
            answer = await call(self._client, self.name, "GET", path)
        except ApiError as error:
            if error.meta.status == 404:
                return None, None
            raise self._failed(error) from None
        return record_of(answer["_source"]), (answer["_seq_no"], answer["_primary_term"])

    async def _put_record(self, record: SinkRecord, at: tuple[int, int] | None) -> bool:
        """Store the record if it is still the one read at `at`; says whether it was."""
        where = {"op_type": "create"} if at is None else {"if_seq_no": str(at[0]), "if_primary_term": str(at[1])}
        path = f"/{_writer(self._checkpoints)}/_doc/{quote(self._parts.name(self._index), safe='')}"
        body = asdict(record)
        try:
            answer = await call(
                self._client, self.name, "PUT", path, params={**where, "require_alias": "true"}, body=body
            )
        except ApiError as error:
            if error.meta.status == 409:
                self._stored_at = None
                return False
            raise self._failed(error) from None
        self._stored_at = answer["_seq_no"], answer["_primary_term"]
        return True

    async def _call(self, method: str, path: str, *, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return await call(self._client, self.name, method, path, body=body)
        except ApiError as error:
            raise self._failed(error) from None

    def _failed(self, error: ApiError, where: str = "") -> SinkError:
        self._missing(kind(error))
        if error.meta.status >= 500:
            return SinkUnavailable(
                f"{self.name}: Elasticsearch answers {error.meta.status} ({reason(error)}); try again."
            )
        return SinkError(f"{self.name}: Elasticsearch refuses{where}: {error.meta.status} {reason(error)}.")

    def _missing(self, kind: str) -> None:
        if kind == "index_not_found_exception":
            raise TargetMissing(f"{self.name}: the index or the checkpoint index is missing: run `cdc apply`.")


def _writer(index: str) -> str:
    """The hidden alias that writes go through."""
    return f"{index}.write"


def _plain(source: dict[str, Any]) -> dict[str, Any]:
    """The document without what the sink adds."""
    source.pop("_epoch", None)
    return source
