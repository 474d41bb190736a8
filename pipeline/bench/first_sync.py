"""Part a: from rows in the source to all documents, Debezium's start included."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from pipeline.bench.drain import written
from pipeline.bench.lab import Lab
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.report import Figure

MODEL = "orders"


def measure(bench: Bench) -> list[Figure]:
    """A first sync of the joined documents through Debezium's snapshot, and two by copies of the tables."""
    return [_synced(bench, *how) for how in ((False, False), (True, False), (True, True))]


def _synced(bench: Bench, copied: bool, streaming: bool) -> Figure:
    """The clock starts before its worker does, and before its connector unless that is `streaming` already."""
    lab = bench.new_lab(bench.size.data, copied=copied)
    if streaming:
        lab.connect()
    with Meter(lab.pids) as meter, ThreadPoolExecutor(1) as beside:
        began = time.time()
        worker = lab.start(MODEL)
        sent = beside.submit(_sent, lab, copied)
        first, ended = written(lab, MODEL, lab.data.orders)
    seconds, cpu, memory = ended - began, worker.cpu, worker.memory
    lab.reached(MODEL, lab.position())
    again = lab.indexed(MODEL)
    worker.stop()
    if not copied:
        bench.labs[lab.data.orders] = lab
    found, alone = bench.compared(lab, MODEL), bench.alone(lab, MODEL)
    rates = alone.rates(found.writes)
    detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
        "cpu_worker": cpu, "memory_mb": megabytes(memory), "rows_per_second": round(lab.data.rows / seconds),
        "seconds": round(seconds, 2), f"seconds_until_{'connected' if copied else 'in_kafka'}": round(sent.result() - began, 2),
        "seconds_until_first_document": round(first - began, 2),
        "writes_a_document": round(again / lab.data.orders, 3),
    }  # fmt: skip
    return Figure(
        part="a", unit="documents/s",
        what="first sync, joined orders" + ", tables copied" * copied + ", the connector there before" * streaming,
        values=[round(lab.data.orders / seconds, 1)],
        alone={k: [v] for k, v in rates.items()},
        documents=found.documents, different=found.different, detail={k: [v] for k, v in (detail | alone.cpu).items()},
    )  # fmt: skip


def _sent(lab: Lab, copied: bool) -> float:
    """Start Debezium, unless it runs; when it does, and Kafka has every row that it reads (time.time()), to a third of a second."""
    if not lab.connected:
        lab.connect()
    if not copied:
        lab.fill()
    return time.time()
