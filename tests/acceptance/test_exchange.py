"""Several workers of one projection under load: one is killed, one stopped, one is a zombie, and all documents are right."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.elsewhere import machine
from tests.support.project import Project, until
from tests.support.web import expected

pytestmark = [pytest.mark.stack, pytest.mark.edge_case(38)]

ORDERS = (Path(__file__).parents[2] / "projections" / "orders.py").read_text()
SINKS = 'postgres("crm.orders"), redis("NAME:orders"), kafka("NAME.orders", partitions=3)'
SESSION = 10.0
PATIENCE = 180
"""Far longer than a takeover, which is printed."""


def _several_partitions(project: Project) -> None:
    path = project.folder / "connectors/debezium" / f"{project.name}.toml"
    path.write_text("partitions = 3\n" + path.read_text())


def _project(new_project: Callable[[str], Project], name: str, workers: int, also: str = "") -> Project:
    project = new_project(name)
    project.settings |= {"CDC_WORKER__SESSION_TIMEOUT": str(SESSION), "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "5"}
    project.before_connector = _several_partitions
    targets = f'[elasticsearch("orders"), {also.replace("NAME", project.name)}]' if also else 'elasticsearch("orders")'
    text = ORDERS.replace('to=elasticsearch("orders")', f"to={targets}, workers={workers}")
    text = "from pipeline import kafka, postgres, redis\n" + text if also else text
    # else renames reach so many of the orders that 200 transactions/s make that no Elasticsearch takes what they change
    project.create(orders=400, spread=50, projections=(), own={"orders": text})
    return project


class Torn(threading.Thread):
    """Reads the newest orders again and again, and keeps those that are charged something else than their lines."""

    def __init__(self, project: Project, load: Load) -> None:
        super().__init__(daemon=True)
        self._url, self._alias, self._load = project.endpoints.elasticsearch, f"{project.name}-orders", load
        self.over = threading.Event()
        self.read, self.found = 0, list[dict[str, Any]]()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while not self.over.wait(0.05):
                ids = [str(n) for n in range(max(1, self._load._next - 200), self._load._next)]
                answer = client.post(f"/{self._alias}/_mget", json={"ids": ids}).json()
                documents = [doc["_source"] for doc in answer["docs"] if doc.get("found")]
                self.read += len(documents)
                self.found += [d for d in documents if float(d["charged"]) != float(d["total"])]


@pytest.fixture
def load_of() -> Iterator[Callable[[Project], tuple[Load, Torn]]]:
    started: list[tuple[Load, Torn]] = []

    def start(project: Project) -> tuple[Load, Torn]:
        load = Load(project.dsn, rate=200, seconds=300)
        torn = Torn(project, load)
        started.append((load, torn))
        load.start()
        until(lambda: load.done > 20, 20, "the load runs")
        torn.start()
        return load, torn

    yield start
    for load, torn in started:
        torn.over.set()
        load.stop()


def _end(project: Project, load: Load, torn: Torn) -> None:
    load.stop()
    load.join(10)
    assert load.error is None
    project.cdc("wait", f"{project.name}-orders", "--now", "--timeout", "60")
    torn.over.set()
    torn.join(10)
    assert torn.read > 1000
    assert not torn.found, f"half a transaction: {torn.found[0]}"
    project.assert_equal()


def _taken_over(project: Project, part: int, worker: subprocess.Popen[bytes], since: float) -> float:
    """Seconds until this process has the partition, and what happened since is written."""
    pid = worker.pid

    def there() -> bool:
        assert worker.poll() is None, f"{pid} has ended: {worker.returncode}\n{project.log()}"
        record = project.record(part)
        newest = record["watermark"].get(project.name, {}).get("ts_ms", 0) / 1000
        return f":{pid}:" in record.get("owner", "") and newest > since

    until(there, PATIENCE, lambda: f"{pid} takes partition {part}: {project.record(part)}\n{project.log()}")
    return time.time() - since


def _both_home(project: Project, *workers: subprocess.Popen[bytes]) -> None:
    for part, worker in enumerate(workers):
        _taken_over(project, part, worker, 0)


def test_two_workers_killed_stopped_and_resumed_lose_nothing(
    new_project: Callable[[str], Project], load_of: Callable[[Project], tuple[Load, Torn]]
) -> None:
    """The second has a state folder of its own, as on another machine: both take over by state snapshots, and the log's rest."""
    project = _project(new_project, "it_exchange", 2)
    project.settings |= {"CDC_STATE__SNAPSHOTS": str(project.folder / "states"), "CDC_STATE__EVERY": "3"}
    elsewhere = str(project.folder / "elsewhere")
    one = project.start_worker(number=1)
    two = project.start_worker(number=2, CDC_STATE_DIR=elsewhere)
    _both_home(project, one, two)
    saved = (project.folder / "states").glob
    until(lambda: all(any(saved(f"*/*@{n}/*.json")) for n in (0, 1)), PATIENCE, "both have state snapshots")
    for left in (project.folder / ".cdc/mirrors").glob("*@1.*"):  # of the time before the second was there
        left.unlink()
    load, torn = load_of(project)

    two.kill()
    seconds = {"kill -9": _taken_over(project, 1, one, time.time())}
    two = project.start_worker(number=2, CDC_STATE_DIR=elsewhere)
    _both_home(project, one, two)

    one.terminate()
    seconds["SIGTERM"] = _taken_over(project, 0, two, time.time())
    assert one.wait(30) == 0
    one = project.start_worker(number=1)
    _both_home(project, one, two)

    two.send_signal(signal.SIGSTOP)
    seconds["SIGSTOP"] = _taken_over(project, 1, one, time.time())
    two.send_signal(signal.SIGCONT)
    assert two.wait(30) == 75, project.log()
    two = project.start_worker(number=2, CDC_STATE_DIR=elsewhere)
    _both_home(project, one, two)

    _end(project, load, torn)
    said = (project.folder / "worker.log").read_text()
    assert "there was no mirror: that of" in said, "the first takeover restores what the other had saved"
    print({how: round(took, 1) for how, took in seconds.items()})


def test_a_partition_that_waits_for_its_mirror_is_given_away_and_back(new_project: Callable[[str], Project]) -> None:
    """The group goes on dealing while a worker can't open what it was given; no lock of its own is in its way later."""
    project = _project(new_project, "it_exchange_wait", 2)
    project.settings |= {"CDC_STATE__SNAPSHOTS": str(project.folder / "states")}
    (project.folder / "states").write_text("no folder")

    def waits(part: int, times: int) -> bool:
        text = (project.folder / "worker.log").read_text()
        return len(re.findall(rf"orders-v1@{part}: The state snapshots .* can't be reached", text)) >= times

    one = project.start_worker(number=1)
    until(lambda: waits(0, 1) and waits(1, 1), PATIENCE, "the first waits for both")
    two = project.start_worker(number=2, CDC_STATE_DIR=str(project.folder / "elsewhere"))
    time.sleep(8)  # the group has dealt anew
    two.terminate()
    assert two.wait(20) == 0, "it ends while it waits, and leaves its partition"
    two = project.start_worker(number=2, CDC_STATE_DIR=str(project.folder / "elsewhere"))
    (project.folder / "states").unlink()
    _both_home(project, one, two)
    project.cdc("wait", f"{project.name}-orders", "--now", "--timeout", "60")
    project.assert_equal()


def test_two_machines_lose_nothing_when_the_network_between_them_and_the_services_is_cut(
    new_project: Callable[[str], Project], load_of: Callable[[Project], tuple[Load, Torn]]
) -> None:
    """First one machine is cut off whole, then it reaches all but Kafka: it could write, and must not."""
    project = _project(new_project, "it_exchange_net", 2)
    project.settings |= {"CDC_STATE__SNAPSHOTS": str(project.folder / "states"), "CDC_STATE__EVERY": "3"}
    up = project.endpoints
    kafka, *others = (int(re.findall(r":(\d+)", url)[-1]) for url in (up.kafka, up.elasticsearch, up.postgres))
    with machine(kafka, *others) as near, machine(kafka, *others) as far:
        one = project.start_worker(number=1, within=near.inside)

        def second() -> subprocess.Popen[bytes]:
            state = str(project.folder / "far")
            two = project.start_worker(number=2, within=far.inside, CDC_STATE_DIR=state)
            _both_home(project, one, two)
            return two

        two = second()
        load, torn = load_of(project)
        seconds = {}
        for how, cut, healed in (
            ("cut off", lambda: far.link("down"), lambda: far.link("up")),
            ("cut off from Kafka alone", lambda: far.silence(kafka), lambda: far.speak(kafka)),
        ):
            cut()
            seconds[how] = _taken_over(project, 1, one, time.time())
            healed()
            assert two.wait(PATIENCE) == 75, project.log()
            two = second()
        _end(project, load, torn)
        project.stop_workers()
    print({how: round(took, 1) for how, took in seconds.items()})


def test_four_workers_under_a_supervisor_lose_nothing_when_one_is_killed(
    new_project: Callable[[str], Project], load_of: Callable[[Project], tuple[Load, Torn]]
) -> None:
    """The killed one is started again, and gets its own partition and mirror back; `verify` says so of all."""
    project = _project(new_project, "it_exchange4", 4)
    project.start_run()
    for part in range(4):
        until(lambda part=part: project.record(part)["epoch"] > 0, PATIENCE, lambda: f"no partition\n{project.log()}")
    load, torn = load_of(project)
    print({"kill -9, started again": round(project.kill_the_owner(2), 1)})
    _end(project, load, torn)
    found = project.status()
    assert [part["documents"] > 0 for part in found["partitions"]] == [True] * 4
    assert found["documents"] == sum(part["documents"] for part in found["partitions"])
    project.cdc("verify", f"{project.name}-orders", "--all")


def test_two_workers_write_to_all_kinds_of_sinks_and_one_is_killed(
    new_project: Callable[[str], Project], load_of: Callable[[Project], tuple[Load, Torn]]
) -> None:
    """Each sink keeps a record of each partition; the killed one's goes on in all of them, and a reader waits for both."""
    project = _project(new_project, "it_exchange_sinks", 2, SINKS)
    project.start_run()
    for part in range(2):
        until(lambda part=part: project.record(part)["epoch"] > 0, PATIENCE, lambda: f"no partition\n{project.log()}")
    load, torn = load_of(project)
    project.kill_the_owner(1)
    time.sleep(5)  # under load, with deletes among it
    _end(project, load, torn)
    with psycopg.connect(project.dsn) as db:
        in_postgres = dict(db.execute("SELECT _id, document FROM crm.orders").fetchall())
        epochs = dict(db.execute("SELECT target, epoch FROM crm.cdc_checkpoints").fetchall())
    assert in_postgres == dict(truth.in_redis(project.endpoints.redis, f"{project.name}:orders"))
    assert in_postgres == expected(project)
    assert in_postgres == truth.in_kafka(project.endpoints.kafka, f"{project.name}.orders")
    assert epochs.keys() == {"orders_v1@0", "orders_v1@1"}
    project.cdc("verify", f"{project.name}-orders", "--all")

    refused = "ALTER TABLE crm.orders_v1 {} CONSTRAINT refuses_it"
    project.sql(refused.format("ADD") + " CHECK (_id <> '5') NOT VALID")
    project.sql("UPDATE shop.orders SET status = 'refused once' WHERE id = 5")
    until(lambda: _quarantined(project) == [[5]], 30, lambda: f"order 5 is refused\n{project.log()}")
    project.sql(refused.format("DROP"))
    project.cdc("quarantine", "retry", f"{project.name}-orders", "5")
    until(lambda: _quarantined(project) == [], 30, "it is no more")
    project.cdc("wait", f"{project.name}-orders", "--now", "--timeout", "60")
    project.cdc("verify", f"{project.name}-orders", "--all")


def _quarantined(project: Project) -> list[list[int]]:
    return [line["key"] for line in json.loads(project.cdc("quarantine", "list", "-o", "json").stdout)]
