"""Measures, from outside, how long after its commit a new order is readable by id."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of the values lie; None for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


class Sampler:
    """Asks for one new order at a time until it is there; orders that come meanwhile are not measured."""

    def __init__(self, elasticsearch: str, alias: str) -> None:
        self._url, self._alias = elasticsearch, alias
        self._newest: queue.Queue[tuple[int, float]] = queue.Queue(maxsize=1)
        self._seen = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.samples: list[tuple[float, float]] = []
        """(time of the commit, delay), both in seconds."""

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(10)

    def committed(self, order: int, at: float) -> None:
        """A transaction that changed this order has committed; only orders never seen before are measured."""
        if order > self._seen:
            self._seen = order
            try:
                self._newest.put_nowait((order, at))
            except queue.Full:
                pass

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            while not self._stop.is_set():
                try:
                    order, at = self._newest.get(timeout=0.1)
                except queue.Empty:
                    continue
                self._await(client, order, at)

    def _await(self, client: httpx.Client, order: int, at: float) -> None:
        while not self._stop.is_set() and time.time() - at < 60:
            try:
                if client.get(f"/{self._alias}/_doc/{order}", params={"_source": "false"}).status_code == 200:
                    self.samples.append((at, time.time() - at))
                    return
            except httpx.HTTPError:
                pass
            self._stop.wait(0.003)

    def report(self, killed: float | None = None) -> dict[str, Any]:
        """Delays in ms; those of orders that met the kill are reported as the recovery, not in the percentiles."""
        hit = [delay for at, delay in self.samples if killed and at + delay > killed and at < killed + 1]
        recovered = max((at + delay - killed for at, delay in self.samples if killed and at <= killed + 1), default=0.0)
        end = killed + recovered if killed else 0.0
        calm = [delay for at, delay in self.samples if not killed or at + delay < killed or at > end + 1]
        report: dict[str, Any] = {"delays_measured": len(self.samples)}
        for name, share in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
            found = percentile(calm, share)
            report[name] = None if found is None else round(found * 1000, 1)
        if killed:
            report["recovery_seconds"] = round(max([*hit, recovered], default=0.0), 1)
        return report
