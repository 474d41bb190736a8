"""Rows read again from the source: any mirror that was made wrong comes right, whatever happens meanwhile."""

from __future__ import annotations

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from debezium import LONG
from world import World, act

from pipeline.engine import refresh
from pipeline.engine.refresh import key_text
from pipeline.engine.sql import quoted

Key = tuple[Any, ...]


def damage(world: World, random: Random) -> tuple[str, Key] | None:
    """Make one row of the mirror wrong: another value, none, not there, or one too many."""
    name = random.choice([*world.layout.tables])
    table, db = world.layout.tables[name], world.engine.mirror.db
    same = " AND ".join(f"{quoted(k)} = ?" for k in table.key)
    found = list(db.execute(f"SELECT * FROM {quoted(name)} ORDER BY random() LIMIT 1"))
    if not found:
        return None
    row = dict(zip([*table.columns, "_commit", "_order", "_generation"], found[0], strict=True))
    key = tuple(row[k] for k in table.key)
    kind = random.choice(("other", "unknown", "gone", "planted"))
    if kind == "gone":
        db.execute(f"DELETE FROM {quoted(name)} WHERE {same}", key)
    elif kind == "planted":
        row[table.key[-1]] = 900_000 + random.randrange(1000)
        key = tuple(row[k] for k in table.key)
        db.execute(f"INSERT OR IGNORE INTO {quoted(name)} VALUES({', '.join('?' * len(row))})", tuple(row.values()))
    elif LONG.get(name) in table.columns:
        value = "wrong" if kind == "other" else b"?"
        db.execute(f"UPDATE {quoted(name)} SET {LONG[name]} = ? WHERE {same}", (value, *key))
    recount(world)
    with world.engine.mirror.checkpoint() as seq:
        world.engine.applier.touch(table.number, [key], seq)
    return name, key


def recount(world: World) -> None:
    """The mirror counts its rows with unknown values as they change, and nobody told it of these changes."""
    applier = world.engine.applier
    found = sum(n for of in applier.sql for (n,) in applier.db.execute(of.all_unknown))
    with world.engine.mirror.checkpoint():
        applier._count_unknown(found - applier.unknown)


def ask(world: World, wanted: set[tuple[str, Key]], request: str = "operator") -> None:
    for table, key in wanted:
        world.engine.mirror.db.execute(
            "INSERT INTO refresh(source_table, key, request, asked) VALUES(?, ?, ?, ?)",
            (table, key_text(key), request, time.time()),
        )


def attempt(world: World, random: Random) -> bool:
    """What the worker's refresher does, with anything happening in between; False where nothing is due."""
    world.engine.refreshing.begin_anew()
    due = world.engine.refreshing.next(random.choice((1, 3, 500)))
    if not due.table:
        return False
    refreshing, source = world.engine.refreshing, world.source
    present = {key for key in due.places if key in source.rows[due.table]}
    lsn = source._lsn
    refreshing.expect(due.table, present)
    for key in present:
        if random.random() < 0.9:  # Debezium leaves out a row that changes while it reads
            source.incremental(due.table, key)
    for _ in range(random.randint(0, 30)):
        act(world, random)
    source.elsewhere()
    world.read_everything()
    absent = {key: place for key, place in due.places.items() if key not in present}
    if world.engine.refreshing is refreshing:  # else it crashed, and the next worker starts anew
        if absent and world.engine.mirror.newest_commit("shop") >= lsn:
            refreshing.remove(due.table, absent)
        refreshing.expect_nothing()
    return True


@pytest.mark.edge_case(3, 5, 10, 11, 12, 43)
@pytest.mark.parametrize("first", range(0, 120, 30))
def test_a_mirror_that_was_made_wrong_comes_right_in_any_story(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 30):
        story(seed, tmp_path / str(seed))


def story(seed: int, folder: Path) -> None:
    random = Random(seed)
    folder.mkdir()
    world = World(
        folder,
        random.choice(("orders", "trees", "cards")),
        random,
        consistency=random.choice(("transaction", "transaction", "row")),
        partitions=random.choice((1, 2)),
        by_row=False,
    )
    try:
        world.start()
        for _ in range(random.randint(5, 80)):
            act(world, random)
        world.settle_everything()
        world.given_up = True  # from here on documents are wrong for a while
        wrong = {found for _ in range(random.randint(1, 6)) if (found := damage(world, random)) is not None}
        for _ in range(random.randint(0, 20)):
            act(world, random)
        world.engine.prune()
        ask(world, wrong)
        for _ in range(200):
            if not attempt(world, random):
                break
        else:
            raise AssertionError("it asks for ever")
        outcomes = list(world.engine.mirror.db.execute("SELECT outcome, count(*) FROM refresh GROUP BY 1"))
        assert {o for o, _ in outcomes} <= {"refreshed", "removed", "absent"}, outcomes
        assert sum(n for _, n in outcomes) == len(wrong)
        world.check_end()
    except Exception as error:
        error.add_note(f"story {seed}")
        raise
    finally:
        world.close()


@pytest.fixture
def world(tmp_path: Path) -> Any:
    made = World(tmp_path, "orders", Random(1))
    made.start()
    for _ in range(30):
        made.commit(3)
    made.settle_everything()
    yield made
    made.close()


def a_key(world: World, table: str = "shop.orders") -> Key:
    return next(iter(world.source.rows[table]))


def open_requests(world: World) -> list[tuple[Any, ...]]:
    return list(world.engine.mirror.db.execute("SELECT key, attempts, outcome, error FROM refresh"))


@pytest.mark.edge_case(5, 12)
def test_a_row_that_came_back_after_the_source_was_asked_is_not_deleted(world: World) -> None:
    key = a_key(world)
    row = dict(world.source.rows["shop.orders"][key])
    world.source.delete("shop.orders", key)
    ask(world, {("shop.orders", key)})
    due = world.engine.refreshing.next(500)
    assert due.places[key] is not None
    world.source.insert("shop.orders", row)
    world.read_everything()
    assert world.engine.refreshing.remove("shop.orders", due.places) == []
    assert open_requests(world)[0][2] is None
    world.check_end()


def test_the_gap_between_two_attempts_doubles_up_to_an_hour(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000.0]
    monkeypatch.setattr(refresh.time, "time", lambda: now[0])
    ask(world, {("shop.orders", a_key(world))})
    gaps = []
    for _ in range(12):
        assert world.engine.refreshing.next(500).places
        before = now[0]
        while not world.engine.refreshing.next(500).places and now[0] < before + 10_000:
            (due,) = next(world.engine.mirror.db.execute("SELECT due FROM refresh"))
            now[0] = due - 0.001
            assert not world.engine.refreshing.next(500).table
            now[0] = due
            break
        gaps.append(now[0] - before)
    assert gaps[:4] == [10, 20, 40, 80] and gaps[-1] == 3600


def test_a_column_that_the_connector_never_sends_is_asked_for_ever_more_rarely_and_named(world: World) -> None:
    key = a_key(world)
    del world.source.rows["shop.orders"][key]["note"]
    db = world.engine.mirror.db
    db.execute("""UPDATE "shop.orders" SET note = x'3f' WHERE id = ?""", key)
    recount(world)
    world.engine.prune()
    assert world.engine.refreshing.next(500).places
    world.engine.refreshing.expect("shop.orders", [key])
    world.source.incremental("shop.orders", key)
    world.read_everything()
    assert open_requests(world) == [(json.dumps(list(key)), 10, None, "the connector does not send shop.orders.note")]
    assert not world.engine.refreshing.next(500).places


def test_a_million_rows_that_are_due_cost_no_more_than_the_few_that_are_taken(world: World) -> None:
    db = world.engine.mirror.db
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)"
        " INSERT INTO refresh(source_table, key, request, asked) SELECT 'shop.orders', json_array(i), 'x', 0 FROM n"
    )
    plan = " ".join(row[-1] for row in db.execute(f"EXPLAIN QUERY PLAN {refresh.DUE}", (1, "shop.orders", 5)))
    assert "refresh_open (due<?)" in plan and "TEMP B-TREE" not in plan
    assert len(world.engine.refreshing.next(5).places) == 5
