"""Cases that are worth their own test, each a short story of the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from world import World

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
