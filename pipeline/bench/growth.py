"""Part e: the same work at a tenth and at ten times the data: what an event costs, and how much memory is needed."""

from __future__ import annotations

import time
from typing import Final

import psycopg

from pipeline.bench.drain import drained
from pipeline.bench.lab import Lab, until
from pipeline.bench.live import MODEL
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.report import Figure

EVENTS: Final = 4
"""Of one transaction of the backlog: an order and its three lines."""
BACKLOG: Final = """
DO $$
BEGIN
    SET LOCAL synchronous_commit = off;
    FOR i IN 1..{n} LOOP
        UPDATE shop.order_lines SET quantity = quantity % 9 + 1 WHERE order_id = 1 + i * 7919 % {orders};
        UPDATE shop.orders o SET status = 'paid', charged = (
            SELECT sum(quantity * unit_price) FROM shop.order_lines WHERE order_id = o.id)
            WHERE id = 1 + i * 7919 % {orders};
        COMMIT;
    END LOOP;
END $$
"""


def measure(bench: Bench) -> list[Figure]:
    """At each share of the data: the first load, and a backlog of changes to what was loaded."""
    figures = []
    for share in bench.size.growth:
        lab = bench.filled(bench.size.data.times(share))
        bench.say.print(f"   {lab.data.orders:,} orders")
        figures.append(drained(bench, lab, MODEL, part="e", what=f"{share:g} times the data, drain"))
        figures.append(_backlog(bench, lab, share))
    return figures


def fall_behind(lab: Lab, transactions: int) -> int:
    """Changes while no worker runs, until Kafka has them; the source's position after them."""
    before = lab.produced()
    with psycopg.connect(lab.dsn, autocommit=True) as db:
        db.execute(BACKLOG.format(n=transactions, orders=lab.data.orders).encode())
    until(lambda: lab.produced() >= before + transactions * EVENTS, "the backlog in Kafka", pause=0.2)
    return lab.position()


def _backlog(bench: Bench, lab: Lab, share: float) -> Figure:
    """Changes that came while the worker was away; its mirror is the one of the drain before."""
    n = bench.size.changes
    position = fall_behind(lab, n)
    with Meter(lab.pids) as meter:
        worker = lab.start(MODEL)
        began = worker.reading_since()
        lab.reached(MODEL, position)
        seconds = time.time() - began
    cpu, memory = worker.cpu - worker.cpu_of_start, worker.memory
    worker.stop()
    found = bench.compared(lab, MODEL)
    alone = bench.alone(lab, MODEL).rates(found.writes[:n], over=True)
    detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
        "cpu_worker": round(cpu, 2), "cpu_us_an_event": round(cpu / (n * EVENTS) * 1e6, 2), "memory_mb": megabytes(memory),
        "events_per_second": round(n * EVENTS / seconds),
    }  # fmt: skip
    return Figure(
        part="e", what=f"{share:g} times the data, {n:,} transactions", unit="documents/s",
        values=[round(n / seconds, 1)], alone={k: [v] for k, v in alone.items()},
        documents=found.documents, different=found.different, detail={k: [v] for k, v in detail.items()},
    )  # fmt: skip
