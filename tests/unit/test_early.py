"""A first load of one table is written while it comes; everything else waits for its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from test_engine_stories import tell
from world import World


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """A worker that has read 40 customers of a snapshot that goes on."""
    made: list[World] = []

    def begin(kind: str = "cards", label: str = "") -> World:
        world = World(tmp_path, kind, Random(0), label=label)
        made.append(world)
        for id in range(100):
            world.source.insert("shop.customers", {"id": id, "name": f"customer {id}", "deleted_at": None})
        world.source.snapshot()
        world.open()
        read(world, 40)
        return world

    yield begin
    for world in made:
        world.close()


def read(world: World, most: int) -> None:
    """Some more of the customers are read and applied."""
    world.source.produce()
    topic = next(t for t, table in world.source.topics.items() if table == "shop.customers") + "/0"
    for label, records in world.source.runs(topic, world.at[topic], world.at[topic] + most):
        world.engine.receive(topic, records, label)
        world.at[topic] += len(records)
    world.engine.step()


def write(world: World, limit: int = 1000) -> int:
    """What may be written is; how many documents."""
    before = world.sinks["memory:0"].writes
    world.take(limit)
    world.write(lambda: "applied")
    world.settle()
    return world.sinks["memory:0"].writes - before


def test_rows_of_a_snapshot_are_written_while_it_goes_on_and_each_once(load: Callable[..., World]) -> None:
    world = load()
    assert world.engine.catching_up is not None and write(world) == 40
    read(world, 30)
    assert write(world, 10) == 10
    world.crash()
    read(world, 30)
    assert write(world) == 50
    world.check_end()
    assert world.sinks["memory:0"].writes == 100


def test_nothing_is_claimed_before_the_load_has_ended(load: Callable[..., World]) -> None:
    world = load()
    world.commit()
    write(world)
    assert world.engine.acknowledged(world.ids["memory:0"]) == ({}, {})


@pytest.mark.parametrize("change", ["update", "delete", "truncate"])
def test_a_change_during_the_load_holds_all_until_its_end(load: Callable[..., World], change: str) -> None:
    world = load()
    assert write(world) == 40
    arguments: dict[str, Any] = {"name": "changed"} if change == "update" else {}
    getattr(world.source, change)("shop.customers", *(() if change == "truncate" else ((7,),)), **arguments)
    read(world, 1000)
    assert not world.engine.may_flush and not world.reader.take(world.ids["memory:0"], 10, 1).keys
    world.crash()
    assert not world.engine.may_flush
    world.check_end()


def test_what_another_snapshot_during_the_load_no_longer_has_goes(load: Callable[..., World]) -> None:
    world = load(label="s1000/7/1")
    assert write(world) == 40
    with world.source.transaction():
        world.source.delete("shop.customers", (7,))
    world.source.anew("s2000/7/1")  # with a slot of its own: the delete was never sent
    world.source.elsewhere()
    read(world, 1000)
    assert write(world) == 99
    world.check_end()
    assert world.sinks["memory:0"].get("7") is None


def test_joined_documents_wait_for_the_end_of_the_load(load: Callable[..., World]) -> None:
    world = load("trees")
    assert not world.engine.may_flush
    world.check_end()


@pytest.mark.parametrize("first", range(0, 200, 50))
@pytest.mark.parametrize("label", ["", "s1000/7/1"])
def test_any_story_of_a_first_load_of_one_table_ends_in_the_source(
    label: str, first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(first, first + 50):
        tell(seed, tmp_path / str(seed), monkeypatch, kind="cards", label=label, snapshot=True)
