"""A real Elasticsearch behind the sinks under test, and a proxy before it."""

from __future__ import annotations

import socket
from typing import Any

from aiohttp import ClientSession, web
from elasticsearch import AsyncElasticsearch
from pydantic import SecretStr
from sink_contract import SECRET, SHAPE

from connectors.sinks.elasticsearch import ElasticsearchSink, connect
from connectors.sinks.elasticsearch_client import call
from connectors.sinks.parts import ONE, Parts
from pipeline.authoring.shape import Shape
from pipeline.settings import ElasticsearchSettings


class ElasticsearchServer:
    def __init__(self, url: str, alias: str) -> None:
        self.url, self.alias, self.checkpoints = url, alias, f"{alias}-checkpoints"
        self.client = connect(ElasticsearchSettings(), url)

    def open(
        self,
        projection: str,
        *,
        shape: Shape = SHAPE,
        bulk_bytes: int = 2_000_000,
        parts: Parts = ONE,
        **options: object,
    ) -> ElasticsearchSink:
        return self.sink(connect(ElasticsearchSettings(), self.url), projection, shape, bulk_bytes, options, parts)

    def unreachable(self, projection: str) -> ElasticsearchSink:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        own = ElasticsearchSettings(username="me", password=SecretStr(SECRET), request_timeout=2)
        return self.sink(connect(own, f"http://127.0.0.1:{port}"), projection, SHAPE, 1_000_000, {})

    def sink(
        self,
        client: AsyncElasticsearch,
        projection: str,
        shape: Shape,
        bulk_bytes: int,
        options: dict[str, object],
        parts: Parts = ONE,
    ) -> ElasticsearchSink:
        return ElasticsearchSink(
            client=client,
            alias=self.alias,
            projection=projection,
            shape=shape,
            options={"replicas": 0, **options},
            bulk_bytes=bulk_bytes,
            checkpoints=self.checkpoints,
            parts=parts,
        )

    async def ask(self, method: str, path: str, **body: Any) -> Any:
        return await call(self.client, "test", method, path, body=body or None)

    async def lose(self, projection: str) -> None:
        await self.ask("DELETE", f"/{projection}")

    async def block(self, projection: str, on: bool) -> None:
        await self.ask("PUT", f"/{projection}/_settings", **{"index.blocks.read_only_allow_delete": on or None})

    async def visible(self) -> str | None:
        path = f"/{self.alias}/_search?ignore_unavailable=true&q=_id:which"
        hits = (await self.ask("GET", path))["hits"]["hits"]
        assert len(hits) <= 1
        return hits[0]["_source"]["note"] if hits else None

    async def close(self) -> None:
        await call(self.client, "test", "DELETE", f"/{self.checkpoints}", params={"ignore_unavailable": "true"})
        await self.client.close()


class Front:
    """A proxy before the server that refuses large bodies, or everything."""

    def __init__(self, behind: str) -> None:
        self.behind, self.limit, self.answer, self.url = behind, 10_000, 0, ""
        self.sizes: list[int] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.sizes.append(len(body))
        status = self.answer or (413 if len(body) > self.limit else 0)
        if status:
            return web.Response(status=status, text="<html>proxy</html>", content_type="text/html")
        headers = {name: request.headers[name] for name in ("accept", "content-type") if name in request.headers}
        async with (
            ClientSession() as session,
            session.request(request.method, self.behind + request.path_qs, data=body, headers=headers) as answer,
        ):
            kept = {name: answer.headers[name] for name in ("content-type", "x-elastic-product")}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)
