"""Rebuilds on the real stack: a build beside the live one, killed at every step, cut over, rolled back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apsw
import httpx
import psycopg
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_rebuild")
    project.create()
    project.start_run()
    project.wait_for(truth.position(project.dsn))
    yield project


def name_of(shop: Project) -> str:
    return f"{shop.name}-orders"


def rebuild(shop: Project, *options: str, fault: str = "", code: int = 0) -> dict[str, Any]:
    """`cdc rebuild` to its end; what it says on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "rebuild", name_of(shop), *options, "-o", "json"],
        cwd=shop.folder, env={**shop.environment, "CDC_FAULT": fault}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}{done.stderr}\n{shop.log()}"
    found: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"said": done.stderr}
    return found


def standing(shop: Project) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shop.cdc("rebuild", "status", name_of(shop), "-o", "json").stdout)
    return found


def building(shop: Project) -> list[dict[str, Any]]:
    """The builds under way, as `cdc status` has them."""
    found: list[dict[str, Any]] = json.loads(shop.cdc("status", "-o", "json", check=False).stdout)["building"]
    return found


def following(shop: Project) -> str:
    """The id of the build that the next rebuild makes."""
    path = shop.folder / ".cdc" / "builds" / f"{name_of(shop)}.json"
    highest = json.loads(path.read_text())["highest"].get("1", 1) if path.exists() else 1
    return f"{name_of(shop)}-v1.{highest + 1}"


def seen(shop: Project) -> list[str]:
    """The indices that readers see."""
    return list(httpx.get(f"{shop.endpoints.elasticsearch}/_alias/{name_of(shop)}").json())


def there(shop: Project, index: str) -> bool:
    return httpx.head(f"{shop.endpoints.elasticsearch}/{index}").status_code == 200


def refresh_interval(shop: Project, index: str) -> str | None:
    settings = httpx.get(f"{shop.endpoints.elasticsearch}/{index}/_settings").json()
    found: str | None = settings[index]["settings"]["index"].get("refresh_interval")
    return found


def assert_right(shop: Project, index: str) -> None:
    found = truth.compare(shop.dsn, shop.endpoints.elasticsearch, index, truth.ORDERS)
    assert found.none, f"{index}: {found.counts()} {found.stale[:5]}\n{shop.log()}"


def current(shop: Project, index: str) -> None:
    """Wait until a build stands where the source is now."""
    position = truth.position(shop.dsn)

    def reached() -> bool:
        found = httpx.get(f"{shop.endpoints.elasticsearch}/cdc-checkpoints/_doc/{index}").json().get("_source") or {}
        return int((found.get("watermark") or {}).get(shop.name, {}).get("lsn", -1)) >= position

    until(reached, 60, f"{index} is at {position}\n{shop.log()}")


@dataclass
class Reader:
    """Reads one order that never changes, and counts all, as fast as it can."""

    shop: Project
    reads: int = 0
    wrong: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Reader:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self.shop.endpoints.elasticsearch, timeout=30) as client:
            while not self.stopping.is_set():
                one = client.get(f"/{name_of(self.shop)}/_doc/100000")
                count = client.get(f"/{name_of(self.shop)}/_count")
                self.reads += 1
                if one.status_code != 200 or one.json()["_source"]["status"] != "steady":
                    self.wrong.append(one.text)
                if count.status_code != 200 or count.json()["count"] < 150:
                    self.wrong.append(count.text)


@pytest.mark.edge_case(51)
@pytest.mark.parametrize("origin", ["mirror", "log", "source"])
def test_readers_see_no_gap_while_a_build_is_made_under_load_cut_over_and_rolled_back(
    shop: Project, origin: str
) -> None:
    name, new, (old,) = name_of(shop), following(shop), seen(shop)
    shop.sql("INSERT INTO shop.orders VALUES(100000, 1, 'steady', now(), 0) ON CONFLICT DO NOTHING")
    current(shop, old)
    httpx.post(f"{shop.endpoints.elasticsearch}/{name}/_refresh")
    load = Load(shop.dsn, rate=50, seconds=200)
    load._any_order = lambda: load._random.randint(1, 200)  # type: ignore[method-assign]
    load.start()
    try:
        with Reader(shop) as reader:
            done = rebuild(shop, "--from", origin)
            assert (done["live"], done["kept"], seen(shop)) == (new, old, [new])
            shop.cdc("rollback", name, "--yes")
            assert seen(shop) == [old]
            shop.cdc("rollback", name, "--yes")
            assert seen(shop) == [new]
    finally:
        load.stop()
        load.join(30)
    assert load.error is None and load.done > 100
    assert reader.reads > 20 and reader.wrong == []
    for index in (new, old):
        current(shop, index)
        assert_right(shop, index)
    assert refresh_interval(shop, new) is None
    assert shop.cdc("verify", name, "--all").returncode == 0


@pytest.mark.edge_case(51)
def test_a_rebuild_that_is_killed_at_any_step_goes_on(shop: Project) -> None:
    name, new, (old,) = name_of(shop), following(shop), seen(shop)
    for point in ("prepare", "copy", "load", "verify", "ready"):
        rebuild(shop, fault=f"rebuild-{point}", code=-signal.SIGKILL)
        assert seen(shop) == [old] and standing(shop)["phase"] == point
    assert refresh_interval(shop, new) is None
    shop.sql("UPDATE shop.orders SET status = 'meanwhile' WHERE id % 7 = 0")
    rebuild(shop, fault="rebuild-switched", code=-signal.SIGKILL)
    assert seen(shop) == [new] and standing(shop)["phase"] == "switch"
    done = rebuild(shop)
    assert done["live"] == new and done["phase"] is None
    current(shop, new)
    assert_right(shop, name)
    assert there(shop, old) and standing(shop)["kept"] == old


def test_the_worker_of_a_build_waits_for_its_mirror_and_goes_with_the_job(shop: Project) -> None:
    new, mirrors = following(shop), shop.folder / ".cdc" / "mirrors"
    rebuild(shop, fault="rebuild-prepare", code=-signal.SIGKILL)
    until(lambda: f"{new}: waits until the rebuild has made its mirror" in shop.log(), 30, "a worker that waits")
    assert not (mirrors / f"{new}.db").exists()
    shop.cdc("rebuild", "cancel", name_of(shop))
    until(lambda: f"{new}: no longer needed" in shop.log(), 30, "the worker ends")
    until(lambda: not there(shop, new), 40, "the build is dropped")
    assert not (mirrors / f"{new}.db").exists()


def test_a_worker_that_is_killed_while_it_loads_goes_on(shop: Project) -> None:
    name, new, before = name_of(shop), following(shop), standing(shop)["kept"]
    killed: list[int] = []
    said = shop.folder / ".cdc" / "workers" / f"{new}.json"
    documents = httpx.get(f"{shop.endpoints.elasticsearch}/{name}/_count").json()["count"]
    rate = max(20, documents // 15)

    def kill() -> None:
        def loading() -> bool:
            report = json.loads(said.read_text()) if said.exists() else {}
            return any(sink["applied"] >= 2 * rate for sink in report.get("sinks", {}).values())

        until(loading, 90, "the new build writes")
        assert refresh_interval(shop, new) == "-1"
        (far,) = until(lambda: [b for b in building(shop) if b["seconds_left"] is not None], 30, "an estimate")
        assert (far["id"], far["step"], far["unit"]) == (new, "writing", "documents")
        assert 0 < far["done"] <= far["total"] and rate / 4 < far["rate"] < 2 * rate
        pid = json.loads(said.read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    done = rebuild(shop, "--rate", str(rate))
    killer.join()
    assert killed and done["live"] == new
    current(shop, new)
    assert_right(shop, name)
    assert refresh_interval(shop, new) is None
    assert before is None or until(lambda: not there(shop, before), 40, "the build before the last is dropped")


@pytest.mark.edge_case(35)
def test_a_build_from_the_log_is_right_and_waits_for_the_cutover(shop: Project) -> None:
    name, new, (old,) = name_of(shop), following(shop), seen(shop)
    done = rebuild(shop, "--from", "log", "--no-cutover")
    assert (done["phase"], done["origin"], done["live"]) == ("ready", "log", old)
    assert seen(shop) == [old]
    assert [(b["id"], b["step"]) for b in building(shop)] == [(new, "ready to be cut over")]
    current(shop, new)
    assert_right(shop, new)
    shop.cdc("cutover", name, "--yes")
    assert seen(shop) == [new] and building(shop) == [] and standing(shop)["live"] == new


@pytest.mark.edge_case(51)
def test_a_build_from_the_source_that_is_killed_at_any_step_goes_on(shop: Project) -> None:
    name, new, (old,) = name_of(shop), following(shop), seen(shop)
    shop.sql("DELETE FROM shop.order_lines WHERE order_id = 40", "DELETE FROM shop.orders WHERE id = 40")
    for number, point in enumerate(("copying:2", "copied", "rebuild-copy", "rebuild-load")):
        options = ("--from", "source") if number == 0 else ()
        rebuild(shop, *options, fault=point, code=-signal.SIGKILL)
        assert seen(shop) == [old]
        shop.sql(f"UPDATE shop.orders SET status = 'at {number}' WHERE id % 7 = {number}")
    said = json.loads((shop.folder / ".cdc" / "workers" / f"{new}.json").read_text())
    os.kill(said["pid"], signal.SIGKILL)
    done = rebuild(shop)
    assert (done["live"], done["phase"], seen(shop)) == (new, None, [new])
    current(shop, new)
    assert_right(shop, name)


READINGS = """
from pipeline import Document, elasticsearch, projection

class Reading(Document, source="shop.readings"):
    id: int
    flags: bytes | None
    value: str

orders = projection(Reading, to=elasticsearch("ALIAS-orders"), name="ALIAS-orders")
"""


@pytest.mark.edge_case(51)
def test_tables_that_can_not_be_copied_are_read_by_their_connector_and_kills_are_no_matter(
    new_project: Callable[[str], Project],
) -> None:
    own = new_project("it_rebuild_read")
    own.create_with(
        "CREATE SCHEMA shop; CREATE TABLE shop.readings(id int PRIMARY KEY, flags varbit, value text NOT NULL);"
        " INSERT INTO shop.readings SELECT n, n::bit(9), 'at first' FROM generate_series(1, 300) n",
        ["shop.readings"], {"orders": READINGS},
    )  # fmt: skip
    own.start_run()
    own.wait_for(truth.position(own.dsn))
    new = following(own)
    own.sql("DELETE FROM shop.readings WHERE id = 40")
    for number, point in enumerate(("copy", "table", "read", "load")):
        options = ("--from", "source") if number == 0 else ()
        rebuild(own, *options, fault=f"rebuild-{point}", code=-signal.SIGKILL)
        own.sql(f"UPDATE shop.readings SET value = 'at {number}' WHERE id % 7 = {number}")
    said = json.loads((own.folder / ".cdc" / "workers" / f"{new}.json").read_text())
    os.kill(said["pid"], signal.SIGKILL)
    assert rebuild(own)["live"] == new
    current(own, new)
    query = "SELECT id::text, json_build_object('id', id, 'value', value) FROM shop.readings"
    with psycopg.connect(own.dsn) as db:
        expected = dict(db.execute(query).fetchall())
    documents = dict(truth.documents(own.endpoints.elasticsearch, new))
    assert {id: {k: d[k] for k in ("id", "value")} for id, d in documents.items()} == expected
    assert {d["flags"] is not None for d in documents.values()} == {True}


@pytest.mark.edge_case(51)
def test_a_build_that_differs_from_the_source_is_not_cut_over_and_can_be_cancelled(shop: Project) -> None:
    name, new, (old,) = name_of(shop), following(shop), seen(shop)
    db = apsw.Connection(str(shop.folder / ".cdc" / "mirrors" / f"{old}.db"))
    db.set_busy_timeout(10_000)
    db.execute("""UPDATE "shop.orders" SET status = 'wrong' WHERE id = 50""")
    db.close()
    refused = rebuild(shop, code=3)
    assert "different 50 status" in refused["said"] and "not cut over" in refused["said"]
    assert seen(shop) == [old] and there(shop, new)
    assert shop.cdc("cutover", name, "--yes", check=False).returncode == 1
    shop.cdc("rebuild", "cancel", name)
    until(lambda: not there(shop, new), 40, "the build is dropped")
    mirrors = shop.folder / ".cdc" / "mirrors"
    until(lambda: not list(mirrors.glob(f"{new}.db*")), 10, "its mirror is gone")
    assert standing(shop)["target"] is None
    assert shop.cdc("rebuild", "cancel", name, check=False).returncode == 1
    shop.sql("UPDATE shop.orders SET status = 'mended' WHERE id = 50")  # which mends the mirror
    current(shop, old)


@pytest.mark.edge_case(51)
def test_a_new_version_of_the_code_is_built_beside_the_old_one_which_stays_current(shop: Project) -> None:
    name, file = name_of(shop), shop.folder / "projections" / "orders.py"
    old = standing(shop)["live"]
    text = file.read_text().replace("    status: str\n", '    status: str\n    state: str = column("status")\n')
    text = text.replace("import Document,", "import Document, column,").replace(f'("{name}")', f'("{name}"), version=2')
    file.write_text(text)
    shop.stop_workers()
    shop.start_run()
    done = rebuild(shop, "--from", "mirror")
    assert (done["live"], done["kept"], seen(shop)) == (f"{name}-v2", old, [f"{name}-v2"])
    position = shop.sql("UPDATE shop.orders SET status = 'newer' WHERE id = 60")
    for index in (f"{name}-v2", old):
        current(shop, index)
    document = shop.document(60)
    assert document is not None and document["state"] == document["status"] == "newer"
    assert_right(shop, old)
    shop.cdc("rollback", name, "--yes")
    assert seen(shop) == [old] and position > 0
    assert_right(shop, name)


async def cut_short(bootstrap: str, topic: str) -> None:
    """Have Kafka forget all that a topic has, as its retention would."""
    async with AIOKafkaConsumer(topic, bootstrap_servers=bootstrap) as consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({tp: RecordsToDelete(before_offset=end) for tp, end in ends.items()})
    finally:
        await admin.close()


@pytest.mark.edge_case(35)
def test_a_lost_mirror_and_a_log_cut_short_are_named_and_mended_by_one_rebuild(
    new_project: Callable[[str], Project],
) -> None:
    lost = new_project("it_rebuild_lost")
    lost.create(orders=60)
    lost.start_run()
    lost.wait_for(truth.position(lost.dsn))
    lost.stop_workers()
    name = name_of(lost)
    for path in (lost.folder / ".cdc" / "mirrors").glob(f"{name}-v1.db*"):
        path.unlink()
    topics = [f"{lost.name}.shop.{table}" for table in ("orders", "order_lines")]
    for topic in topics:
        asyncio.run(cut_short(lost.endpoints.kafka, topic))
    run = lost.start_run()
    run.wait(60)
    assert "LogTruncated" in lost.status()["error"] and "cdc rebuild" in lost.status()["error"]
    rebuild(lost, fault="rebuild-copy", code=-signal.SIGKILL)
    job = standing(lost)
    assert job["origin"] == "source"
    assert "has not had its first load" in job["why"] and "what came before is gone" in job["why"]
    lost.start_run()
    done = rebuild(lost)
    assert (done["live"], seen(lost)) == (f"{name}-v1.2", [f"{name}-v1.2"])
    assert_right(lost, name)
