"""Chaos: under load, everything is killed at random for a while; then every document is compared with the source."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

from pipeline.demo import run, shop, truth
from pipeline.errors import CdcError
from pipeline.stack import stack

WORKERS = ("orders", "customers")
SERVICES = ("connect", "kafka", "elasticsearch", "redis", "mariadb")
FEWEST_KILLS = 2
"""However slow the machine is, the run goes on until so many are done."""


@dataclass
class Watcher:
    """Reads orders without pause and remembers each whose charge was not the sum of its lines."""

    elasticsearch: str
    read: int = 0
    broken: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(15)

    def _run(self) -> None:
        pick = random.Random(7)
        with httpx.Client(base_url=self.elasticsearch, timeout=10) as client:
            while not self._stop.is_set():
                keys = [str(pick.randint(1, 6000)) for _ in range(100)]
                try:
                    answer = client.post("/orders/_mget", json={"ids": keys})
                    docs = answer.json().get("docs", []) if answer.status_code == 200 else []
                except httpx.HTTPError:
                    docs = []
                if not docs:
                    self._stop.wait(0.2)
                for found in docs:
                    if found.get("found"):
                        self.read += 1
                        source = found["_source"]
                        if float(source["charged"]) != float(source["total"]):
                            self.broken.append(source)
                self._stop.wait(0.01)


class Chaos:
    """One run; the seed decides who is killed, and when: one of them each `pause` seconds (from, to)."""

    def __init__(
        self, demo: run.Demo, seconds: float, seed: int, rate: float, *,
        pause: tuple[float, float] = (4, 12), workers: Sequence[str] = WORKERS,
    ) -> None:  # fmt: skip
        self.demo, self.seconds, self.rate, self.pause, self.workers = demo, seconds, rate, pause, workers
        self.random = random.Random(seed)
        self.kills: dict[str, int] = {}

    def run(self) -> None:
        up = self.demo.up
        watcher = Watcher(up.elasticsearch)
        load = shop.Load(up.postgres, self.rate, 86_400, seed=self.random.randint(0, 999), crm=self.demo.crm)
        watcher.start()
        load.start()
        end = time.monotonic() + self.seconds
        while load.running and ((left := end - time.monotonic()) > 0 or sum(self.kills.values()) < FEWEST_KILLS):
            time.sleep(min(max(left, 4), self.random.uniform(*self.pause)))
            if end - time.monotonic() > 2 or sum(self.kills.values()) < FEWEST_KILLS:
                self._kill(self.random.choice(("worker", "worker", *SERVICES)))
        load.stop()
        load.join(60)
        self.demo.say.print("The load has ended; waiting for the read models …")
        self._until_running()
        self.demo.wait_for(truth.position(up.postgres), 300)
        watcher.stop()
        self.demo.summary |= {
            "kills": self.kills, "kills_done": sum(self.kills.values()), "transactions": load.done,
            "load_error": load.error, "documents_read_meanwhile": watcher.read,
            "torn_documents_seen": len(watcher.broken),
        }  # fmt: skip
        if watcher.broken:
            self.demo.summary["torn_example"] = watcher.broken[0]

    def _kill(self, victim: str) -> None:
        self.kills[victim] = self.kills.get(victim, 0) + 1
        if victim == "worker":
            self._kill_worker()
            return
        self.demo.say.print(f"[red]kill -9 {victim}[/red]")
        stack.stop_service(self.demo.settings, victim, hard=True)
        time.sleep(self.random.uniform(0, 3))
        stack.start_service(self.demo.settings, victim)

    def _kill_worker(self) -> None:
        name = self.random.choice(self.workers)
        path = self.demo.settings.state_dir / "workers" / f"{name}-v1.json"
        try:
            pid = json.loads(path.read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            self.demo.say.print(f"[red]kill -9 the worker of {name}[/red]")
        except (OSError, ValueError):
            self.demo.say.print(f"the worker of {name} is not running now")

    def _until_running(self) -> None:
        """A connector's task may have failed for good while Kafka or its source was away: an operator would restart it."""
        for connector in run.CONNECTORS:
            self._until_runs(connector)

    def _until_runs(self, connector: str) -> None:
        for _ in range(60):
            try:
                answer = httpx.get(f"{self.demo.up.connect}/connectors/{connector}/status", timeout=10).json()
                states = [task["state"] for task in answer.get("tasks", [])]
            except (httpx.HTTPError, ValueError):
                states = []
            if states and all(state == "RUNNING" for state in states):
                return
            if "FAILED" in states:
                self.demo.summary["connector_restarts"] = self.demo.summary.get("connector_restarts", 0) + 1
                self.demo.cdc("connector", "restart", connector)
            time.sleep(1)


def chaos(seconds: float, seed: int, *, orders: int = 3000, rate: float = 40) -> tuple[bool, dict[str, Any]]:
    """Whether everything was right at the end, and the summary."""
    say = Console(stderr=True, highlight=False)
    say.print(f"chaos: {seconds:.0f} s, seed {seed}")
    with run.prepared(say, orders, own_state=True) as demo:
        demo.summary |= {"seconds": seconds, "seed": seed}
        demo.start()
        Chaos(demo, seconds, seed, rate).run()
        same = demo.compare()
        summary = demo.summary
        summary["broken_invariants"] += summary["torn_documents_seen"]
        return same and summary["torn_documents_seen"] == 0 and summary["load_error"] is None, summary


def main(what: Callable[[float, int], tuple[bool, dict[str, Any]]], arguments: list[str]) -> int:
    length, seed = float(arguments[0]), int(arguments[1])
    try:
        right, summary = what(length, seed)
    except CdcError as error:
        Console(stderr=True).print(f"seed {seed}: {type(error).__name__}: {error}", style="red", markup=False)
        return 1
    sys.stdout.write(json.dumps(summary) + "\n")
    return 0 if right else 1
