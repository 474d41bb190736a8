"""What a worker says of itself: a small file, replaced once a second, that `cdc status` reads."""

from __future__ import annotations

import json
import os
import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.authoring.projection import Projection
from pipeline.operations.status import worker_file
from pipeline.settings import Settings

if TYPE_CHECKING:
    from pipeline.runtime.worker import Worker


def peak_memory(pid: int) -> int:
    """The most bytes a process ever had resident, the pages of mapped files among them; 0 where Linux's /proc is not there.

    `getrusage` would say no less than what the process that started it had.
    """
    with suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class StatusFile:
    """Written by rename, so that a reader never sees half of it."""

    def __init__(self, settings: Settings, projection_id: str) -> None:
        self.path = worker_file(settings, projection_id)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.started = time.time()
        self.error: str | None = None
        self.given_up = False
        """Starting it again would not help."""

    def write(self, worker: Worker, state: str) -> None:
        self._replace(self._report(worker, state))

    def never_began(self, projection: Projection[Any], error: str) -> None:
        """The last words of a worker whose projection can't be run as it is defined."""
        self._replace({
            "projection": projection.name, "version": projection.version, "pid": os.getpid(), "state": "failed",
            "started": self.started, "at": time.time(), "error": error, "given_up": True, "sinks": {},
        })  # fmt: skip

    def _replace(self, report: dict[str, Any]) -> None:
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(report))
        temporary.replace(self.path)

    def _report(self, worker: Worker, state: str) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        membership = getattr(worker, "membership", None)
        standby = membership.standby if membership is not None else ""
        since, before = membership.reading_since if membership is not None else (0.0, 0.0)
        report: dict[str, Any] = {
            "projection": worker.wired.projection.name,
            "version": worker.wired.projection.version,
            "pid": os.getpid(),
            "state": state,
            "started": self.started,
            "at": time.time(),
            "error": self.error,
            "given_up": self.given_up,
            "standby": standby,
            "reading_since": since,
            "cpu_seconds_before": before,
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 3),
            "peak_memory": peak_memory(os.getpid()),
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
            if not standby and state == "running" and report["catching_up"]:
                report["state"] = "catching up"
        if (saver := getattr(worker, "saver", None)) is not None:
            report |= {"saved_at": saver.current_at or None, "saving_error": saver.error}
        report["sinks"] = {
            f.sink.name: {"error": f.error, "last_write": f.last_write_at, **f.written} for f in worker.flushers
        }
        return report
