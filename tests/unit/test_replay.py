"""Kept history held against the mirror: it says nothing against a right one, whatever happened, and names wrong rows."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from world import World, act

from pipeline.engine.sql import quoted
from pipeline.operations.replay import Past, ReplayReport


def judged(world: World, folder: Path, random: Random | None = None, since: int = 0) -> ReplayReport:
    """The whole history of the topics, or what begins somewhere in each partition."""
    topics = {topic: table for topic, table in world.source.topics.items() if table in world.layout.tables}
    past = Past(world.layout, topics, Path(world.path), folder.with_suffix(".past"), since)
    try:
        for name, log in world.source.log.items():
            if name.rpartition("/")[0] not in topics:
                continue
            first = random.randint(0, len(log)) if random is not None else 0
            for label, records in world.source.runs(name, first, len(log)):
                past.add([(name, offset, key, value, label) for offset, key, value in records])
        report = ReplayReport(projection="p")
        past.judge(report)
    finally:
        past.close()
    assert report.events == (
        report.stale + report.equal + report.wrong + report.unplaced + report.waiting + report.undecodable
    )
    return report


@pytest.mark.edge_case(3)
@pytest.mark.parametrize("first", range(0, 80, 20))
def test_history_says_nothing_against_a_right_mirror_in_any_story(first: int, tmp_path: Path) -> None:
    equal = 0
    for seed in range(first, first + 20):
        random = Random(seed)
        (tmp_path / str(seed)).mkdir()
        label = random.choice(("", "s1000/7/1"))
        world = World(
            tmp_path / str(seed), random.choice(("orders", "trees", "cards")), random,
            consistency=random.choice(("transaction", "transaction", "row")), partitions=random.choice((1, 2)),
            by_row=bool(label), label=label,
        )  # fmt: skip
        try:
            world.start()
            for _ in range(random.randint(5, 80)):
                act(world, random)
            world.settle_everything()
            whole = judged(world, tmp_path / f"{seed}-whole")
            part = judged(world, tmp_path / f"{seed}-part", random)
        finally:
            world.close()
        assert (whole.wrong, part.wrong) == (0, 0), (seed, whole, part)
        assert part.events <= whole.events
        equal += whole.equal
    assert equal > 50


def test_rows_that_are_not_as_their_newest_event_says_are_named(tmp_path: Path) -> None:
    world = World(tmp_path, "orders", Random(7))
    try:
        world.start()
        for _ in range(30):
            world.commit(3)
        world.settle_everything()
        table = world.layout.tables["shop.orders"]
        changed, removed = [
            id for (id,) in world.engine.mirror.db.execute('SELECT id FROM "shop.orders" WHERE _commit > 0 LIMIT 2')
        ]
        column = next(name for name in table.columns if name not in table.key)
        world.engine.mirror.db.execute(f'UPDATE "shop.orders" SET {quoted(column)} = 424242 WHERE id = {changed}')
        world.engine.mirror.db.execute(f'DELETE FROM "shop.orders" WHERE id = {removed}')

        found = judged(world, tmp_path / "damaged")
        assert {(row.table, *row.key): row.kind for row in found.rows} == {
            ("shop.orders", changed): "different", ("shop.orders", removed): "missing",
        }  # fmt: skip
        assert judged(world, tmp_path / "later", since=1 << 55).events == 0
    finally:
        world.close()
