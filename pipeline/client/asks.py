"""What the client asks and what it makes of the answers, without sending anything."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from pipeline.authoring.reading import document_of
from pipeline.errors import NotThereYet, ReadFailed

TXID: Final = "SELECT 'txid:' || pg_current_xact_id()"
"""SQL of the token, within the transaction that writes."""
GTID: Final = "SELECT CONCAT('gtid:', @@last_gtid)"
"""MariaDB, in the session that wrote, after its commit."""
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


class Asks:
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
        return None if answer.status_code == 404 else document_of(class_of(model), checked(answer).content)

    def batch(
        self, model: Model[DocumentT], keys: Sequence[Any], after: str | None, wait: float | None
    ) -> Asking[list[DocumentT | None]]:
        name = yield from self._name(model)
        body = {"keys": [list(key) if isinstance(key, tuple) else key for key in keys]}
        answer = yield self._request("POST", f"/v1/{name}/batch", _freshness(after, wait), body)
        items = checked(answer).json()["items"]
        return [None if i["document"] is None else document_of(class_of(model), i["document"]) for i in items]

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
        found = checked((yield self._request("GET", f"/v1/{name}", parameters))).json()
        return Page(tuple(document_of(class_of(model), item) for item in found["items"]), found["next"])

    def totals(
        self, model: Model[Any], where: Where | None, q: str, by: str, after: str | None, measures: Measures
    ) -> Asking[list[Totals]]:
        name = yield from self._name(model)
        own = {"q": q, "by": by, **{function: ",".join(names) for function, names in measures.items()}}
        parameters = [*_filters(where), *_freshness(after, None), *((name, text) for name, text in own.items() if text)]
        found = checked((yield self._request("GET", f"/v1/{name}/count", parameters))).json()
        return [Totals(**one) for one in found["by"]] if by else [Totals(None, **found)]

    def changes(self, model: Model[Any]) -> Asking[str]:
        """The path of its feed."""
        name = yield from self._name(model)
        return f"{self._url}/v1/{name}/changes"

    def _name(self, model: Model[Any]) -> Asking[str]:
        """The read model of a class: the one whose documents are called so."""
        said = getattr(model, "__read_model__", "") if isinstance(model, type) else model.name
        if said:
            return quote(said, safe="")
        assert isinstance(model, type)
        if model.__name__ not in self._names:
            described = checked((yield self._request("GET", "/openapi.json", ()))).json()
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


def again(http: httpx.Client | httpx.AsyncClient, request: httpx.Request) -> httpx.Request:
    """The request with the client's own headers and timeout."""
    return http.build_request(
        request.method,
        request.url,
        content=request.content,
        headers={"content-type": "application/json"} if request.content else {},
    )


def class_of(model: Model[DocumentT]) -> type[DocumentT]:
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


def checked(answer: httpx.Response) -> httpx.Response:
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


def unreachable(request: httpx.Request, error: httpx.TransportError) -> ReadFailed:
    return ReadFailed(f"{request.url.host}: no answer ({type(error).__name__} {error}).")


def pause(attempt: int, answer: httpx.Response | None) -> float:
    """Seconds until the next attempt: what the server says, else longer each time, and never all at once."""
    said = answer.headers.get("retry-after", "") if answer is not None else ""
    return min(float(said) if said.isdigit() else 0.1 * 2**attempt, 10) * random.uniform(0.7, 1.3)  # noqa: S311
