"""Part d: a customer with many orders is renamed while fresh changes go on."""

from __future__ import annotations

import time
from typing import Final

import psycopg

from pipeline.bench.lab import Lab, until
from pipeline.bench.live import MODEL, running
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.probe import Probe, delays
from pipeline.bench.report import Figure

RATE: Final = 50
LEAD: Final = 2.0
"""Seconds that the load goes on before the rename."""


def measure(bench: Bench) -> list[Figure]:
    """From the rename's commit until a search finds the last of the documents, and the fresh orders' delay meanwhile."""
    lab, followers = bench.lab(bench.size.data), bench.size.followers
    with psycopg.connect(lab.dsn) as db:
        db.execute("UPDATE shop.orders SET customer_id = 1 WHERE id <= %s", (followers,))
    worker = running(lab, MODEL)
    with (
        Meter({**lab.pids, "worker": worker.process.pid}) as meter,
        Probe(lab, MODEL, RATE, bench.size.seconds) as probe,
    ):
        time.sleep(LEAD)
        orders, began = _rename(lab)
        until(lambda: not _left(lab), f"{orders} documents with the new name", pause=0.1)
        seconds = time.time() - began
        probe.finish()
    lab.reached(MODEL, lab.position())
    memory = megabytes(worker.memory)
    worker.stop()
    found = bench.compared(lab, MODEL)
    alone = bench.alone(lab, MODEL).rates(found.writes[:orders], over=True)
    detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
        "seconds": round(seconds, 2), "memory_mb": memory,
    }  # fmt: skip
    return [
        Figure(
            part="d", what=f"rename of a customer with {orders:,} orders", unit="documents/s",
            values=[round(orders / seconds, 1)], alone={k: [v] for k, v in alone.items()},
            documents=found.documents, different=found.different, detail={k: [v] for k, v in detail.items()},
        ),
        Figure(
            part="d", what=f"{RATE} transactions/s meanwhile, commit to readable", unit="ms, p50",
            values=[delays(probe.readable)["p50"]], detail={k: [v] for k, v in delays(probe.readable).items()},
        ),
    ]  # fmt: skip


def _rename(lab: Lab) -> tuple[int, float]:
    """How many orders the customer has, and when the rename had committed."""
    with psycopg.connect(lab.dsn) as db:
        row = db.execute("SELECT count(*) FROM shop.orders WHERE customer_id = 1").fetchone()
        db.execute("UPDATE shop.customers SET name = 'Renamed entirely' WHERE id = 1")
    return (int(row[0]) if row else 0), time.time()


def _left(lab: Lab) -> int:
    """How many documents of the customer have the old name."""
    lab.http.post(f"/{lab.index(MODEL)}/_refresh").raise_for_status()
    old = {"filter": {"term": {"customer.id": 1}}, "must_not": {"term": {"customer.name": "entirely"}}}
    answer = lab.http.post(f"/{lab.index(MODEL)}/_count", json={"query": {"bool": old}}).raise_for_status()
    return int(answer.json()["count"])
