"""Part i: a backlog worked off by one worker, and by several that share the documents."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import Any, Final

from pipeline.bench import truth
from pipeline.bench.alone import compare
from pipeline.bench.growth import EVENTS, fall_behind
from pipeline.bench.lab import MODELS, Lab, until
from pipeline.bench.meters import Meter, cpu_seconds
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.report import Figure
from pipeline.runtime.telemetry import peak_memory

WORKERS: Final = (1, 2, 4)
SESSION: Final = {"CDC_WORKER__SESSION_TIMEOUT": "600"}
"""Whoever is started again within it has its partition at once: the group is as it was, and nothing moves."""


def measure(bench: Bench) -> list[Figure]:
    """Each number of workers once, over the same changes; before them each has read all rows, and all are at home."""
    lab = bench.filled(bench.size.data)  # its own: the loads of other parts delete orders, and a backlog is counted
    for workers in WORKERS:
        _declare(lab, workers)
    lab.cdc("apply", "--yes")
    for workers in WORKERS:
        run = lab.supervise(_model(workers), **SESSION)
        until(partial(_all_at_home, lab, workers), "all are at home")
        _reached(lab, workers, lab.position())
        run.stop()
    position = fall_behind(lab, bench.size.backlog)
    return [_measured(bench, lab, workers, position) for workers in WORKERS]


def _model(workers: int) -> str:
    return f"orders-by-{workers}"


def _declare(lab: Lab, workers: int) -> None:
    model = _model(workers)
    text = (MODELS / "orders.py").read_text("utf-8")
    text = text.replace('elasticsearch("orders")', f'elasticsearch("{lab.alias(model)}"), workers={workers}')
    (lab.folder / "projections" / f"{model}.py").write_text(text, "utf-8")


def _parts(workers: int) -> list[str]:
    return [""] if workers == 1 else [f"@{n}" for n in range(workers)]


def _said(lab: Lab, workers: int, *, since: float = 0) -> list[dict[str, Any]]:
    """What each partition's worker last said; empty where that was before `since`."""
    found: list[dict[str, Any]] = []
    for part in _parts(workers):
        path = lab.folder / f".cdc/workers/{lab.index(_model(workers))}{part}.json"
        said = json.loads(path.read_text()) if path.exists() else {}
        found.append(said if said.get("reading_since", 0) > since else {})
    return found


def _all_at_home(lab: Lab, workers: int) -> bool:
    return len({each.get("pid") for each in _said(lab, workers)} - {None}) == workers


def _reached(lab: Lab, workers: int, position: int) -> None:
    for part in _parts(workers):
        lab.reached(_model(workers), position, part)


def _measured(bench: Bench, lab: Lab, workers: int, position: int) -> Figure:
    """The clock starts when the first of them is given its partitions."""
    model, n = _model(workers), bench.size.backlog
    with Meter(lab.pids) as meter:
        run = lab.supervise(model, **SESSION)
        _reached(lab, workers, position)
        ended = time.time()
    until(lambda: all(_said(lab, workers, since=run.began)), "what the workers say")
    said = _said(lab, workers, since=run.began)
    used = {each["pid"]: cpu_seconds(each["pid"]) - each["cpu_seconds_before"] for each in said}
    memory, began = max(map(peak_memory, used)), min(each["reading_since"] for each in said)
    run.stop()
    found = compare(lab.dsn, lab.stack.elasticsearch, lab.index(model), truth.ORDERS)
    alone = bench.alone(lab, model).rates(found.writes[:n], over=True)
    detail = {f"cpu_{name}": seconds for name, seconds in meter.seconds.items()} | {
        "workers": len(used), "cpu_worker": round(sum(used.values()), 2),
        "cpu_us_an_event": round(sum(used.values()) / (n * EVENTS) * 1e6, 2),
        "cpu_us_an_event_of_one": round(max(used.values()) / (n * EVENTS) * 1e6, 2), "memory_mb": megabytes(memory),
        "events_per_second": round(n * EVENTS / (ended - began)),
    }  # fmt: skip
    return Figure(
        part="i", what=f"{n:,} transactions, {workers} worker{'s' * (workers > 1)}", unit="documents/s",
        values=[round(min(n, lab.data.orders) / (ended - began), 1)], alone={k: [v] for k, v in alone.items()},
        documents=found.documents, different=found.different, detail={k: [v] for k, v in detail.items()},
    )  # fmt: skip
