"""A project of a user's own on the real stack: its folder, database, connector and workers, each with a name of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import httpx
import psycopg
from psycopg.conninfo import make_conninfo

from pipeline.demo import shop, truth
from pipeline.settings import Endpoints

REPOSITORY = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], Any], seconds: float, what: str | Callable[[], str]) -> Any:
    """The first truthy value; fails with `what`, as it is by then, when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not in {seconds:.0f} s: {what if isinstance(what, str) else what()}")


def _sent_to(name: str, also: str) -> str:
    """The repository's projection, sent to Elasticsearch and to the sinks `also`, wherever else it goes."""
    text = (REPOSITORY / ("tests/support" if name == "customers" else "projections") / f"{name}.py").read_text()
    targets = f'elasticsearch("{name}")'
    if also:
        targets = f"[{targets}, {also}]"
        text = text.replace("from pipeline import ", "from pipeline import kafka, postgres, redis, ", 1)
    return re.sub(r"\bto=(\[.*?\]|\w+\([^()]*\))", lambda _: f"to={targets}", text, flags=re.DOTALL)


@dataclass
class Project:
    """A shop with the repository's own projections, their aliases prefixed by the project's name."""

    name: str
    folder: Path
    endpoints: Endpoints
    password: str
    """The reference by which Connect finds the database's password."""
    settings: dict[str, str] = field(default_factory=dict)
    """Of its environment; an empty one takes out what is there otherwise."""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    before_connector: Callable[[Project], None] = lambda project: None
    """What has to be done between the connector's definition and the connector."""

    # ---- making it ----------------------------------------------------------------------------------------

    def create(
        self,
        *,
        orders: int = 200,
        spread: int = 1,
        projections: tuple[str, ...] = ("orders",),
        definition: str = "",
        more: bool = False,
        also: str = "",
        own: Mapping[str, str] | None = None,
    ) -> None:
        """The sample shop with the repository's own projections; `more`: with its outbox and tags; `also`: further targets;
        `own`: further projections' texts, by name; `spread`: so many times the customers and products, that a rename reaches few orders."""
        self._database()
        shop.create(self.dsn)
        customers, products = max(5, orders // 5) * spread, max(5, orders // 20) * spread
        shop.seed(self.dsn, customers=customers, products=products, orders=orders)
        if more:
            shop.seed_more(self.dsn)
        texts = {name: _sent_to(name, also) for name in projections}
        self._deploy(
            {
                name: text.replace(f'elasticsearch("{name}"', f'elasticsearch("{self.name}-{name}"')
                for name, text in (texts | dict(own or {})).items()
            },
            (*shop.TABLES, *(shop.MORE if more else ())),
            definition,
        )

    def create_with(
        self,
        schema: str,
        tables: Sequence[str],
        projections: Mapping[str, str],
        definition: str = "",
        *,
        pulled: bool = True,
    ) -> None:
        """Tables and projections of one's own; `ALIAS` in a projection stands for the project's prefix of an alias.

        `definition` is TOML added to the connector's; without `pulled` somebody else has pulled the catalogue.
        """
        self._database()
        self.sql(schema)
        self._deploy(
            {name: text.replace("ALIAS", self.name) for name, text in projections.items()}, tables, definition, pulled
        )

    def _database(self) -> None:
        with psycopg.connect(self.endpoints.postgres, autocommit=True) as db:
            db.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)".encode())
            db.execute(f"CREATE DATABASE {self.name}".encode())

    def _deploy(
        self, projections: Mapping[str, str], captured: Sequence[str], definition: str = "", pulled: bool = True
    ) -> None:
        for part in ("projections", "connectors/debezium"):
            (self.folder / part).mkdir(parents=True)
        for name, text in projections.items():
            self.write_projection(name, text)
        tables = ", ".join(f'"{table}"' for table in captured)
        (self.folder / "connectors/debezium" / f"{self.name}.toml").write_text(
            f'name = "{self.name}"\nkind = "postgres"\ntables = [{tables}]\n[database]\ndbname = "{self.name}"\npassword = "{self.password}"\n'
            + definition
        )
        self.before_connector(self)
        self.cdc("connector", "apply", self.name, "--yes")
        if pulled:
            self.cdc("tables", "pull", "--from", self.dsn)
        self.cdc("apply", "--yes")

    def write_projection(self, name: str, text: str) -> None:
        (self.folder / "projections" / f"{name}.py").write_text(text)

    @property
    def dsn(self) -> str:
        return make_conninfo(self.endpoints.postgres, dbname=self.name)

    @property
    def environment(self) -> dict[str, str]:
        up = self.endpoints
        own = {
            "CDC_PROJECT": self.name.replace("_", "-"),
            "CDC_STATE_DIR": str(self.folder / ".cdc"),
            "CDC_KAFKA__BOOTSTRAP": up.kafka,
            "CDC_CONNECT__URL": up.connect,
            "CDC_ELASTICSEARCH__URL": up.elasticsearch,
            "CDC_SOURCE__DSN": self.dsn,
            "CDC_POSTGRES__DSN": self.dsn,
            "CDC_REDIS__URL": up.redis,
        }
        return os.environ | {name: value for name, value in (own | self.settings).items() if value}

    # ---- using it -----------------------------------------------------------------------------------------

    def cdc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"cdc {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done

    def start_worker(
        self,
        name: str | None = None,
        *,
        fault: str = "",
        number: int = 1,
        within: Sequence[str] = (),
        **settings: str,
    ) -> subprocess.Popen[bytes]:
        """`within`: a command that runs it, on a machine elsewhere."""
        log = (self.folder / "worker.log").open("ab")
        process = subprocess.Popen(
            [*within, sys.executable, "-m", "pipeline.cli", "worker", name or f"{self.name}-orders", "--number", str(number)],
            cwd=self.folder, env={**self.environment, "CDC_FAULT": fault, **settings}, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        self.workers.append(process)
        return process

    def start_run(self, *names: str, **settings: str) -> subprocess.Popen[bytes]:
        """`cdc run`: the supervisor, and a worker for every build that needs one."""
        log = (self.folder / "worker.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "run", *names],
            cwd=self.folder, env={**self.environment, **settings}, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        self.workers.append(process)
        return process

    def stop_workers(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.workers:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.workers.clear()

    def log(self, lines: int = 40) -> str:
        path = self.folder / "worker.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def status(self, name: str = "orders") -> dict[str, Any]:
        report = json.loads(self.cdc("status", f"{self.name}-{name}", "-o", "json", check=False).stdout)
        found: dict[str, Any] = report["projections"][0]
        return found

    def said(self, name: str = "orders") -> dict[str, Any]:
        """What the worker last wrote of itself."""
        path = self.folder / ".cdc" / "workers" / f"{self.name}-{name}-v1.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def sink(self) -> dict[str, Any]:
        """What it said of its first sink."""
        found: dict[str, Any] = next(iter(self.said()["sinks"].values()))
        return found

    def mirror_offsets(self, name: str = "orders") -> dict[str, int]:
        """How far the mirror has read, by `topic/partition`."""
        with closing(self._mirror(name)) as db:
            return dict(db.execute("SELECT partition, next FROM offsets"))

    # ---- looking at it ------------------------------------------------------------------------------------

    def connection(self) -> psycopg.Connection[Any]:
        """A connection to the source that commits at the end of its block."""
        return psycopg.connect(self.dsn)

    def sql(self, *statements: str) -> int:
        """Run statements in one transaction; the source's position after its commit."""
        with psycopg.connect(self.dsn) as db:
            for statement in statements:
                db.execute(statement.encode())
        return truth.position(self.dsn)

    def damage(self, name: str, *statements: str, part: str = "") -> None:
        """Make a mirror wrong behind its worker's back; `part`: that of a partition, `@1`."""
        with closing(self._mirror(name, part)) as db:
            for statement in statements:
                db.execute(statement)

    def _mirror(self, name: str, part: str = "") -> apsw.Connection:
        db = apsw.Connection(str(self.folder / ".cdc" / "mirrors" / f"{self.name}-{name}-v1{part}.db"))
        db.set_busy_timeout(10_000)
        return db

    def record(self, part: int, name: str = "orders") -> dict[str, Any]:
        """A partition's record in Elasticsearch; epoch 0 before it has one."""
        url = f"{self.endpoints.elasticsearch}/cdc-checkpoints/_doc/{self.name}-{name}-v1@{part}"
        found: dict[str, Any] = httpx.get(url, timeout=10).json().get("_source", {"epoch": 0, "watermark": {}})
        return found

    def kill_the_owner(self, part: int, name: str = "orders", *, patience: float = 180) -> float:
        """Seconds until another process has the partition."""
        before = self.record(part, name)
        os.kill(int(before["owner"].split(":")[1]), signal.SIGKILL)
        killed = time.time()
        until(
            lambda: self.record(part, name)["epoch"] > before["epoch"],
            patience, lambda: f"{name}@{part} goes on\n{self.log()}",
        )  # fmt: skip
        return time.time() - killed

    def watermark(self, name: str = "orders") -> int:
        """The position up to which the read model says that it is complete, as stored with it."""
        return self.watermark_of(self.name, name)

    def watermark_of(self, connector: str, name: str = "orders") -> int:
        """The same, of a connector that is not named as the project is."""
        found = httpx.get(f"{self.endpoints.elasticsearch}/cdc-checkpoints/_doc/{self.name}-{name}-v1", timeout=10)
        if found.status_code != 200:
            return -1
        return int((found.json()["_source"].get("watermark") or {}).get(connector, {}).get("lsn", -1))

    def wait_for(self, lsn: int, *, seconds: float = 60, name: str = "orders") -> None:
        def reached() -> bool:
            return self.watermark(name) >= lsn

        try:
            until(reached, seconds, f"{self.name}-{name} at {lsn}, it is at {self.watermark(name)}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def document(self, key: int | str, name: str = "orders") -> dict[str, Any] | None:
        found = httpx.get(f"{self.endpoints.elasticsearch}/{self.name}-{name}/_doc/{key}", timeout=10).json()
        source: dict[str, Any] | None = found.get("_source")
        return source

    def compare(self, name: str = "orders", query: str = truth.ORDERS) -> truth.Difference:
        return truth.compare(self.dsn, self.endpoints.elasticsearch, f"{self.name}-{name}", query)

    def assert_equal(self, name: str = "orders", query: str = truth.ORDERS) -> None:
        """Every document is the source's, none is missing, none is too many."""
        found = self.compare(name, query)
        assert found.none, f"{found.counts()} {found.stale[:5]} {found.missing[:5]} {found.extra[:5]}\n{self.log()}"

    def remove(self) -> None:
        self.stop_workers()
        subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "connector", "delete", self.name, "--drop-slot", "--yes"],
            cwd=self.folder, env=self.environment, capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        with httpx.Client(base_url=self.endpoints.elasticsearch, timeout=30) as client:
            for index in client.get(f"/{self.name}-*", params={"expand_wildcards": "all"}).json():
                client.delete(f"/{index}")
                client.delete(f"/cdc-checkpoints/_doc/{index}")
