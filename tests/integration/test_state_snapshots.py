"""A machine is lost with its mirrors, and Kafka's log no longer has everything: the next one goes on from a state snapshot."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def saved(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_state")
    project.settings = {"CDC_STATE__SNAPSHOTS": str(project.folder / "states"), "CDC_STATE__EVERY": "0.5"}
    project.create(orders=60)
    yield project


def states(shop: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shop.cdc("state", "list", "-o", "json").stdout)
    return found


def offsets_in(shop: Project, state: dict[str, Any]) -> dict[str, int]:
    """Where a state snapshot's mirror stands in Kafka's log."""
    packed = shop.folder / "states" / shop.environment["CDC_PROJECT"] / state["build"] / f"{state['name']}.db.gz"
    path = shop.folder / "looked-into.db"
    path.write_bytes(gzip.decompress(packed.read_bytes()))
    db = apsw.Connection(str(path))
    try:
        return dict(db.execute("SELECT partition, next FROM offsets"))
    finally:
        db.close()


async def cut_short(bootstrap: str, offsets: dict[str, int]) -> None:
    """Have Kafka forget what lies before, as its retention would."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records(
            {
                TopicPartition(topic, int(number)): RecordsToDelete(before_offset=offset)
                for (topic, _, number), offset in ((p.rpartition("/"), n) for p, n in offsets.items())
            }
        )
    finally:
        await admin.close()


def kill(shop: Project, run: subprocess.Popen[bytes]) -> None:
    """The machine goes, and what was on its disk."""
    worker = shop.status()["pid"]
    for pid in (run.pid, worker):
        os.kill(pid, signal.SIGKILL)
    run.wait(20)
    until(lambda: not Path(f"/proc/{worker}").exists(), 20, "the worker is gone")
    for path in (shop.folder / ".cdc" / "mirrors").iterdir():
        path.unlink()


@pytest.mark.edge_case(35)
def test_a_lost_machine_is_replaced_under_load_though_the_log_is_cut_short(saved: Project) -> None:
    run = saved.start_run()
    saved.wait_for(truth.position(saved.dsn))
    load = Load(saved.dsn, rate=50, seconds=60)
    load.start()
    try:
        until(lambda: load.done > 30, 30, "a load")
        before = states(saved)
        until(lambda: (now := states(saved)) and now[0] not in before, 30, "a state snapshot under load")
        newest = states(saved)[0]
        place = saved.folder / "states" / saved.environment["CDC_PROJECT"] / newest["build"]
        kept = {path: path.read_bytes() for path in place.glob(f"{newest['name']}.*")}
        # comes and goes after the state snapshot: its document is there, and whoever takes over never saw its row
        saved.sql("INSERT INTO shop.orders VALUES(100001, 9, 'new', now(), 0)")
        until(lambda: saved.document(100001), 30, "its document")
        kill(saved, run)
        shutil.rmtree(place)
        place.mkdir()
        for path, data in kept.items():
            path.write_bytes(data)
        saved.sql("DELETE FROM shop.orders WHERE id = 100001")
        asyncio.run(cut_short(saved.endpoints.kafka, offsets_in(saved, newest)))
        done = load.done
        until(lambda: load.done > done + 30, 30, "changes meanwhile")
        saved.start_run()
        until(lambda: "is restored" in saved.log(), 30, "the mirror is back")
        done = load.done
        until(lambda: load.done > done + 30, 30, "changes afterwards")
    finally:
        load.stop()
        load.join(30)
    assert load.error is None
    saved.wait_for(truth.position(saved.dsn))
    saved.assert_equal()
    assert saved.cdc("verify", f"{saved.name}-orders", "--all").returncode == 0
    assert len(states(saved)) <= 4  # one may be on its way


def test_status_says_until_when_the_state_is_saved_and_one_can_be_taken_by_hand(saved: Project) -> None:
    first = until(lambda: saved.status()["saved_at"], 30, "a state snapshot")
    until(lambda: saved.status()["saved_at"] > first, 30, "the next look")
    (taken,) = json.loads(saved.cdc("state", "take", f"{saved.name}-orders", "-o", "json").stdout)
    assert taken["build"] == f"{saved.name}-orders-v1" and taken["name"] in [s["name"] for s in states(saved)]


def test_what_is_erased_is_in_no_state_snapshot(saved: Project) -> None:
    with psycopg.connect(saved.dsn, autocommit=True) as db:
        db.execute("ALTER TABLE shop.orders DROP CONSTRAINT orders_customer_id_fkey")
    saved.wait_for(saved.sql("DELETE FROM shop.customers WHERE id = 4"))
    saved.cdc("state", "take", f"{saved.name}-orders")
    before = {state["name"] for state in states(saved)}
    dry = json.loads(saved.cdc("erase", "shop.customers", "4", "--dry-run", "-o", "json").stdout)["places"]
    (place,) = [place for place in dry if place["kind"] == "state snapshot"]
    assert (place["where"], place["after"]) == (f"{saved.name}-orders-v1", None) and place["before"] >= 1
    done = json.loads(saved.cdc("erase", "shop.customers", "4", "--yes", "-o", "json").stdout)["places"]
    (place,) = [place for place in done if place["kind"] == "state snapshot"]
    assert place["after"] == 0 and before.isdisjoint(state["name"] for state in states(saved))


def test_a_storage_that_is_away_is_waited_for_before_anything_is_read(saved: Project) -> None:
    name = f"{saved.name}-orders"
    saved.stop_workers()
    for path in (saved.folder / ".cdc" / "mirrors").iterdir():
        path.unlink()
    place = saved.folder / "states"
    place.rename(saved.folder / "elsewhere")
    place.write_text("no folder")
    saved.start_run()
    until(lambda: "can't be reached" in (saved.status()["error"] or ""), 30, "the storage is said to be away")
    assert not (saved.folder / ".cdc" / "mirrors" / f"{name}-v1.db").exists()
    found = json.loads(saved.cdc("doctor", "-o", "json", check=False).stdout)
    assert [f["level"] for f in found if f["subject"] == "state snapshots"] == ["error"]
    place.unlink()
    (saved.folder / "elsewhere").rename(place)
    saved.wait_for(saved.sql("UPDATE shop.orders SET status = 'back' WHERE id = 9"))
    saved.assert_equal()
    found = json.loads(saved.cdc("doctor", "-o", "json", check=False).stdout)
    assert [f["level"] for f in found if f["subject"] == "state snapshots"] == ["ok"]


def test_the_state_snapshots_of_a_build_go_with_it(saved: Project) -> None:
    name = f"{saved.name}-orders"
    saved.cdc("rebuild", name, "--keep", "0")
    until(lambda: {state["build"] for state in states(saved)} == {f"{name}-v1.2"}, 40, "only those of the new build")
    assert saved.cdc("state", "drop", f"{name}-v1", "--yes", check=False).returncode == 1
    saved.stop_workers()
    saved.cdc("state", "drop", f"{name}-v1.2", "--yes")
    assert states(saved) == []
