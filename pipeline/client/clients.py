"""The client: sync, and for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self

import httpx

from pipeline.client.asks import (
    AGAIN,
    WAITING,
    Asking,
    Asks,
    DocumentT,
    Model,
    Page,
    ResultT,
    Totals,
    Where,
    again,
    checked,
    pause,
    unreachable,
)
from pipeline.client.events import Changed, Events, Version


class Client:
    """Reads from the query API; what is refused raises ReadFailed, a token that is not reached in time NotThereYet.

    `version`: which version of the read models, `next` or `previous`; the one that readers see unless given.
    """

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = WAITING, retries: int = 3, version: str = ""
    ) -> None:
        self._asks, self._retries = Asks(url, key, timeout, version), retries
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

    def follow(self, model: Model[DocumentT], place: str = "now") -> Iterator[Changed[DocumentT] | Version]:
        """What changes, without end: from now on, from behind the `place` of something told before, or from `start`: all documents first.

        Connects again, where it stands, as often as it takes; a place that is too old raises ReadFailed (410).
        """
        url, attempt = self._run(self._asks.changes(model)), 0
        events = Events(model, place)
        while True:
            try:
                with self._http.stream("GET", url, params=events.begin()) as answer:
                    if answer.status_code not in AGAIN:
                        if answer.status_code != 200:
                            answer.read()
                        checked(answer)
                        for line in answer.iter_lines():
                            attempt = 0
                            if (told := events.line(line)) is not None:
                                yield told
            except httpx.TransportError:
                pass
            time.sleep(pause(attempt, None))
            attempt = min(attempt + 1, 6)

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
                answer = self._http.send(again(self._http, request))
            except httpx.TransportError as error:
                if last:
                    raise unreachable(request, error) from error
                time.sleep(pause(attempt, None))
                continue
            if last or answer.status_code not in AGAIN:
                return answer
            time.sleep(pause(attempt, answer))
        raise AssertionError


class AsyncClient:
    """The same for asyncio."""

    def __init__(
        self, url: str, *, key: str | None = None, timeout: float = WAITING, retries: int = 3, version: str = ""
    ) -> None:
        self._asks, self._retries = Asks(url, key, timeout, version), retries
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

    async def follow(self, model: Model[DocumentT], place: str = "now") -> AsyncIterator[Changed[DocumentT] | Version]:
        """As `Client.follow`."""
        url, attempt = await self._run(self._asks.changes(model)), 0
        events = Events(model, place)
        while True:
            try:
                async with self._http.stream("GET", url, params=events.begin()) as answer:
                    if answer.status_code not in AGAIN:
                        if answer.status_code != 200:
                            await answer.aread()
                        checked(answer)
                        async for line in answer.aiter_lines():
                            attempt = 0
                            if (told := events.line(line)) is not None:
                                yield told
            except httpx.TransportError:
                pass
            await asyncio.sleep(pause(attempt, None))
            attempt = min(attempt + 1, 6)

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
                answer = await self._http.send(again(self._http, request))
            except httpx.TransportError as error:
                if last:
                    raise unreachable(request, error) from error
                await asyncio.sleep(pause(attempt, None))
                continue
            if last or answer.status_code not in AGAIN:
                return answer
            await asyncio.sleep(pause(attempt, answer))
        raise AssertionError
