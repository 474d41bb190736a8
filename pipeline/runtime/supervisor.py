"""The supervisor: one worker process a projection, restarted with backoff, never two on one mirror."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pipeline.authoring.discovery import discover, find
from pipeline.authoring.projection import Projection
from pipeline.runtime.pacing import Backoff
from pipeline.runtime.worker import EXIT_STOP_AND_SAY
from pipeline.settings import Settings

log = logging.getLogger("cdc.supervisor")
HEALTHY_AFTER: Final = 30.0
"""Seconds after which a worker's next failure starts the backoff anew."""
STOP_WITHIN: Final = 30.0


@dataclass(slots=True)
class Child:
    """One worker process; `poll` has reaped the old one before `start` makes the next."""

    name: str
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    not_before: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 30.0))
    given_up: bool = False

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "pipeline.cli", *self.arguments])
        self.started = time.monotonic()
        log.info("%s: worker %d started", self.name, self.process.pid)

    def poll(self) -> None:
        if self.given_up:
            return
        if self.process is None:
            if time.monotonic() >= self.not_before:
                self.start()
            return
        code = self.process.poll()
        if code is None:
            return
        self.process = None
        if code == EXIT_STOP_AND_SAY:
            self.given_up = True
            log.error("%s: the worker stopped and says that restarting does not help (see above)", self.name)
            return
        if time.monotonic() - self.started > HEALTHY_AFTER:
            self.backoff.reset()
        delay = self.backoff.delay()
        self.not_before = time.monotonic() + delay
        log.warning("%s: the worker ended with %d; the next starts in %.1f s", self.name, code, delay)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def reap(self, deadline: float) -> None:
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("%s: the worker did not stop in time: killed", self.name)
            self.process.kill()
            self.process.wait()


def run(settings: Settings, names: Sequence[str] = (), *, global_options: Sequence[str] = ()) -> int:
    """`cdc run`: all projections, or the named ones, until SIGTERM or SIGINT."""
    chosen: list[Projection[Any]] = (
        [find(settings, name) for name in names] if names else discover(settings.projections)
    )
    children = [Child(p.id, [*global_options, "worker", p.name]) for p in chosen]
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    while not stopping.is_set():
        for child in children:
            child.poll()
        if children and all(child.given_up for child in children):
            return 1
        stopping.wait(0.2)
    for child in children:
        child.stop()
    deadline = time.monotonic() + STOP_WITHIN
    for child in children:
        child.reap(deadline)
    return 0
