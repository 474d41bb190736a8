"""Brings the local stack up, tells how it is, and takes it down with nothing left running."""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from rich.console import Console

from pipeline.errors import StackError
from pipeline.settings import Endpoints, Settings
from pipeline.stack import artefacts, processes
from pipeline.stack.fetch import fetch
from pipeline.stack.files import exclusive, write_atomically
from pipeline.stack.services import SERVICES, Service, given, local, masked, parts
from pipeline.stack.site import Site, is_free, make_site, open_site


class ServiceStatus(BaseModel):
    name: str
    version: str
    state: Literal["up", "silent", "down", "given"]
    """`silent`: it runs and does not answer; `given`: the settings name its address, so it is not the stack's."""
    pid: int | None
    address: str | None
    """As it may be shown: a password in it is masked; `Endpoints` has the real one."""
    log: str | None


class StackStatus(BaseModel):
    state_dir: str
    ready: bool
    services: list[ServiceStatus]


class _Given(Exception):
    """Starting was given up."""


def up(settings: Settings, progress: Console | None = None, *, also: Sequence[str] = ()) -> Endpoints:
    """Start what is not running, wait until all of it answers, and say where; narrates to `progress`.

    `also` asks for services that are not in every stack; from then on they are in this one, until it is erased.
    """
    asked = [_service(settings, name).name for name in also]
    with _os_errors(), _site_lock(settings, progress) as site:
        new = [name for name in asked if not site.has(name)]
        endpoints = _endpoints(site)
        if not new and settings.endpoints() == endpoints and all(_is_up(site, service) for service in local(site)):
            return endpoints
        site.endpoints.unlink(missing_ok=True)
        fetch(progress, () if new or site.has("mariadb") else artefacts.OF_MARIADB)
        for name in new:
            site.directory(name)
            processes.stop(site.pidfile("connect"))  # it finds its plugins as it starts
        _Start(site, progress).all(local(site))
        endpoints = _endpoints(site)
        write_atomically(site.endpoints, endpoints.model_dump_json(indent=2) + "\n")
        return endpoints


def status(settings: Settings) -> StackStatus:
    """Ask every service for real."""
    site = open_site(settings)
    elsewhere = given(settings)
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        found = list(pool.map(lambda service: _status(site, service, elsewhere), parts(site).values()))
    ready = site.endpoints.exists() and all(one.state in ("up", "given") for one in found)
    return StackStatus(state_dir=str(site.root.parent), ready=ready, services=found)


def down(settings: Settings, *, erase: bool = False) -> list[str]:
    """Stop every service of the stack, by their pidfiles; returns the names of those that ran."""
    if not open_site(settings).root.is_dir():
        return []
    with _os_errors(), _site_lock(settings) as site:
        site.endpoints.unlink(missing_ok=True)
        ran = [name for name in SERVICES if processes.running(site.pidfile(name))]
        _stop_all(site, list(SERVICES))
        if erase:
            for folder in {site.home, site.root}:
                shutil.rmtree(folder)
        return ran


def stop_service(settings: Settings, name: str, *, hard: bool = False) -> None:
    """Stop one service, as if it had crashed where `hard`."""
    service = _service(settings, name)
    with _os_errors():
        processes.stop(open_site(settings).pidfile(name), how=signal.SIGKILL if hard else service.stop)


def start_service(settings: Settings, name: str, progress: Console | None = None) -> None:
    """Start one service again, on the port and data it had."""
    service = _service(settings, name)
    with _os_errors(), _site_lock(settings) as site:
        gone = processes.running(site.pidfile(name)) is None
        if gone and not processes.wait_until(lambda: is_free(site.port(name)), 5.0):
            raise StackError(
                f"Port {site.port(name)} of {name} is taken by another program: `cdc stack down`, then `up`."
            )
        _Start(site, progress).all([service])


def logs(settings: Settings, service: str, lines: int = 50) -> list[str]:
    """The last lines of a service's log."""
    return processes.tail(open_site(settings).log(_service(settings, service).name), lines)


class _Start:
    """One start of several services at the same time; when one fails, those it started are stopped."""

    def __init__(self, site: Site, progress: Console | None) -> None:
        self._site = site
        self._progress = progress
        self._failed = threading.Event()
        self._ready = {name: threading.Event() for name in SERVICES}
        self._started: list[str] = []

    def all(self, services: list[Service]) -> None:
        names = {service.name for service in services}
        for name, ready in self._ready.items():
            if name not in names:
                ready.set()
        try:
            with ThreadPoolExecutor(len(SERVICES)) as pool:
                futures = [pool.submit(self._one, service) for service in services]
                try:
                    wait(futures, return_when=FIRST_EXCEPTION)
                finally:
                    self._failed.set()
            _raise_first(futures)
        except BaseException:
            _stop_all(self._site, self._started)
            raise

    def _one(self, service: Service) -> None:
        if service.needs:
            self._until(self._ready[service.needs].is_set, service)
        pidfile = self._site.pidfile(service.name)
        if processes.running(pidfile) is None:
            self._say(f"Starting {service.name} {service.version}")
            command = service.prepare(self._site)
            if self._failed.is_set():
                raise _Given
            self._started.append(service.name)
            processes.spawn(command, self._site.user, self._site.log(service.name), pidfile)
        self._until(lambda: service.answers(self._site), service, alive=pidfile)
        self._ready[service.name].set()
        self._say(f"{service.name} answers")

    def _until(self, done: Callable[[], bool], service: Service, alive: Path | None = None) -> None:
        log = self._site.log(service.name)

        def settled() -> bool:
            if self._failed.is_set():
                raise _Given
            if alive is not None and processes.running(alive) is None:
                raise processes.with_log(f"{service.name} ended while it started.", log)
            return done()

        if not processes.wait_until(settled, service.patience, pause=0.1):
            raise processes.with_log(f"{service.name} did not answer within {service.patience:.0f} seconds.", log)

    def _say(self, text: str) -> None:
        if self._progress:
            self._progress.print(text, highlight=False)


def _raise_first(futures: list[Future[None]]) -> None:
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda one: isinstance(one, _Given)):
        raise error


def _stop_all(site: Site, names: list[str]) -> None:
    # Connect first: without Kafka it would not end by itself.
    waves = [[name for name in names if name == "connect"], [name for name in names if name != "connect"]]
    for wave in waves:
        with ThreadPoolExecutor(len(SERVICES)) as pool:
            list(pool.map(lambda name: processes.stop(site.pidfile(name), how=SERVICES[name].stop), wave))


def _endpoints(site: Site) -> Endpoints:
    elsewhere = given(site.settings)
    return Endpoints(**{name: elsewhere.get(name) or service.address(site) for name, service in parts(site).items()})


def _is_up(site: Site, service: Service) -> bool:
    return processes.running(site.pidfile(service.name)) is not None and service.answers(site)


def _status(site: Site, service: Service, elsewhere: dict[str, str]) -> ServiceStatus:
    values = {"name": service.name, "version": service.version}
    if service.name in elsewhere:
        return ServiceStatus(**values, state="given", pid=None, address=masked(elsewhere[service.name]), log=None)
    pid = processes.running(site.pidfile(service.name))
    log = site.log(service.name)
    shown = str(log) if log.exists() else None
    if pid is None:
        return ServiceStatus(**values, state="down", pid=None, address=None, log=shown)
    state: Literal["up", "silent"] = "up" if service.answers(site) else "silent"
    return ServiceStatus(**values, state=state, pid=pid, address=masked(service.address(site)), log=shown)


def _service(settings: Settings, name: str) -> Service:
    if name not in SERVICES:
        raise StackError(f"The stack has no service {name}: it has {', '.join(SERVICES)}.")
    if name in given(settings):
        raise StackError(f"{name} is given by address in the settings, so it is not the stack's.")
    return SERVICES[name]


@contextmanager
def _site_lock(settings: Settings, progress: Console | None = None) -> Iterator[Site]:
    site = make_site(settings)
    waiting = partial(progress.print, "Waiting for another `cdc stack` to finish") if progress else lambda: None
    with exclusive(site.root / ".lock", waiting):
        yield site


@contextmanager
def _os_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StackError(
            f"The stack's files can't be used ({error}): another user's state_dir, or a full disk?"
        ) from error
