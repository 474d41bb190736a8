"""Part c: commits at a rate, and how long until each is readable by id and found by a search."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import httpx

from pipeline.bench.lab import Lab, Worker, until
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.probe import READ_EVERY, SEARCH_EVERY, Probe, delays
from pipeline.bench.report import Figure

MODEL = "orders"
HOLDS_WITHIN = 2.0
"""A rate holds when the load reached it and its last order was readable and found so many seconds after its end."""


def measure(bench: Bench) -> list[Figure]:
    """Every rate for its time, one after another on one worker; then the documents are compared."""
    lab = bench.lab(bench.size.data)
    worker = running(lab, MODEL)
    alone = _alone(lab, 3 if bench.size.name == "small" else 15)
    figures, held = [], 0.0
    for rate in bench.size.rates:
        bench.say.print(f"   {rate} transactions/s")
        with (
            Meter({**lab.pids, "worker": worker.process.pid}) as meter,
            Probe(lab, MODEL, rate, bench.size.seconds) as probe,
        ):
            after = probe.finish()
        reached = probe.done / probe.took
        held = max(held, reached) if reached > 0.95 * rate and after < HOLDS_WITHIN else held
        detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
            "memory_mb": megabytes(worker.memory), "transactions_per_second": round(reached, 1), "seconds_behind": round(after, 2),
            "measured": len(probe.readable),
        }  # fmt: skip
        for what, seconds in (("readable", probe.readable), ("searchable", probe.searchable)):
            found = delays(seconds)
            figures.append(
                Figure(
                    part="c", what=f"{rate} transactions/s, commit to {what}", unit="ms, p50", values=[found["p50"]],
                    alone={"one document": [alone[what]]}, detail={k: [v] for k, v in {**found, **detail}.items()},
                )
            )  # fmt: skip
    lab.reached(MODEL, lab.position())
    worker.stop()
    compared = bench.compared(lab, MODEL)
    figures.append(
        Figure(
            part="c", what="highest rate that holds", unit="transactions/s", values=[round(held, 1)],
            documents=compared.documents, different=compared.different,
        )
    )  # fmt: skip
    return figures


def running(lab: Lab, model: str) -> Worker:
    """A worker that has written everything there was."""
    lab.fresh(model)
    worker = lab.start(model)
    worker.reading_since()
    lab.reached(model, lab.position())
    return worker


def _alone(lab: Lab, samples: int) -> Mapping[str, float]:
    """Elasticsearch alone: p50 in ms from sending one document until it is readable, and until it is found."""
    like, there = lab.index(MODEL), "a document sent to Elasticsearch alone"
    lab.http.post(f"/{like}/_refresh").raise_for_status()
    (hit,) = lab.http.get(f"/{like}/_search", params={"size": 1}).raise_for_status().json()["hits"]["hits"]
    document = hit["_source"]
    readable, searchable = [], []
    for n in range(samples):
        key = -1 - n
        began = time.time()
        lab.http.put(f"/{like}/_doc/{key}", json={**document, "id": key}).raise_for_status()
        until(partial(_read, lab.http, like, key), there, pause=READ_EVERY)
        readable.append(time.time() - began)
        until(partial(_found, lab.http, like, key), there, pause=SEARCH_EVERY)
        searchable.append(time.time() - began)
        lab.http.delete(f"/{like}/_doc/{key}").raise_for_status()
    return {"readable": delays(readable)["p50"], "searchable": delays(searchable)["p50"]}


def _read(client: httpx.Client, index: str, key: int) -> bool:
    return client.get(f"/{index}/_doc/{key}", params={"_source": "false"}).is_success


def _found(client: httpx.Client, index: str, key: int) -> bool:
    body = {"size": 0, "query": {"term": {"id": key}}}
    return bool(client.post(f"/{index}/_search", json=body).raise_for_status().json()["hits"]["total"]["value"])
