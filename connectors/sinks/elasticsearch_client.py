"""The client of Elasticsearch: ready bytes out, errors in this project's words."""

from __future__ import annotations

import asyncio
import io
import json
from base64 import b64encode
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar, cast

import msgspec
from elastic_transport import (
    AiohttpHttpNode,
    ConnectionTimeout,
    HttpHeaders,
    SerializationError,
    Serializer,
    TransportError,
)
from elastic_transport.client_utils import DEFAULT, DefaultType
from elasticsearch import ApiError, AsyncElasticsearch, UnsupportedProductError

from connectors.sinks.elasticsearch_bulk import oversized, words
from pipeline.errors import SinkError, SinkUnavailable
from pipeline.settings import ElasticsearchSettings

CHECK = "check elasticsearch.url and what stands before the server."
AWAY = frozenset({429, 502, 503, 504})


class _Json(Serializer):
    """JSON by msgspec."""

    mimetype = "application/json"

    def loads(self, data: bytes) -> Any:
        if not data:
            return None
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError:
            pass
        try:
            # msgspec refuses lone surrogates, which Elasticsearch keeps in a document's text.
            return json.loads(data)
        except (ValueError, RecursionError):
            raise SerializationError("The answer is no JSON") from None

    def dumps(self, data: Any) -> bytes:
        return data if isinstance(data, bytes) else msgspec.json.encode(data)


class _Shallow(_Json):
    """The members of an answer as they came, so that no document is taken apart; of an error all."""

    def loads(self, data: bytes) -> Any:
        try:
            found = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            # half of a surrogate pair, which Elasticsearch keeps and few readers of JSON take
            text = json.dumps(super().loads(data), ensure_ascii=False).encode(errors="replace")
            found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return super().loads(data) if "error" in found else found


class _Bytes(_Json):
    """A bulk body is ready bytes; the client's own serializer copies it twice."""

    mimetype = "application/x-ndjson"

    def dumps(self, data: Any) -> bytes:
        assert isinstance(data, bytes)
        return data


class _Node(AiohttpHttpNode):
    """A connection that neither logs bodies nor holds up the event loop with large ones."""

    settings: ClassVar[ElasticsearchSettings]
    """Who each request is from: the secret may be another one each time."""

    async def perform_request(  # type: ignore[override]
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: HttpHeaders | None = None,
        request_timeout: DefaultType | float | None = DEFAULT,
    ) -> Any:
        # aiohttp sends a stream in pieces and warns of large bytes.
        stream = cast(bytes, io.BytesIO(body)) if body and len(body) >= 1 << 20 else body
        if self.settings.api_key or self.settings.username:
            headers = HttpHeaders(headers or ())
            headers["authorization"] = await asyncio.to_thread(_authorization, self.settings)
        return await super().perform_request(method, target, stream, headers, request_timeout)

    def _log_request(self, *args: Any, **kwargs: Any) -> None:
        # It decodes every body, logged or not.
        return


def connect(settings: ElasticsearchSettings, url: str, *, shallow: bool = False) -> AsyncElasticsearch:
    """A client without retries, sniffing or compression; it connects with the first request.

    `shallow`: answers are of `msgspec.Raw`.
    """
    tls = {"ssl_context": settings.context("elasticsearch")} if url.startswith("https:") else {}
    codec, ready = _Shallow() if shallow else _Json(), _Bytes()
    return AsyncElasticsearch(
        url,
        node_class=type("_Node", (_Node,), {"settings": settings}),
        max_retries=0,
        retry_on_timeout=False,
        sniff_on_start=False,
        sniff_on_node_failure=False,
        http_compress=False,
        request_timeout=settings.request_timeout,
        serializers={
            "application/json": codec,
            "application/vnd.elasticsearch+json": codec,
            "application/x-ndjson": ready,
            "application/vnd.elasticsearch+x-ndjson": ready,
        },
        **tls,  # type: ignore[arg-type]
    )


def _authorization(settings: ElasticsearchSettings) -> str:
    """The header's value, with the secret as it is now."""
    if settings.api_key is not None:
        return f"ApiKey {settings.api_key.get_secret_value()}"
    password = settings.password.get_secret_value() if settings.password is not None else ""
    return f"Basic {b64encode(f'{settings.username}:{password}'.encode()).decode()}"


async def call(
    client: AsyncElasticsearch,
    sink: str,
    method: str,
    path: str,
    *,
    params: Mapping[str, Any] | None = None,
    body: Mapping[str, Any] | bytes | None = None,
) -> Any:
    """The answer to one request; ApiError where the server says what is wrong with it, else a SinkError."""
    headers = {"accept": "application/json"}
    if body is not None:
        headers["content-type"] = "application/x-ndjson" if isinstance(body, bytes) else "application/json"
    try:
        answer = await client.perform_request(method, path, params=params, headers=headers, body=body)
    except ApiError as error:
        status = error.meta.status
        if status in AWAY and not oversized(reason(error), 0):
            raise SinkUnavailable(f"{sink}: Elasticsearch answers {status} ({reason(error)}); try again.") from None
        if status in (401, 403):
            raise SinkError(
                f"{sink}: Elasticsearch refuses {method} {path} ({status} {reason(error)}): "
                "check elasticsearch.username and password, or api_key, and the user's privileges."
            ) from None
        # A proxy's page; only its "too large" is about the request.
        if status != 413 and not isinstance(error.body, dict):
            raise SinkUnavailable(f"{sink}: {status} comes not from Elasticsearch ({reason(error)}): {CHECK}") from None
        raise
    except ConnectionTimeout:
        raise SinkUnavailable(f"{sink}: Elasticsearch gave no answer in time; try again.") from None
    except UnsupportedProductError:
        raise SinkError(f"{sink}: what answers there is not Elasticsearch: {CHECK}") from None
    except SerializationError:
        raise SinkUnavailable(f"{sink}: the answer is no JSON: {CHECK}") from None
    except TransportError as error:
        raise SinkUnavailable(f"{sink}: Elasticsearch can't be reached ({error.message}).") from None
    if not isinstance(answer.body, dict):
        raise SinkUnavailable(f"{sink}: the answer is no JSON: {CHECK}")
    return answer.body


def reason(error: ApiError) -> str:
    """The server's words."""
    body = error.body or HTTPStatus(error.meta.status).phrase
    return words(body["error"] if isinstance(body, dict) and "error" in body else body)


def kind(error: ApiError) -> str:
    """The server's name of the error, `index_not_found_exception`."""
    body = error.body
    cause = body.get("error") if isinstance(body, dict) else None
    return str(cause.get("type", "")) if isinstance(cause, dict) else ""
