"""The client of the query API: documents as the classes that declare them, sync and async.

    with Client("https://read-models.example", key=key) as client:
        order = client.get(OrderDocument, 10, after=token)

`after` is a token of something that was written: run `TXID` inside the writing transaction, or `LSN` after its commit.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from pipeline.authoring.reading import document_of
from pipeline.errors import NotThereYet, ReadFailed

TXID: Final = "SELECT 'txid:' || pg_current_xact_id()"
"""SQL of the token, within the transaction that writes."""
LSN: Final = "SELECT 'lsn:' || pg_current_wal_insert_lsn()"
"""SQL of the token, after the commit."""
AGAIN: Final = frozenset({429, 502, 503})
WAITING: Final = 35.0
"""Seconds that an answer may take: longer than the server waits for a token at most."""

DocumentT = TypeVar("DocumentT", bound=BaseModel)
Document_co = TypeVar("Document_co", bound=BaseModel, covariant=True)
ResultT = TypeVar("ResultT")
Where = Mapping[str, Any]
"""`{"status": "paid", "total.gte": 10, "id.in": [1, 2]}`"""
Measures = Mapping[str, Sequence[str]]
Asking = Generator[httpx.Request, httpx.Response, ResultT]


class Named(Protocol[Document_co]):
    """A projection."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> type[Document_co]: ...


Model = type[DocumentT] | Named[DocumentT]
"""A document's class, its projection (where several have the class), or a class that `cdc web client` wrote."""


@dataclass(frozen=True, slots=True)
class Page(Generic[DocumentT]):
    """Documents, and the cursor of those behind them; None behind the last."""

    items: tuple[DocumentT, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Of the documents that have a value (None: no value, or of all documents): results by field, spelled as in documents."""

    value: Any
    count: int
    sum: Mapping[str, Any] = field(default_factory=dict)
    avg: Mapping[str, Any] = field(default_factory=dict)
    min: Mapping[str, Any] = field(default_factory=dict)
    max: Mapping[str, Any] = field(default_factory=dict)


class _Asks:
    """What is asked and what is made of the answers, without sending anything."""

    def __init__(self, url: str, key: str | None, timeout: float, version: str) -> None:
        self._url = url.rstrip("/")
        own = {"authorization": key and f"Bearer {key}", "x-read-model-version": version}
        self.given: dict[str, Any] = {"timeout": timeout, "headers": {k: said for k, said in own.items() if said}}
        self._names: dict[str, list[str]] = {}

    def get(
        self, model: Model[DocumentT], key: Sequence[Any], after: str | None, wait: float | None
    ) -> Asking[DocumentT | None]:
        name = yield from self._name(model)
        path = "/".join(quote(str(part), safe="") for part in key)
        answer = yield self._request("GET", f"/v1/{name}/{path}", _freshness(after, wait))
        return None if answer.status_code == 404 else document_of(_class(model), _checked(answer).content)

    def batch(
        self, model: Model[DocumentT], keys: Sequence[Any], after: str | None, wait: float | None
    ) -> Asking[list[DocumentT | None]]:
        name = yield from self._name(model)
        body = {"keys": [list(key) if isinstance(key, tuple) else key for key in keys]}
        answer = yield self._request("POST", f"/v1/{name}/batch", _freshness(after, wait), body)
        items = _checked(answer).json()["items"]
        return [None if i["document"] is None else document_of(_class(model), i["document"]) for i in items]

    def page(
        self,
        model: Model[DocumentT],
        where: Where | None,
        q: str,
        sort: str,
        limit: int,
        after: str | None,
        cursor: str | None,
    ) -> Asking[Page[DocumentT]]:
        name = yield from self._name(model)
        parameters = [*_filters(where), *_freshness(after, None), ("limit", str(limit))]
        parameters += [(own, value) for own, value in (("q", q), ("sort", sort), ("cursor", cursor)) if value]
        found = _checked((yield self._request("GET", f"/v1/{name}", parameters))).json()
        return Page(tuple(document_of(_class(model), item) for item in found["items"]), found["next"])

    def totals(
        self, model: Model[Any], where: Where | None, q: str, by: str, after: str | None, measures: Measures
    ) -> Asking[list[Totals]]:
        name = yield from self._name(model)
        own = {"q": q, "by": by, **{function: ",".join(names) for function, names in measures.items()}}
        parameters = [*_filters(where), *_freshness(after, None), *((name, text) for name, text in own.items() if text)]
        found = _checked((yield self._request("GET", f"/v1/{name}/count", parameters))).json()
        return [Totals(**one) for one in found["by"]] if by else [Totals(None, **found)]

    def _name(self, model: Model[Any]) -> Asking[str]:
        """The read model of a class: the one whose documents are called so."""
        said = getattr(model, "__read_model__", "") if isinstance(model, type) else model.name
        if said:
            return quote(said, safe="")
        assert isinstance(model, type)
        if model.__name__ not in self._names:
            described = _checked((yield self._request("GET", "/openapi.json", ()))).json()
            self._names = {}
            for name, schema in described["components"]["schemas"].items():
                self._names.setdefault(schema.get("title", ""), []).append(name)
        found = self._names.get(model.__name__, [])
        if len(found) != 1:
            which = f"{', '.join(found)} are all of it: give the projection" if found else "the key's scopes have none"
            raise ReadFailed(f"{self._url} has no single read model of {model.__name__}; {which}.")
        return quote(found[0], safe="")

    def _request(
        self, method: str, path: str, parameters: Sequence[tuple[str, str]], body: Any = None
    ) -> httpx.Request:
        return httpx.Request(method, self._url + path, params=list(parameters), json=body)


class Client:
    """Reads from the query API; what is refused raises ReadFailed, a token that is not reached in time NotThereYet.

    `version`: which version of the read models, `next` or `previous`; the one that readers see unless given.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = WAITING, retries: int = 3, version: str = ""
    ) -> None:
        self._asks, self._retries = _Asks(url, key, timeout, version), retries
        self._http = httpx.Client(**self._asks.given)

    def get(
        self, model: Model[DocumentT], *key: Any, after: str | None = None, wait: float | None = None
    ) -> DocumentT | None:
        """The document of this key, None where there is none. `wait`: seconds to wait for `after` at most."""
        return self._run(self._asks.get(model, key, after, wait))

    def batch(
        self, model: Model[DocumentT], keys: Sequence[Any], *, after: str | None = None, wait: float | None = None
    ) -> list[DocumentT | None]:
        """The documents of these keys (a tuple is a key of several parts), in their order."""
        return self._run(self._asks.batch(model, keys, after, wait))

    def search(
        self, model: Model[DocumentT], where: Where | None = None, *, q: str = "", sort: str = "", limit: int = 50,
        after: str | None = None, cursor: str | None = None,
    ) -> Page[DocumentT]:  # fmt: skip
        """A page of what meets `where` and the words of `q`; `cursor` is `next` of the page before."""
        return self._run(self._asks.page(model, where, q, sort, limit, after, cursor))

    def iterate(
        self, model: Model[DocumentT], where: Where | None = None, *, q: str = "", sort: str = "", limit: int = 500,
        after: str | None = None,
    ) -> Iterator[DocumentT]:  # fmt: skip
        """All that meets `where`, `limit` of them a request."""
        page = self.search(model, where, q=q, sort=sort, limit=limit, after=after)
        yield from page.items
        while page.next is not None:
            page = self.search(model, where, q=q, sort=sort, limit=limit, cursor=page.next)
            yield from page.items

    def count(self, model: Model[Any], where: Where | None = None, *, q: str = "", after: str | None = None) -> int:
        """How many meet `where`."""
        return self._run(self._asks.totals(model, where, q, "", after, {}))[0].count

    def counts(
        self, model: Model[Any], by: str, where: Where | None = None, *, q: str = "", after: str | None = None
    ) -> dict[Any, int]:
        """How many have each value of a field, the most frequent first."""
        return {one.value: one.count for one in self._run(self._asks.totals(model, where, q, by, after, {}))}

    def totals(
        self, model: Model[Any], by: str = "", where: Where | None = None, *, sum: Sequence[str] = (),
        avg: Sequence[str] = (), min: Sequence[str] = (), max: Sequence[str] = (), q: str = "", after: str | None = None,
    ) -> list[Totals]:  # fmt: skip
        """Of all that meet `where`, or of those with each value of `by`: what is asked for of fields, by their names."""
        measures = {"sum": sum, "avg": avg, "min": min, "max": max}
        return self._run(self._asks.totals(model, where, q, by, after, measures))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, asking: Asking[ResultT]) -> ResultT:
        try:
            request = next(asking)
            while True:
                request = asking.send(self._answer(request))
        except StopIteration as end:
            result: ResultT = end.value
            return result

    def _answer(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = self._http.send(_again(self._http, request))
            except httpx.TransportError as error:
                if last:
                    raise _unreachable(request, error) from error
                time.sleep(_pause(attempt, None))
                continue
            if last or answer.status_code not in AGAIN:
                return answer
            time.sleep(_pause(attempt, answer))
        raise AssertionError


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = WAITING, retries: int = 3, version: str = ""
    ) -> None:
        self._asks, self._retries = _Asks(url, key, timeout, version), retries
        self._http = httpx.AsyncClient(**self._asks.given)

    async def get(
        self, model: Model[DocumentT], *key: Any, after: str | None = None, wait: float | None = None
    ) -> DocumentT | None:
        """As `Client.get`."""
        return await self._run(self._asks.get(model, key, after, wait))

    async def batch(
        self, model: Model[DocumentT], keys: Sequence[Any], *, after: str | None = None, wait: float | None = None
    ) -> list[DocumentT | None]:
        """As `Client.batch`."""
        return await self._run(self._asks.batch(model, keys, after, wait))

    async def search(
        self, model: Model[DocumentT], where: Where | None = None, *, q: str = "", sort: str = "", limit: int = 50,
        after: str | None = None, cursor: str | None = None,
    ) -> Page[DocumentT]:  # fmt: skip
        """As `Client.search`."""
        return await self._run(self._asks.page(model, where, q, sort, limit, after, cursor))

    async def iterate(
        self, model: Model[DocumentT], where: Where | None = None, *, q: str = "", sort: str = "", limit: int = 500,
        after: str | None = None,
    ) -> AsyncIterator[DocumentT]:  # fmt: skip
        """As `Client.iterate`."""
        page = await self.search(model, where, q=q, sort=sort, limit=limit, after=after)
        while True:
            for item in page.items:
                yield item
            if page.next is None:
                return
            page = await self.search(model, where, q=q, sort=sort, limit=limit, cursor=page.next)

    async def count(
        self, model: Model[Any], where: Where | None = None, *, q: str = "", after: str | None = None
    ) -> int:
        """As `Client.count`."""
        return (await self._run(self._asks.totals(model, where, q, "", after, {})))[0].count

    async def counts(
        self, model: Model[Any], by: str, where: Where | None = None, *, q: str = "", after: str | None = None
    ) -> dict[Any, int]:
        """As `Client.counts`."""
        return {one.value: one.count for one in await self._run(self._asks.totals(model, where, q, by, after, {}))}

    async def totals(
        self, model: Model[Any], by: str = "", where: Where | None = None, *, sum: Sequence[str] = (),
        avg: Sequence[str] = (), min: Sequence[str] = (), max: Sequence[str] = (), q: str = "", after: str | None = None,
    ) -> list[Totals]:  # fmt: skip
        """As `Client.totals`."""
        measures = {"sum": sum, "avg": avg, "min": min, "max": max}
        return await self._run(self._asks.totals(model, where, q, by, after, measures))

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _run(self, asking: Asking[ResultT]) -> ResultT:
        try:
            request = next(asking)
            while True:
                request = asking.send(await self._answer(request))
        except StopIteration as end:
            result: ResultT = end.value
            return result

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                answer = await self._http.send(_again(self._http, request))
            except httpx.TransportError as error:
                if last:
                    raise _unreachable(request, error) from error
                await asyncio.sleep(_pause(attempt, None))
                continue
            if last or answer.status_code not in AGAIN:
                return answer
            await asyncio.sleep(_pause(attempt, answer))
        raise AssertionError


def _again(http: httpx.Client | httpx.AsyncClient, request: httpx.Request) -> httpx.Request:
    """The request with the client's own headers and timeout."""
    return http.build_request(
        request.method,
        request.url,
        content=request.content,
        headers={"content-type": "application/json"} if request.content else {},
    )


def _class(model: Model[DocumentT]) -> type[DocumentT]:
    return model if isinstance(model, type) else model.shape


def _freshness(after: str | None, wait: float | None) -> list[tuple[str, str]]:
    return [*([("after", after)] if after else []), *([("wait", f"{wait:g}")] if wait is not None else [])]


def _filters(where: Where | None) -> list[tuple[str, str]]:
    found = []
    for name, value in (where or {}).items():
        values = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
        # one value a parameter, so that a comma in it is a comma
        own = name.removesuffix(".in") + ".eq" if name.endswith(".in") else name
        found += [(own, _written(one)) for one in values]
    return found


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if hasattr(value, "isoformat") else str(getattr(value, "value", value))


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.status_code == 200:
        return answer
    try:
        problem = answer.json()
        said, watermark = str(problem["detail"]), str(problem.get("watermark", ""))
    except (ValueError, KeyError, TypeError):
        said, watermark = "it gives no reason.", ""
    text = f"{answer.request.url.path}: {answer.status_code}: {said}"
    if answer.status_code == 504:
        raise NotThereYet(text, watermark)
    raise ReadFailed(text, answer.status_code)


def _unreachable(request: httpx.Request, error: httpx.TransportError) -> ReadFailed:
    return ReadFailed(f"{request.url.host}: no answer ({type(error).__name__} {error}).")


def _pause(attempt: int, answer: httpx.Response | None) -> float:
    """Seconds until the next attempt: what the server says, else longer each time, and never all at once."""
    said = answer.headers.get("retry-after", "") if answer is not None else ""
    return min(float(said) if said.isdigit() else 0.1 * 2**attempt, 10) * random.uniform(0.7, 1.3)  # noqa: S311
