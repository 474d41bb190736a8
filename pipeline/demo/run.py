"""The demo: the whole way on the real services, by the commands that a user would type."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from pipeline.demo import shop, truth
from pipeline.demo.sampler import Sampler
from pipeline.errors import OperationError
from pipeline.operations.status import StatusReport
from pipeline.settings import Endpoints, Settings, load
from pipeline.stack import stack

ALIASES = {
    "orders": truth.ORDERS, "customers": truth.CUSTOMERS, "sales": truth.SALES,
    "order_saga": truth.SAGAS, "tags": truth.TAGS,
}  # fmt: skip
IN_POSTGRES, IN_REDIS, IN_KAFKA = "crm.customers", "crm:customers", "customer-cards"
"""Where the customers are besides."""
CONNECTORS = ("shop", "crm")
ADDRESS = re.compile(r"http://\S+:\d+/(?=\s)")


@dataclass
class Demo:
    """One run: `say` narrates to stderr; `environment` is what every command of it runs with."""

    settings: Settings
    say: Console
    orders: int
    environment: dict[str, str]
    workers: subprocess.Popen[bytes] | None = None
    web: subprocess.Popen[bytes] | None = None
    dashboard: str = ""
    """Its address."""
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def up(self) -> Endpoints:
        endpoints = self.settings.endpoints()
        assert endpoints is not None
        return endpoints

    @property
    def crm(self) -> str:
        """The MariaDB's URI."""
        assert self.up.mariadb is not None
        return self.up.mariadb

    def cdc(self, *arguments: str, fine: tuple[int, ...] = (0, 4)) -> str:
        """Run a command and return what it printed; what it narrates is shown."""
        self.say.print(f"[bold]$ cdc {' '.join(arguments)}[/bold]")
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments], env=self.environment, stdout=subprocess.PIPE, text=True
        )
        if done.returncode not in fine:
            raise OperationError(f"cdc {' '.join(arguments)} ended with {done.returncode}.\n{done.stdout}")
        return done.stdout

    # ---- the steps ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Stack, shop and CRM, their connectors, read models, workers."""
        began = time.monotonic()
        self.say.print("[bold]$ cdc stack up --with mariadb[/bold]")
        stack.up(self.settings, self.say, also=["mariadb"])
        self.summary["stack_seconds"] = round(time.monotonic() - began, 1)
        self.say.print(f"A shop of {self.orders:,} orders is written to Postgres, and its CRM to MariaDB …")
        shop.create(self.up.postgres)
        shop.seed(
            self.up.postgres,
            customers=max(10, self.orders // 5), products=max(10, self.orders // 50), orders=self.orders,
        )  # fmt: skip
        more = shop.seed_more(self.up.postgres) + shop.seed_crm(self.crm, max(10, self.orders // 5))
        self.cdc("tables", "pull")
        self.cdc("check")
        began = time.monotonic()
        for connector in CONNECTORS:
            self.cdc("connector", "apply", connector, "--yes")
        self.cdc("apply", "--yes")
        self.start_workers()
        self.wait_for(truth.position(self.up.postgres), 300)
        self._wait_for_others()
        seconds = time.monotonic() - began
        rows = self.orders + max(10, self.orders // 5) + max(10, self.orders // 50) + 3 * self.orders + more
        documents = 2 * self.orders + max(10, self.orders // 5) + len(shop.TAGS)
        self.summary |= {
            "first_sync_seconds": round(seconds, 1),
            "first_sync_documents_per_second": round(documents / seconds),
            "events_per_second": round(rows / seconds),
        }
        self.say.print(f"{documents:,} documents from {rows:,} rows are in Elasticsearch after {seconds:.1f} s.")
        self.start_web()
        self.say.print(f"The dashboard is at [bold]{self.dashboard}[/bold]")
        self.say.print(f"Follow the customers: [bold]curl -N {self.dashboard}v1/customers/changes[/bold]")

    def start_workers(self) -> None:
        log = self.settings.state_dir / "workers.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.say.print(f"[bold]$ cdc run[/bold]   (its log: {log})")
        with log.open("ab") as out:
            self.workers = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run"], env=self.environment, stdout=out, stderr=out
            )

    def start_web(self) -> None:
        """The dashboard and the query API, at a port that is free."""
        log = self.settings.state_dir / "web.log"
        self.say.print(f"[bold]$ cdc web --open --port 0[/bold]   (its log: {log})")
        self.web, self.dashboard = serve(log, self.environment)

    def look(self) -> None:
        """Whether the dashboard answers, as a page and as JSON."""
        for path in ("", "status.json"):
            try:
                httpx.get(self.dashboard + path, timeout=30).raise_for_status()
            except httpx.HTTPError as error:
                raise OperationError(f"The dashboard does not answer {self.dashboard}{path}: {error}") from None

    def status(self) -> StatusReport:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "status", "-o", "json"],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return StatusReport.model_validate_json(done.stdout)

    def wait_for(self, lsn: int, seconds: float) -> None:
        """Until every read model's watermark, as stored with it, has passed this position of the source."""
        deadline = time.monotonic() + seconds
        reached: dict[str, int] = {}
        while time.monotonic() < deadline:
            reached = {alias: self._watermark(alias) for alias in ALIASES}
            if min(reached.values()) >= lsn:
                return
            if self.workers is not None and self.workers.poll() is not None:
                break
            time.sleep(0.1)
        log = self.settings.state_dir / "workers.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:]) if log.exists() else ""
        raise OperationError(f"The read models did not reach {lsn} in {seconds:.0f} s, but {reached}.\n{tail}")

    def _wait_for_others(self) -> None:
        """The customers, in every sink, as far as both of their sources are."""
        told = self.cdc("wait", "customers", "--now", "--timeout", "300", "-o", "json")
        late = [f"{one['sink']} ({one['connector']})" for one in json.loads(told) if not one["reached"]]
        if late:
            raise OperationError(f"{', '.join(late)} did not get as far as the sources are.")

    def _watermark(self, alias: str) -> int:
        try:
            found = httpx.get(f"{self.up.elasticsearch}/cdc-checkpoints/_doc/{alias}-v1", timeout=10)
        except httpx.HTTPError:
            return -1
        if found.status_code != 200:
            return -1
        marks = found.json()["_source"].get("watermark") or {}
        return int(marks.get("shop", {}).get("lsn", -1))

    def kill_a_worker(self) -> int:
        """`kill -9` of the orders' worker, as the machine would."""
        status = json.loads((self.settings.state_dir / "workers" / "orders-v1.json").read_text())
        os.kill(status["pid"], signal.SIGKILL)
        self.say.print(f"[red]kill -9 {status['pid']}[/red] (the orders' worker)")
        return int(status["pid"])

    def compare(self) -> bool:
        """Every document of every read model, in each sink, with SQL over the source; what differs goes to the summary.

        First by `cdc verify`, which waits until each sink of the customers is as far as both of their sources.
        """
        verified = self.verify()
        totals = {"documents": 0, "missing": 0, "stale": 0, "extra": 0, "broken_invariants": 0}
        postgres, redis, members = self.up.postgres, self.up.redis, truth.members(self.crm)
        found = {
            alias: truth.compare(
                postgres, self.up.elasticsearch, alias, query, members if alias == "customers" else None
            )
            for alias, query in ALIASES.items()
        }
        customers = {
            IN_POSTGRES: truth.in_postgres(postgres, IN_POSTGRES),
            IN_REDIS: truth.in_redis(redis, IN_REDIS),
            IN_KAFKA: truth.in_kafka(self.up.kafka, IN_KAFKA).items(),
        }
        found |= {name: truth.difference(postgres, truth.CUSTOMERS, all_, members) for name, all_ in customers.items()}
        for name, one in found.items():
            for what, n in one.counts().items():
                totals[what] += n
            if not one.none:
                self.summary[f"{name}_differ"] = (one.missing + one.stale + one.extra + one.broken)[:10]
        self.summary |= totals
        return verified and not any(n for name, n in totals.items() if name != "documents")

    def verify(self) -> bool:
        """Whether `cdc verify` says the same of the customers, in each sink; what it found goes to the summary."""
        told = json.loads(self.cdc("verify", "customers", "--all", "--timeout", "300", "-o", "json", fine=(0, 3)))
        counts = ("checked", "missing", "different", "extra", "undecided")
        found = {sink["sink"]: {name: sink[name] for name in counts} for sink in told["sinks"]}
        self.summary["verified"] = found
        return not any(one[name] for one in found.values() for name in counts[1:])

    def stop(self) -> None:
        running = [process for process in (self.web, self.workers) if process is not None and process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()


def serve(log: Path, environment: Mapping[str, str], folder: Path | None = None) -> tuple[subprocess.Popen[bytes], str]:
    """`cdc web`, open, at a port that is free, and its address; raises OperationError where it does not start."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "web", "--open", "--port", "0"],
            cwd=folder, env=environment, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while (found := ADDRESS.search(log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                raise OperationError(f"cdc web did not start.\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        raise
    return process, found[0]


@contextmanager
def prepared(say: Console, orders: int, *, own_state: bool) -> Iterator[Demo]:
    """A demo with its state folder; at the end nothing of it runs (a stack that was up before stays up)."""
    with ExitStack() as undo:
        environment = dict(os.environ)
        if own_state:
            folder = Path(
                undo.enter_context(tempfile.TemporaryDirectory(prefix="cdc-demo-", ignore_cleanup_errors=True))
            )
            folder.chmod(0o755)  # the services' user has to come through
            environment["CDC_STATE_DIR"] = str(folder)
        settings = load()
        if own_state:
            settings = settings.model_copy(update={"state_dir": folder})
        environment["CDC_CATALOG"] = str(settings.state_dir / "catalog.json")
        demo = Demo(settings, say, orders, environment)
        if not stack.status(settings).ready:
            undo.callback(stack.down, settings, erase=own_state)
        undo.callback(demo.stop)
        yield demo


def check(say: Console, *, orders: int = 20_000, rate: float = 50, seconds: float = 30) -> int:
    """Unattended, to the end: load, a kill -9 in the middle, comparison; the last line is the summary as JSON."""
    with prepared(say, orders, own_state=True) as demo:
        demo.start()
        sampler = Sampler(demo.up.elasticsearch, "orders")
        load_ = shop.Load(demo.up.postgres, rate, seconds, committed=sampler.committed, tells=True, crm=demo.crm)
        say.print(f"{rate:.0f} transactions/s for {seconds:.0f} s …")
        with sampler:
            load_.start()
            load_.join(seconds / 2)
            demo.look()
            demo.kill_a_worker()
            killed = time.time()
            load_.join(seconds + 30)
            demo.wait_for(truth.position(demo.up.postgres), 120)
        demo.summary |= {"transactions": load_.done, "by_kind": load_.by_kind, "load_error": load_.error}
        demo.summary |= sampler.report(killed)
        same = demo.compare()
        ok = same and load_.error is None
    say.print("[green]Every document is right.[/green]" if ok else "[red]The documents differ from the source.[/red]")
    sys.stdout.write(json.dumps(demo.summary) + "\n")
    return 0 if ok else 1
