"""Part g: a rebuild from the mirror, beside what Elasticsearch alone takes of the same documents."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Final

import psycopg

from pipeline.authoring import builds
from pipeline.authoring.builds import Job
from pipeline.bench import truth
from pipeline.bench.alone import compare
from pipeline.bench.lab import Lab, like, until
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.report import Figure
from pipeline.errors import OperationError
from pipeline.runtime.telemetry import peak_memory

MODEL: Final = "orders"


def measure(bench: Bench) -> list[Figure]:
    """The clock starts with the job, and ends with the last document in the new index; comparison and cut-over come after."""
    lab = bench.filled(bench.size.most)  # its own: another build is live afterwards
    lab.fresh(MODEL)
    run = lab.supervise(MODEL)
    lab.reached(MODEL, lab.position())
    documents = _orders(lab)
    with Meter({**lab.pids, "run": run.process.pid}) as meter:
        rebuild = lab.popen("rebuild", lab.alias(MODEL), "--from", "mirror", "-o", "json")
        job = until(lambda: _job(bench, lab, rebuild), "the job")
        assert job is not None
        index = f"{lab.alias(MODEL)}-v{job.target.version}.{job.target.build}"
        until(lambda: _goes_on(rebuild) and lab.indexed_in(index), "the first document", pause=0.1)
        first, settings = time.time(), like(lab.http, f"/{index}")["settings"]["index"]
        until(lambda: _goes_on(rebuild) and lab.indexed_in(index) >= documents, f"{documents} documents", pause=0.1)
        seconds = time.time() - job.started
    worker = json.loads((lab.folder / ".cdc/workers" / f"{index}.json").read_text())
    memory = peak_memory(worker["pid"])
    told = rebuild.communicate(timeout=1800)  # it compares every document before the cut-over
    if rebuild.returncode:
        raise OperationError(f"The rebuild ended with {rebuild.returncode}.\n{''.join(told)}")
    again = lab.indexed_in(index)
    run.stop()
    found = compare(lab.dsn, lab.stack.elasticsearch, index, truth.QUERIES[MODEL])
    alone = bench.alone(lab, MODEL, settings=settings)
    rates = alone.rates(found.writes)
    detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
        "memory_mb": megabytes(memory), "seconds": round(seconds, 2),
        "seconds_until_first_document": round(first - job.started, 2), "writes_a_document": round(again / documents, 3),
        "bytes_a_document": found.size,
    }  # fmt: skip
    return [
        Figure(
            part="g", what="rebuild from the mirror, joined orders", unit="documents/s",
            values=[round(documents / seconds, 1)], alone={k: [v] for k, v in rates.items()},
            documents=found.documents, different=found.different, detail={k: [v] for k, v in (detail | alone.cpu).items()},
        )
    ]  # fmt: skip


def _orders(lab: Lab) -> int:
    with psycopg.connect(lab.dsn) as db:
        row = db.execute("SELECT count(*) FROM shop.orders").fetchone()
    assert row is not None
    return int(row[0])


def _goes_on(rebuild: subprocess.Popen[str]) -> bool:
    if rebuild.poll():
        raise OperationError(f"The rebuild ended with {rebuild.returncode}.\n{''.join(rebuild.communicate())}")
    return True


def _job(bench: Bench, lab: Lab, rebuild: subprocess.Popen[str]) -> Job | None:
    _goes_on(rebuild)
    own = bench.settings.model_copy(update={"state_dir": lab.folder / ".cdc"})
    return builds.read(own, lab.alias(MODEL)).job
