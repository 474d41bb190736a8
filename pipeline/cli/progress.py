"""Progress of a long command on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from pipeline.cli.output import err, terminal

EVERY = 10.0


class Bar:
    """`with Bar("orders") as bar: bar.update("comparing", done, total)`; a total of 0 is not known."""

    def __init__(self, subject: str) -> None:
        self.subject, self._said = subject, time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty() and not terminal.quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=err(), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.subject)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: str, done: int, total: int) -> None:
        """What is done now, and how far it is."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self.subject}: {step}", completed=done, total=total or None)
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            err().print(f"{self.subject}: {step}" + (f", {done:,} of {total:,}" if total else ""))
