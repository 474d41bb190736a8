"""Cases that are worth their own test, each a short story of the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from world import World

from pipeline.engine import mirror
from pipeline.errors import SchemaChanged
from pipeline.events.envelope import UNCHANGED

AT = "2026-01-01T00:00:00.000000Z"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path, "orders", Random(0))
    world.start()
    yield world
    world.close()


def order(id: int, **columns: Any) -> dict[str, Any]:
    return {"id": id, "customer_id": None, "status": "new", "note": None, "placed_at": AT, **columns}


def note(world: World, id: int) -> Any:
    found = world.sinks["memory:0"].get(str(id))
    return found and found["note"]


@pytest.mark.edge_case(3, 4)
def test_a_value_that_an_update_leaves_out_is_that_of_the_event_before_it_in_the_same_batch(world: World) -> None:
    with world.source.transaction():
        world.source.insert("shop.orders", order(21, note="long"))
        world.source.update("shop.orders", (21,), status="paid", note=UNCHANGED)
        world.source.update("shop.orders", (21,), status="sent", note=UNCHANGED)
    world.check_end()
    assert note(world, 21) == "long"


@pytest.mark.edge_case(3)
def test_a_value_that_an_update_leaves_out_is_the_mirrors(world: World) -> None:
    world.source.insert("shop.orders", order(21, note="long"))
    world.settle_everything()
    world.source.update("shop.orders", (21,), status="paid", note=UNCHANGED)
    world.check_end()
    assert note(world, 21) == "long"


@pytest.mark.edge_case(42)
def test_a_parent_written_later_in_the_log_does_not_make_its_child_stale(world: World) -> None:
    source = world.source
    source.insert("shop.customers", {"id": 7, "name": "Ada", "deleted_at": None})
    source.insert("shop.orders", order(21, customer_id=7))
    world.settle_everything()
    began = source.here()
    source.update("shop.customers", (7,), name="Ada L.")
    world.settle_everything()
    with source.transaction(began=began):
        source.update("shop.orders", (21,), status="written before the customer, committed after")
    world.check_end()


@pytest.mark.edge_case(46)
def test_a_value_that_becomes_null_is_null_in_the_document(world: World) -> None:
    world.source.insert("shop.orders", order(21, note="long"))
    world.settle_everything()
    world.source.update("shop.orders", (21,), note=None)
    world.check_end()
    assert world.sinks["memory:0"].get("21")["note"] is None


@pytest.mark.edge_case(32)
def test_a_used_column_that_is_gone_stops_the_worker_again_and_again_and_nothing_is_guessed(world: World) -> None:
    world.source.insert("shop.orders", order(21, note="long"))
    world.settle_everything()
    del world.source.rows["shop.orders"][21,]["note"]
    world.source.update("shop.orders", (21,), status="after the column was dropped")
    for _ in range(2):
        with pytest.raises(SchemaChanged, match=r"shop\.orders.*'note'.*raise its version"):
            world.read_everything()
        assert note(world, 21) == "long"
        world.crash()


@pytest.mark.edge_case(31)
def test_an_event_from_before_a_column_was_added_leaves_its_value_unknown_until_it_is_read_again(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, "orders", Random(0))
    try:
        old = order(21)
        del old["note"]
        world.source.insert("shop.orders", old)
        world.source.insert("shop.orders", order(22, note="added"))
        world.open()
        world.settle_everything()
        assert note(world, 21) is None and note(world, 22) == "added"
        assert world.sinks["memory:0"].get("21") is None, "pending, not null"
        world.source.rows["shop.orders"][21,]["note"] = "read again"
        world.source.elsewhere()
        world.source.incremental("shop.orders", (21,))
        world.check_end()
    finally:
        world.close()


@pytest.mark.edge_case(17)
def test_transactions_that_never_complete_wait_together_not_one_after_the_other(world: World) -> None:
    source = world.source
    for n in range(3):
        with source.transaction():
            source.insert("shop.orders", order(30 + n))
            source.insert("shop.customers", {"id": 30 + n, "name": "lost", "deleted_at": None})
    source.produce()
    engine, lost = world.engine, f"{source.topic('shop.customers')}/0"
    assert engine is not None
    for partition, log in source.log.items():
        if partition != lost:
            for label, records in source.runs(partition, world.at[partition], len(log)):
                engine.receive(partition, records, label)
    engine.step()
    assert engine.gate.overdue(100.0, 30.0) is None, "they have only begun to wait"
    assert engine.gate.overdue(129.0, 30.0) is None
    released = 0
    while stuck := engine.gate.overdue(131.0, 30.0):
        released += engine.give_up(stuck).transactions
    assert released == 3


@pytest.mark.edge_case(35)
def test_what_came_and_went_since_the_mirror_was_kept_is_in_no_document(tmp_path: Path) -> None:
    world = World(tmp_path, "orders", Random(0), loses=True)
    world.start()
    world.source.insert("shop.orders", order(21, note="as kept"))
    world.settle_everything()
    world.keep()
    world.source.insert("shop.orders", order(22))
    world.source.update("shop.orders", (21,), note="meanwhile")
    world.settle_everything()
    world.lose()
    world.source.delete("shop.orders", (22,))
    world.source.update("shop.orders", (21,), note="as kept")
    world.check_end()
    assert note(world, 21) == "as kept" and world.sinks["memory:0"].get("22") is None
    world.close()


def test_a_mirror_under_which_the_machine_went_down_is_doubted_and_one_that_was_closed_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(mirror, "BOOT", boot)
    world = World(tmp_path, "orders", Random(0))

    def doubted(after: str) -> bool:
        boot.write_text(after)
        world.open()
        return world.engine.mirror.get(f"doubted/{world.ids['memory:0']}") is not None

    assert not doubted("first")
    world.close()
    assert not doubted("second")
    left, reader = world.engine.mirror.db, world.reader  # not closed, as a power cut leaves it
    assert not doubted("second"), "only the process was killed"
    assert doubted("third")
    for each in (left, reader):
        each.close()
    world.close()
