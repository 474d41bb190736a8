"""A source whose log positions go back, and connectors made anew: which rows are newer, which are no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from world import World

from pipeline.engine import sweep
from pipeline.engine.sweep import held
from pipeline.events.envelope import UNCHANGED
from pipeline.events.sourcelog import SourceLog, parsed


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, "cards", Random(1), label="s1000/7/1")
    made.source.insert("shop.customers", {"id": 1, "name": "Ada", "deleted_at": None})
    made.source.insert("shop.customers", {"id": 2, "name": "Bob", "deleted_at": None})
    made.open()
    made.settle_everything()
    yield made
    made.close()


def mark(world: World) -> dict[str, object]:
    found: dict[str, object] = world.engine.watermark(world.ids["memory:0"])["shop"]
    return found


@pytest.mark.edge_case(16)
def test_a_position_that_goes_back_in_a_new_log_freezes_nothing(world: World) -> None:
    source = world.source
    for _ in range(5):
        source.update("shop.customers", (1,), name="later")
    world.settle_everything()
    before = mark(world)
    source.anew("s2000/7/2", back=5)
    source.update("shop.customers", (1,), name="restored")
    world.check_end()
    after = mark(world)
    assert after["lsn"] < before["lsn"]  # type: ignore[operator]
    assert (before["log"], after["log"]) == ("s1000/7/1", "s2000/7/2")
    assert world.sinks["memory:0"].get("1") == {"id": 1, "label": "restored"}


@pytest.mark.edge_case(12)
def test_a_row_that_the_restore_took_back_leaves_with_the_new_snapshot(world: World) -> None:
    source = world.source
    source.insert("shop.customers", {"id": 3, "name": "Cem", "deleted_at": None})
    world.settle_everything()
    assert world.sinks["memory:0"].get("3") is not None
    source.anew("s2000/7/2", back=1)
    source.elsewhere()
    world.check_end()
    assert world.sinks["memory:0"].get("3") is None
    assert world.engine.mirror.counters()["swept"] == 1


@pytest.mark.edge_case(12)
def test_a_row_that_came_without_a_label_leaves_with_the_first_snapshot_that_has_one(tmp_path: Path) -> None:
    world = World(tmp_path, "cards", Random(1))
    for id, name in ((1, "Ada"), (2, "Bob")):
        world.source.insert("shop.customers", {"id": id, "name": name, "deleted_at": None})
    world.open()
    world.settle_everything()
    world.source.anew("s2000/7/2", back=1)
    world.source.elsewhere()
    world.check_end()
    assert (world.sinks["memory:0"].get("1"), world.sinks["memory:0"].get("2")) == ({"id": 1, "label": "Ada"}, None)
    world.close()


def test_what_the_oldest_log_brought_is_not_looked_through_for_older_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read every row of a first load once more, in one checkpoint."""
    monkeypatch.delattr(sweep, "counts")
    world = World(tmp_path, "cards", Random(1), label="s1000/7/1")
    world.source.insert("shop.customers", {"id": 1, "name": "Ada", "deleted_at": None})
    world.open()
    world.settle_everything()
    assert mark(world)["log"] == "s1000/7/1"
    world.close()


@pytest.mark.edge_case(12)
def test_a_table_without_a_row_in_the_new_snapshot_is_kept_until_somebody_says_so(world: World) -> None:
    source, sink = world.source, world.sinks["memory:0"]
    before = mark(world)
    source.anew("s2000/7/2", back=2)
    source.elsewhere()
    world.read_everything()
    assert held(world.engine.mirror.get("held")) == (2000, {"shop.customers": (2, 2)})
    assert mark(world) == before, "nothing is claimed while rows are in doubt"
    assert world.engine.beginnings.sweep_held(mark=world.engine.loaded) == 0, "nobody has said so"
    world.settle_everything()
    assert held(world.engine.mirror.get("held")) is None
    assert sink.get("1") is None and sink.get("2") is None
    assert mark(world)["log"] == "s2000/7/2"


@pytest.mark.edge_case(12, 16)
def test_a_value_left_out_in_a_new_log_is_never_taken_from_a_row_of_the_one_before(tmp_path: Path) -> None:
    world = World(tmp_path, "cards", Random(1), partitions=2, label="s1000/7/1")
    source = world.source
    for id, name in ((1, "Ada"), (2, "Bob"), (4, "Dan")):
        source.insert("shop.customers", {"id": id, "name": name, "deleted_at": None})
    world.open()
    world.settle_everything()
    source.delete("shop.customers", (2,))  # nobody captures it
    source.anew("s2000/7/1")
    source.update("shop.customers", (1,), id=2, name=UNCHANGED)
    source.produce()
    # the new row's partition, where the snapshot has a row too, is read before that of the row it was
    (partition,) = (name for name, log in source.log.items() if any(key == b'{"id":2}' for _, key, _ in log))
    for label, records in source.runs(partition, world.at[partition], len(source.log[partition])):
        world.engine.receive(partition, records, label)
    world.at[partition] = len(source.log[partition])
    world.step()
    assert world.engine.applier.unknown == 1
    world.check_end()
    assert world.sinks["memory:0"].documents() == {
        "2": {"id": 2, "label": "Ada"}, "4": {"id": 4, "label": "Dan"}
    }  # fmt: skip
    world.close()


@pytest.mark.edge_case(13)
def test_what_a_restarted_connector_sends_again_in_the_same_log_is_a_repeat(world: World) -> None:
    source, sink = world.source, world.sinks["memory:0"]
    source.update("shop.customers", (1,), name="once")
    world.settle_everything()
    writes, counted = sink.writes, world.engine.mirror.counters().get("repeated", 0)
    source.restart(100)
    world.settle_everything()
    assert sink.writes == writes
    assert world.engine.mirror.counters()["repeated"] > counted


@pytest.mark.edge_case(16)
def test_a_connector_that_goes_on_in_a_new_log_sweeps_nothing(world: World) -> None:
    source = world.source
    source.label = "c2000/8/1"
    source.update("shop.customers", (1,), name="upgraded")
    world.check_end()
    assert world.sinks["memory:0"].get("2") == {"id": 2, "label": "Bob"}
    assert mark(world)["log"] == "c2000/8/1"


@pytest.mark.edge_case(16)
@pytest.mark.parametrize("kind", ["orders", "trees", "cards", "sales"])
def test_topics_with_many_logs_read_from_their_start_in_any_order_end_in_the_source(kind: str, tmp_path: Path) -> None:
    for seed in range(25):
        random, folder = Random(seed), tmp_path / str(seed)
        folder.mkdir()
        world = World(folder, kind, random, partitions=random.choice((1, 3)), label="s1000/7/1")
        for _ in range(random.randint(1, 4)):
            for _ in range(random.randint(0, 6)):
                world.commit()
            world.source.produce(random.randint(0, 100))
            world.new_log(restored=random.random() < 0.5)
        world.commit()
        try:
            world.open()
            world.check_end()
        except Exception as error:
            error.add_note(f"story {seed}")
            raise
        finally:
            world.close()


def test_a_label_is_read_back_and_anything_else_is_the_log_without_a_label() -> None:
    for log in (SourceLog(17, "741", "3", True), SourceLog(17, "741", "3", False), SourceLog()):
        assert parsed(log.label) == log
    assert parsed("nonsense") == SourceLog()
