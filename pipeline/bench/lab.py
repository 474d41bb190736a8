"""A shop of the benchmarks' own on a running stack: its database, topics, read models and workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import psycopg
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from psycopg.conninfo import make_conninfo
from rich.console import Console

from pipeline.bench.meters import cpu_seconds
from pipeline.bench.sizes import Data
from pipeline.demo import shop, truth
from pipeline.errors import OperationError
from pipeline.runtime.telemetry import peak_memory
from pipeline.settings import Endpoints

MODELS = Path(__file__).parent / "models"
PATIENCE = 600.0
OWN = frozenset({"uuid", "version", "creation_date", "provided_name"})
"""What an index says of itself and can't be told."""
T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, seconds: float = PATIENCE, pause: float = 0.02) -> T:
    """The first truthy value; raises OperationError where there is none in time."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise OperationError(f"The benchmark waited {seconds:.0f} s for {what}: look at the worker's log.")
        time.sleep(pause)
    return found


@dataclass
class Lab:
    """One shop with its connector. What it is named after, `name`, is new each time: old topics stay in Kafka."""

    folder: Path
    stack: Endpoints
    pids: dict[str, int]
    """The stack's processes."""
    password: str
    """The reference by which Connect finds the database's password."""
    data: Data
    say: Console
    copied: bool = False
    """Its workers copy the tables, and its connector has no snapshot."""
    name: str = field(default_factory=lambda: f"bench_{uuid4().hex[:6]}")
    workers: list[Worker] = field(default_factory=list)
    connected: bool = False

    def __post_init__(self) -> None:
        # one for all questions: making a client costs more than the question
        self.http = httpx.Client(base_url=self.stack.elasticsearch, timeout=60)

    # ---- making it ----------------------------------------------------------------------------------------

    def create(self) -> None:
        """The database with its rows, and the project's files; no connector and no index yet."""
        self.say.print(f"A shop of {self.data.orders:,} orders, {self.data.rows:,} rows …")
        with psycopg.connect(self.stack.postgres, autocommit=True) as db:
            db.execute(f"CREATE DATABASE {self.name}".encode())
        shop.create(self.dsn)
        shop.seed(self.dsn, customers=self.data.customers, products=self.data.products, orders=self.data.orders)
        for part in ("projections", "connectors/debezium"):
            (self.folder / part).mkdir(parents=True)
        for model in MODELS.glob("[!_]*.py"):
            text = model.read_text("utf-8").replace('elasticsearch("', f'elasticsearch("{self.name}-')
            text = text.replace('name="', f'name="{self.name}-')
            (self.folder / "projections" / model.name).write_text(text, "utf-8")
        tables = ", ".join(f'"{table}"' for table in shop.TABLES)
        (self.folder / "connectors/debezium" / f"{self.name}.toml").write_text(
            f'name = "{self.name}"\nkind = "postgres"\ntables = [{tables}]\n'
            f'[database]\ndbname = "{self.name}"\npassword = "{self.password}"\n'
            + ('[snapshot]\nmode = "copy"\n' if self.copied else "")
        )
        self.cdc("tables", "pull")
        self.cdc("apply", "--yes")

    def connect(self) -> None:
        """Start Debezium."""
        self.connected = True
        self.cdc("connector", "apply", self.name, "--yes")

    def fill(self) -> None:
        """Until Kafka has every row of the snapshot."""
        until(lambda: self.produced() >= self.data.rows, f"{self.data.rows} rows in Kafka", pause=0.3)

    def produced(self) -> int:
        """Records in the tables' topics."""
        return asyncio.run(ends(self.stack.kafka, [f"{self.name}.{table}" for table in shop.TABLES]))

    @property
    def dsn(self) -> str:
        return make_conninfo(self.stack.postgres, dbname=self.name)

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "CDC_PROJECT": self.name.replace("_", "-"),
            "CDC_STATE_DIR": str(self.folder / ".cdc"),
            "CDC_KAFKA__BOOTSTRAP": self.stack.kafka,
            "CDC_CONNECT__URL": self.stack.connect,
            "CDC_ELASTICSEARCH__URL": self.stack.elasticsearch,
            "CDC_SOURCE__DSN": self.dsn,
            "CDC_POSTGRES__DSN": self.dsn,
        }

    def cdc(self, *arguments: str) -> str:
        """Run a command in the project's folder; what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            raise OperationError(f"cdc {' '.join(arguments)} ended with {done.returncode}.\n{done.stdout}{done.stderr}")
        return done.stdout

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that goes on beside."""
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    # ---- using it -----------------------------------------------------------------------------------------

    def start(self, model: str) -> Worker:
        """Start the worker of a read model."""
        return self._started("worker", model)

    def supervise(self, model: str, **settings: str) -> Worker:
        """Start `cdc run` for a read model: workers for all of its builds."""
        return self._started("run", model, **settings)

    def _started(self, command: str, model: str, **settings: str) -> Worker:
        log = self.folder / "workers.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", command, self.alias(model)],
                cwd=self.folder, env={**self.environment, **settings}, stdout=out, stderr=out,
            )  # fmt: skip
        said = self.folder / ".cdc/workers" / f"{self.alias(model)}-v1.json"
        self.workers.append(Worker(process, said, log))
        return self.workers[-1]

    def alias(self, model: str) -> str:
        return f"{self.name}-{model}"

    def index(self, model: str) -> str:
        return f"{self.alias(model)}-v1"

    def indexed(self, model: str) -> int:
        """How many documents the read model's index has taken, as Elasticsearch counts it."""
        return self.indexed_in(self.index(model))

    def indexed_in(self, index: str) -> int:
        found = self.http.get(f"/{index}/_stats/indexing")
        primaries = found.json()["_all"]["primaries"] if found.is_success else {}
        return int(primaries.get("indexing", {}).get("index_total", 0))  # nothing is told of a shard that has not begun

    def watermark(self, model: str, part: str = "") -> int:
        """The position up to which the read model, or a part of it (`@0`), says that it is complete; -1 for none."""
        found = self.http.get(f"/cdc-checkpoints/_doc/{self.index(model)}{part}")
        marks = (found.json()["_source"].get("watermark") or {}) if found.is_success else {}
        return int(marks.get(self.name, {}).get("lsn", -1))

    def position(self) -> int:
        return truth.position(self.dsn)

    def reached(self, model: str, position: int, part: str = "") -> None:
        """Until the read model, or a part of it, is complete up to this position."""
        until(lambda: self.watermark(model, part) >= position, f"{model}{part} at {position}", pause=0.1)

    def fresh(self, model: str) -> None:
        """The read model as if it had never been: no mirror, an empty index."""
        for file in (self.folder / ".cdc").glob(f"*/{self.index(model)}*"):
            if file.is_file():  # a folder is the code of this build, which stays
                file.unlink()
        path = f"/{self.index(model)}"
        body = like(self.http, path)
        for gone in (path, f"/cdc-checkpoints/_doc{path}"):
            self.http.delete(gone)
        self.http.put(path, json=body).raise_for_status()

    def remove(self) -> None:
        """Nothing of it stays but its topics."""
        for worker in self.workers:
            worker.stop()
        if self.connected:
            self.cdc("connector", "delete", self.name, "--drop-slot", "--yes")
        for index in self.http.get(f"/{self.name}-*", params={"expand_wildcards": "all"}).json():
            self.http.delete(f"/{index}")
            self.http.delete(f"/cdc-checkpoints/_doc/{index}")
        self.http.close()
        with psycopg.connect(self.stack.postgres, autocommit=True) as db:
            db.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)".encode())


def like(client: httpx.Client, path: str) -> dict[str, Any]:
    """The body that makes an index anew, with its settings, mapping and aliases."""
    (found,) = client.get(path).raise_for_status().json().values()
    settings = {k: v for k, v in found["settings"]["index"].items() if k not in OWN}
    return {"settings": {"index": settings}, "mappings": found["mappings"], "aliases": found["aliases"]}


@dataclass
class Worker:
    """A worker's process, and what it says of itself."""

    process: subprocess.Popen[bytes]
    file: Path
    log: Path
    began: float = field(default_factory=time.time)

    @property
    def said(self) -> dict[str, Any]:
        """What the worker last said; empty before the first word of this process."""
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace").splitlines()[-20:]
            raise OperationError("The worker ended:\n" + "\n".join(tail))
        try:
            found: dict[str, Any] = json.loads(self.file.read_text())
        except FileNotFoundError:
            return {}
        return found if found["pid"] == self.process.pid else {}

    def reading_since(self) -> float:
        """When it was given its partitions: start and join lie before that."""
        return until(lambda: float(self.said.get("reading_since", 0)), "the worker's partitions", seconds=120)

    @property
    def cpu_of_start(self) -> float:
        """CPU seconds it had used when it was given its partitions."""
        return float(self.said.get("cpu_seconds_before", 0))

    @property
    def cpu(self) -> float:
        """CPU seconds since its start."""
        return round(cpu_seconds(self.process.pid), 2)

    @property
    def memory(self) -> int:
        """The most bytes it ever had."""
        return peak_memory(self.process.pid)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


async def ends(bootstrap: str, topics: list[str]) -> int:
    """Records in these topics, of one partition each."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        known = await consumer.topics()
        partitions = [TopicPartition(topic, 0) for topic in topics if topic in known]
        return sum((await consumer.end_offsets(partitions)).values()) if partitions else 0
    finally:
        await consumer.stop()
