"""The supervisor: one worker process a projection, restarted with backoff, never two on one mirror."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from connectors.sinks import open_sink
from pipeline.authoring import builds
from pipeline.authoring.builds import Build
from pipeline.authoring.discovery import discover, find
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.errors import CdcError
from pipeline.operations.rebuild import sweep
from pipeline.operations.status import worker_file
from pipeline.ports import Sink
from pipeline.runtime.pacing import Backoff
from pipeline.runtime.topics import forget_exchange
from pipeline.runtime.worker import EXIT_STOP_AND_SAY
from pipeline.settings import Settings

log = logging.getLogger("cdc.supervisor")
HEALTHY_AFTER: Final = 30.0
"""Seconds after which a worker's next failure starts the backoff anew."""
STOP_WITHIN: Final = 30.0
LOOK_EVERY: Final = 0.5
"""Seconds between two looks at which builds there are."""


@dataclass(slots=True)
class Child:
    """One worker process; `poll` has reaped the old one before `start` makes the next."""

    name: str
    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    not_before: float = 0.0
    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 30.0))
    said: Path | None = None
    """What the worker last said of itself."""
    given_up: int = 0
    """The exit status of a worker that said that starting it again would not help."""

    @property
    def why(self) -> str:
        """Its last words."""
        try:
            found = json.loads(self.said.read_text()) if self.said is not None else {}
        except (FileNotFoundError, ValueError):
            found = {}
        return str(found.get("error") or "see above")

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *self.arguments], env={**os.environ, **self.environment}
        )
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
            self.given_up = code
            log.error("%s has given up, and starting it again would not help: %s", self.name, self.why)
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
    """`cdc run`: all projections, or the named ones, until SIGTERM or SIGINT; a rebuild's builds come and go meanwhile.

    A worker that gives up is left alone while others go on. When all have, the exit status is theirs.
    """
    chosen = [found for found in discover(settings.projections) if not names or found.name in names]
    for name in names:
        find(settings, name)
    children: dict[str, Child] = {}
    leaving: list[Child] = []
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    looked = 0.0
    while not stopping.is_set():
        if time.monotonic() - looked > LOOK_EVERY:
            looked = time.monotonic()
            _look(settings, chosen, children, leaving, global_options)
        for child in children.values():
            child.poll()
        if children and all(child.given_up for child in children.values()):
            break
        stopping.wait(0.2)
    for child in children.values():
        child.stop()
    deadline = time.monotonic() + STOP_WITHIN
    for child in [*children.values(), *leaving]:
        child.reap(deadline)
    if stopping.is_set():
        return 0
    log.error("No worker is left: %s", "; ".join(f"{child.name}: {child.why}" for child in children.values()))
    return max(child.given_up for child in children.values())


def _look(
    settings: Settings,
    chosen: Sequence[Projection[Any]],
    children: dict[str, Child],
    leaving: list[Child],
    options: Sequence[str],
) -> None:
    """Start workers of new builds, end those of builds that nobody needs, and drop what these leave."""
    wanted = {child.name: child for code in chosen for child in _wanted(settings, code, options)}
    for id in [id for id in children if id not in wanted]:
        log.info("%s: no longer needed", id)
        children[id].stop()
        leaving.append(children.pop(id))
    for id, child in wanted.items():
        if children.setdefault(id, child).environment != child.environment:
            children[id].environment = child.environment  # no more than the usual rate any longer
            children[id].stop()
    leaving[:] = [child for child in leaving if child.process is not None and child.process.poll() is None]
    for code in chosen:
        try:
            for gone in asyncio.run(
                sweep(settings, code, partial(_sinks, settings), partial(forget_exchange, settings))
            ):
                log.info("%s: dropped", gone)
        except CdcError as error:
            log.warning("%s: %s", code.name, error)


def _wanted(settings: Settings, code: Projection[Any], options: Sequence[str]) -> Iterator[Child]:
    known = builds.read(settings, code.name)
    live = known.live or Build(version=code.version)
    # the worker of a rebuild starts while its mirror is made, and waits for it
    target = [known.job.target] if known.job is not None else []
    found = dict.fromkeys([live, *known.beside(), *target])
    if code.version not in {build.version for build in (*found, *known.dropping)}:
        found[Build(version=code.version)] = None  # beside, as `cdc apply` made it
    for build in found:
        own = builds.as_begun(settings, build, code)
        environment: dict[str, str] = {}
        if build.version != code.version:
            folder = builds.code_of(settings, own.id)
            if not folder.exists():
                log.warning("%s: its code is not kept here, so it has no worker", own.id)
                continue
            environment["CDC_PROJECTIONS"] = str(folder)
        if known.job is not None and build == known.job.target and known.job.rate:
            environment["CDC_WORKER__FLUSH_RATE"] = str(known.job.rate)
        arguments = [*options, "worker", code.name, "--build", str(build.build)]
        if own.workers == 1:
            yield Child(own.id, arguments, environment, said=worker_file(settings, own.id))
        for number in range(1, own.workers + 1) if own.workers > 1 else ():
            name = f"{own.id}#{number}"
            yield Child(name, [*arguments, "--number", str(number)], environment, said=worker_file(settings, name))


def _sinks(settings: Settings, projection: Projection[Any]) -> list[Sink]:
    return [open_sink(target, projection, shape_of(projection.shape), settings) for target in projection.to]
