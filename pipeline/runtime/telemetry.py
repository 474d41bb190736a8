"""What a worker says of itself: a small file, replaced once a second, that `cdc status` reads."""

from __future__ import annotations

import json
import logging
import os
import resource
import time
from typing import TYPE_CHECKING, Any

from pipeline.operations.status import worker_file
from pipeline.settings import Settings

log = logging.getLogger("cdc.worker")
if TYPE_CHECKING:
    from pipeline.runtime.worker import Worker


class StatusFile:
    """Written by rename, so that a reader never sees half of it."""

    def __init__(self, settings: Settings, projection_id: str) -> None:
        self.path = worker_file(settings, projection_id)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        self.error: str | None = None
        self.since = self.cpu_before = 0.0

    def reading(self, partitions: int) -> None:
        """So many partitions have come: note when, and the CPU seconds used by then."""
        log.info("%s: reads %d partitions", self.path.stem, partitions)
        self.since, self.cpu_before = time.time(), round(time.process_time(), 3)

    def write(self, worker: Worker, state: str) -> None:
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self._report(worker, state)))
        temporary.replace(self.path)

    def _report(self, worker: Worker, state: str) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        report: dict[str, Any] = {
            "projection": worker.wired.projection.name,
            "version": worker.wired.projection.version,
            "pid": os.getpid(),
            "state": state,
            "started": self.started,
            "at": time.time(),
            "error": self.error,
            "standby": worker.standby,
            "reading_since": self.since,
            "cpu_seconds_before": self.cpu_before,
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_memory": usage.ru_maxrss * 1024,
        }
        engine = getattr(worker, "engine", None)
        if engine is not None:
            report |= {
                "catching_up": engine.catching_up is not None,
                "staged": engine.gate.staged,
                "applied": worker.totals.applied,
                "transactions": worker.totals.transactions,
                "newest_ms": worker.totals.newest_ms,
            }
            if not worker.standby and state == "running" and report["catching_up"]:
                report["state"] = "catching up"
        report["sinks"] = {
            f.sink.name: {"error": f.error, "last_write": f.last_write_at, **f.written} for f in worker.flushers
        }
        return report
