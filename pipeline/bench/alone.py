"""What Elasticsearch alone takes: ready bytes in bulk, into an index of the same settings, from one client or two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

import httpx
import msgspec
import psycopg

from connectors.sinks.elasticsearch_bulk import encode, split_bulk
from pipeline.bench.lab import like, until
from pipeline.bench.meters import Meter
from pipeline.demo.truth import documents
from pipeline.errors import OperationError
from pipeline.ports import Write

CLIENTS: Final = (1, 2)
Part = TypeVar("Part")
MOST: Final = 200_000
"""Documents that are kept to be written again; of more only so many."""
_canonical = msgspec.json.Encoder(order="sorted").encode


@dataclass
class Compared:
    """The documents of an index, compared with the source, and kept as they were sent."""

    documents: int
    different: int
    writes: list[Write]

    @property
    def size(self) -> int:
        """Bytes of a document on average."""
        return round(sum(len(w.document or "") for w in self.writes) / max(1, len(self.writes)))


def compare(dsn: str, elasticsearch: str, index: str, query: str) -> Compared:
    """Every document against the source's SQL, by digest; ids as text."""
    with psycopg.connect(dsn) as db, db.cursor("truth") as cursor:
        cursor.itersize = 5000
        cursor.execute(query.encode())
        expected = {key: hash(_canonical(document)) for key, document in cursor}
    found = Compared(0, 0, [])
    for key, document in documents(elasticsearch, index):
        found.documents += 1
        document.pop("_epoch", None)
        if expected.pop(key, None) != hash(_canonical(document)):
            found.different += 1
        if len(found.writes) < MOST:
            found.writes.append(Write(key, 1, msgspec.json.encode(document).decode()))
    found.different += len(expected)
    return found


class Alone:
    """An index of its own with the settings and mapping of another."""

    def __init__(
        self, elasticsearch: str, like: str, *, rows: int, size: int, pid: int | None, settings: Mapping[str, Any] | None = None
    ) -> None:  # fmt: skip
        """Requests have at most `rows` documents and `size` bytes, as the worker's have; `pid` is the server's.

        `settings`: the index's own, else those of `like`.
        """
        self._settings = {} if settings is None else {"settings": {"index": dict(settings)}}
        self._url, self._like, self._rows, self._size = elasticsearch, like, rows, size
        self._revision, self._server = 1, {"server": pid} if pid is not None else {}
        self.cpu: dict[str, float] = {}
        """CPU seconds that the server took, as `cpu_alone_1` for one client."""

    def rates(self, writes: Sequence[Write], *, over: bool = False) -> dict[str, float]:
        """Documents a second by number of clients; `over` existing ones where asked."""
        found = {}
        for clients in CLIENTS:
            with self._index() as index:
                if over:
                    self._send(index, self._bodies(writes), 2)
                bodies = self._bodies(writes)
                self._calm()
                with Meter(self._server) as meter:
                    seconds = self._send(index, bodies, clients)
                self.cpu |= {f"cpu_alone_{clients}": used for used in meter.seconds.values()}
            found[f"{clients} client{'s' * (clients > 1)}"] = round(len(writes) / seconds, 1)
        return found

    def _bodies(self, writes: Sequence[Write]) -> list[bytes]:
        self._revision += 1
        bodies: list[bytes] = []
        for start in range(0, len(writes), self._rows):
            some = [Write(w.id, self._revision, w.document) for w in writes[start : start + self._rows]]
            lines, _ = encode(some, 1)
            chunks = split_bulk([len(line) for line in lines], self._size)
            bodies.extend(b"".join([lines[position] for position in chunk]) for chunk in chunks)
        return bodies

    def _calm(self) -> None:
        """Until the server has done what earlier writes left to do."""

        def merging() -> int:
            found = httpx.get(f"{self._url}/_stats/merge", timeout=30).json()
            return int(found["_all"]["total"]["merges"]["current"])

        until(lambda: merging() == 0, "Elasticsearch's merges", seconds=120, pause=0.2)

    @contextmanager
    def _index(self) -> Iterator[str]:
        name = f"{self._like}-alone"
        with httpx.Client(base_url=self._url, timeout=60) as client:
            body = {**like(client, f"/{self._like}"), **self._settings, "aliases": {}}
            client.put(f"/{name}", json=body).raise_for_status()
            try:
                yield name
            finally:
                client.delete(f"/{name}")

    def _send(self, index: str, bodies: Sequence[bytes], clients: int) -> float:
        """Seconds until all of it is written."""
        headers = {"content-type": "application/x-ndjson"}
        params = {"filter_path": "errors,items.*.status,items.*.error"}

        @contextmanager
        def client() -> Iterator[Callable[[bytes], None]]:
            with httpx.Client(base_url=self._url, timeout=120) as http:
                http.get("/_cluster/health")

                def send(body: bytes) -> None:
                    answer = http.post(f"/{index}/_bulk", params=params, content=body, headers=headers)
                    if not answer.is_success or b'"errors":false' not in answer.content[:40]:
                        raise OperationError(
                            f"Elasticsearch refused a bulk request of the reference: {answer.text[:300]}"
                        )

                yield send

        return sent(bodies, clients, client)


def sent(
    parts: Sequence[Part], clients: int, client: Callable[[], AbstractContextManager[Callable[[Part], None]]]
) -> float:
    """Seconds until so many clients at once have sent all parts; they are connected before the clock starts."""
    queue: SimpleQueue[Part] = SimpleQueue()
    for part in parts:
        queue.put(part)

    def work(send: Callable[[Part], None]) -> None:
        while True:
            try:
                part = queue.get_nowait()
            except Empty:
                return
            send(part)

    with ExitStack() as connected, ThreadPoolExecutor(clients, thread_name_prefix="alone") as pool:
        sends = [connected.enter_context(client()) for _ in range(clients)]
        began = time.perf_counter()
        list(pool.map(work, sends))
        return time.perf_counter() - began
