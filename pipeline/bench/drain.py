"""Part b: a topic that is full, to all documents."""

from __future__ import annotations

import time

from pipeline.bench.lab import Lab, until
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.report import Figure
from pipeline.bench.sizes import Data

MODELS = {
    "lines": "drain, flat lines",
    "orders": "drain, joined orders",
    "totals": "drain, joined orders with derived fields",
}


def measure(bench: Bench) -> list[Figure]:
    """Each read model once, one after another, from the same topics."""
    lab = bench.lab(bench.size.data)
    return [drained(bench, lab, model, part="b", what=what) for model, what in MODELS.items()]


def expected(data: Data, model: str) -> tuple[int, int]:
    """How many documents there will be, and from how many events."""
    return (data.lines, data.lines) if model == "lines" else (data.orders, data.rows)


def drained(bench: Bench, lab: Lab, model: str, *, part: str, what: str) -> Figure:
    """The clock starts when the worker is given its partitions, its start and Kafka's group before that told apart."""
    documents, events = expected(lab.data, model)
    lab.fresh(model)
    with Meter(lab.pids) as meter:
        worker = lab.start(model)
        first, ended = written(lab, model, documents)
    began, cpu, memory = worker.reading_since(), worker.cpu, worker.memory
    start = worker.cpu_of_start
    lab.reached(model, lab.position())
    again = lab.indexed(model)
    worker.stop()
    found, alone = bench.compared(lab, model), bench.alone(lab, model)
    rates = alone.rates(found.writes)
    detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
        "cpu_worker": cpu, "memory_mb": megabytes(memory), "events_per_second": round(events / (ended - began)),
        "seconds": round(ended - began, 2), "seconds_of_start": round(began - worker.began, 2),
        "seconds_until_first_document": round(first - began, 2), "writes_a_document": round(again / documents, 3),
        "cpu_of_start": start, "cpu_us_an_event": round((cpu - start) / events * 1e6, 2), "bytes_a_document": found.size,
    }  # fmt: skip
    return Figure(
        part=part, what=what, unit="documents/s", values=[round(documents / (ended - began), 1)],
        alone={k: [v] for k, v in rates.items()},
        documents=found.documents, different=found.different, detail={k: [v] for k, v in (detail | alone.cpu).items()},
    )  # fmt: skip


def written(lab: Lab, model: str, documents: int) -> tuple[float, float]:
    """When the first document and the last of so many were in the index (time.time())."""
    # asked more often, the server's answers cost what they measure
    until(lambda: lab.indexed(model), f"the first document of {model}", pause=0.1)
    first = time.time()
    until(lambda: lab.indexed(model) >= documents, f"{documents} documents of {model}", pause=0.1)
    return first, time.time()
