"""Runs the parts that are asked for, on a stack that is up or on one of its own."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console

from pipeline.bench import drain, fanout, first_sync, growth, live, reads, rebuilding, rows, shared
from pipeline.bench.meters import machine
from pipeline.bench.parts import Bench
from pipeline.bench.report import Figure, Report
from pipeline.bench.sizes import SIZES
from pipeline.errors import SettingsError
from pipeline.settings import Settings
from pipeline.stack import stack

PARTS: Final[dict[str, tuple[str, Callable[[Bench], list[Figure]]]]] = {
    "a": ("first sync, from rows to documents", first_sync.measure),
    "b": ("drain of a full topic", drain.measure),
    "c": ("live, commit to readable and to searchable", live.measure),
    "d": ("fan-out of one change, beside fresh ones", fanout.measure),
    "e": ("growth, at a tenth of the data and more", growth.measure),
    "f": ("drain of a full topic into Postgres", rows.measure),
    "g": ("rebuild from the mirror", rebuilding.measure),
    "h": ("reads through the query API, beside a worker under load", reads.measure),
    "i": ("a backlog worked off by one worker, and by several that share the documents", shared.measure),
}


def run(
    settings: Settings, parts: Sequence[str], *, size: str, runs: int, state_dir: Path | None, say: Console
) -> Report:
    """Measure; `state_dir` names the stack to use: left up where it was up, else started and stopped."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise SettingsError(f"There is no part {', '.join(unknown)} of the benchmarks: it has {', '.join(PARTS)}.")
    report = Report(
        size=size, runs=runs, machine=machine(), began=datetime.now(UTC).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 2),
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was made is taken down
    with ExitStack() as undo:
        used = _stack(settings, state_dir, undo, say)
        if SIZES[size].warm:
            say.print("Warming up …")
            with ExitStack() as warm:
                _once(Bench(used, SIZES["small"], say, warm), ["a", "b"])
        for number in range(runs):
            say.print(f"Run {number + 1} of {runs}")
            with ExitStack() as inner:
                for figures in _once(Bench(used, SIZES[size], say, inner), parts or list(PARTS)):
                    report.add(figures)
    return report


def _once(bench: Bench, parts: Sequence[str]) -> list[list[Figure]]:
    found = []
    for part in sorted(parts):
        bench.say.print(f"{part}: {PARTS[part][0]}")
        found.append(PARTS[part][1](bench))
        for figure in found[-1]:  # told at once, so that a run that is ended early has said something
            ratio = ", ".join(f"{value:.2f} of {clients}" for clients, value in figure.ratio.items())
            bench.say.print(f"   {figure.what}: {figure.median:,.0f} {figure.unit} {ratio}")
    return found


def _stack(settings: Settings, state_dir: Path | None, undo: ExitStack, say: Console) -> Settings:
    """The settings of a stack that is up."""
    folder = state_dir
    if folder is None:
        folder = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="cdc-bench-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)  # the services' user has to come through
    used = settings.model_copy(update={"state_dir": folder})
    if not stack.status(used).ready:
        undo.callback(stack.down, used, erase=state_dir is None)
        stack.up(used, say)
    return used
