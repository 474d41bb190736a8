"""Measures from outside, for every new order, how long after its commit it is readable by id and found by a search."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

import httpx
import psycopg

from pipeline.bench.lab import Lab, until
from pipeline.demo.sampler import percentile
from pipeline.errors import OperationError

READ_EVERY: Final = 0.008
SEARCH_EVERY: Final = 0.05
MOST: Final = 500
"""Orders asked for at once."""


class Probe:
    """A load on the source, and both delays of each order that it makes; in seconds."""

    def __init__(self, lab: Lab, model: str, rate: float, seconds: float) -> None:
        self._lab, self._alias, self._rate, self._seconds = lab, lab.alias(model), rate, seconds
        with psycopg.connect(lab.dsn) as db:
            row = db.execute("SELECT max(id) FROM shop.orders").fetchone()
        self._known_up_to = int(row[0]) if row else 0
        self._known: set[int] = set()
        self._unread: dict[int, float] = {}
        self._unfound: dict[int, float] = {}
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self.readable: list[float] = []
        self.searchable: list[float] = []
        self.done = 0
        """Transactions committed."""
        self.took = 0.0
        """Seconds that they took."""

    def __enter__(self) -> Probe:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.bench.load", str(self._rate), str(self._seconds)],
            env=self._lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__)
            for work in (self._hear, self._read, self._search)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._process.terminate()
        for thread in self._threads:
            thread.join()
        self._process.wait()

    def finish(self) -> float:
        """Wait until the load has ended and all its orders are readable and found; seconds from the one to the other."""
        self._threads[0].join()
        ended = time.time()
        self._forget_deleted()
        until(lambda: self._error or not (self._unread or self._unfound), "orders to be found", seconds=180)
        if self._error is not None:
            raise self._error
        return time.time() - ended

    def _forget_deleted(self) -> None:
        """Of the orders that wait, those that a later transaction deleted."""
        waiting = list({*self._unread, *self._unfound})
        with psycopg.connect(self._lab.dsn) as db:
            alive = {row[0] for row in db.execute("SELECT id FROM shop.orders WHERE id = ANY(%s)", (waiting,))}
        for order in waiting:
            if order not in alive:
                self._unread.pop(order, None)
                self._unfound.pop(order, None)

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:  # told by `finish`
            self._error = error

    def _hear(self) -> None:
        """What the load says."""
        first = 0.0
        assert self._process.stdout is not None
        for line in self._process.stdout:
            at, _, order = line.partition(" ")
            if at == "done":
                self.done = int(order)
                self.took = time.time() - first
                continue
            first = first or float(at)
            self._new(int(order), float(at))
        if self._process.wait() and not self._stop.is_set():
            assert self._process.stderr is not None
            raise OperationError(f"The benchmark's load failed: {self._process.stderr.read()}")

    def _new(self, order: int, at: float) -> None:
        """Only a transaction that made an order is measured, not those that change it later."""
        if order <= self._known_up_to or order in self._known:
            return
        self._known.add(order)
        self._unread[order] = self._unfound[order] = at

    def _read(self) -> None:
        self._ask(self._unread, self.readable, READ_EVERY, self._readable)

    def _search(self) -> None:
        self._ask(self._unfound, self.searchable, SEARCH_EVERY, self._searchable)

    def _ask(self, waiting: dict[int, float], delays: list[float], every: float, question: Any) -> None:
        with httpx.Client(base_url=self._lab.stack.elasticsearch, timeout=30) as client:
            while not self._stop.is_set():
                asked = list(waiting)[:MOST]
                if asked:
                    there = question(client, asked)
                    now = time.time()
                    delays.extend(now - at for order in there if (at := waiting.pop(order, None)) is not None)
                self._stop.wait(every)

    def _readable(self, client: httpx.Client, orders: Sequence[int]) -> list[int]:
        body = {"ids": [str(order) for order in orders]}
        answer = client.post(f"/{self._alias}/_mget", params={"_source": "false"}, json=body).raise_for_status()
        return [int(found["_id"]) for found in answer.json()["docs"] if found.get("found")]

    def _searchable(self, client: httpx.Client, orders: Sequence[int]) -> list[int]:
        body = {"size": MOST, "_source": False, "track_total_hits": False, "query": {"terms": {"id": list(orders)}}}
        answer = client.post(f"/{self._alias}/_search", json=body).raise_for_status()
        return [int(hit["_id"]) for hit in answer.json()["hits"]["hits"]]


def delays(seconds: Sequence[float]) -> Mapping[str, float]:
    """p50, p95 and p99 in ms."""
    found = {name: percentile(seconds, share) for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))}
    return {name: round(value * 1000, 1) for name, value in found.items() if value is not None}
