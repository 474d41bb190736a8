"""Part h: documents read by id through the query API, at a rate, beside a worker under load."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from pipeline.bench.lab import Lab
from pipeline.bench.live import MODEL, running
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench
from pipeline.bench.probe import delays
from pipeline.bench.report import Figure
from pipeline.demo.run import serve
from pipeline.errors import OperationError

RATE: Final = 500
TRANSACTIONS: Final = 50
CONNECTIONS: Final = 32


def measure(bench: Bench) -> list[Figure]:
    """Reads a second for their time; beside it the same of Elasticsearch itself; then the documents are compared."""
    lab, seconds = bench.lab(bench.size.data), bench.size.seconds
    worker = running(lab, MODEL)
    with _web(lab) as (process, address), _load(lab, 2 * seconds + 5):
        with Meter({**lab.pids, "worker": worker.process.pid, "web": process.pid}) as meter:
            found, reached = asyncio.run(_reads(address, f"/v1/{lab.alias(MODEL)}", lab.data.orders, seconds))
        alone, _ = asyncio.run(_reads(lab.stack.elasticsearch, f"/{lab.index(MODEL)}/_doc", lab.data.orders, seconds))
    lab.reached(MODEL, lab.position())
    worker.stop()
    compared, known = bench.compared(lab, MODEL), delays(found)
    detail = {**known, "reads_per_second": reached, **{f"cpu_{name}": used for name, used in meter.seconds.items()}}
    return [
        Figure(
            part="h", what=f"{RATE} reads/s by id, beside {TRANSACTIONS} transactions/s", unit="ms, p50",
            values=[known["p50"]], alone={"Elasticsearch": [delays(alone)["p50"]]},
            detail={name: [value] for name, value in detail.items()},
            documents=compared.documents, different=compared.different,
        )
    ]  # fmt: skip


@contextmanager
def _web(lab: Lab) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`cdc web`, and its address."""
    process, address = serve(lab.folder / "web.log", lab.environment, lab.folder)
    try:
        yield process, address
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def _load(lab: Lab, seconds: float) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.bench.load", str(TRANSACTIONS), str(seconds)],
        env=lab.environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.wait(seconds + 60)


async def _reads(address: str, path: str, most: int, seconds: float) -> tuple[list[float], float]:
    """Seconds from when each read was due until its answer was there, and the reads a second."""
    due: asyncio.Queue[float | None] = asyncio.Queue()
    took: list[float] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(_reader(address, path, most, due, took))
        began, asked = time.perf_counter(), 0
        while (now := time.perf_counter()) - began < seconds:
            while began + asked / RATE <= now:
                due.put_nowait(began + asked / RATE)
                asked += 1
            await asyncio.sleep(0.001)
        for _ in range(CONNECTIONS):
            due.put_nowait(None)
    return took, round(len(took) / (time.perf_counter() - began), 1)


async def _reader(address: str, path: str, most: int, due: asyncio.Queue[float | None], took: list[float]) -> None:
    """One connection's reads; a bare one, for a client library takes more than the server."""
    where, pick = urlsplit(address), random.Random()  # noqa: S311 - which documents are read
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    while (at := await due.get()) is not None:
        writer.write(f"GET {path}/{pick.randint(1, most)} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().splitlines()
        await reader.readexactly(next(int(line[15:]) for line in lines if line.startswith("content-length:")))
        took.append(time.perf_counter() - at)
        if lines[0].split()[1] not in ("200", "404"):  # the load deletes some
            raise OperationError(f"A read was answered {lines[0]!r}.")
    writer.close()
