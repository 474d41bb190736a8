"""What processes take: CPU seconds and peak memory, by Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from pipeline.stack.processes import family

TICK: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of a process with all its children, those that have ended and were waited for among them; 0 where it is gone."""
    return sum(_own(member) for member in family(pid)) / TICK


def _own(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))


def machine() -> str:
    """The CPU's model and how many of its cores this process may use."""
    model = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


class Meter:
    """CPU seconds of named processes between its start and its end."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Meter:
        self._before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = {name: round(cpu_seconds(pid) - self._before[name], 2) for name, pid in self._pids.items()}
