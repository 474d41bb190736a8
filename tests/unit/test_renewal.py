"""A mirror whose sequence comes to its end begins it anew, and what is written after it is above all before."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from world import World, act

from pipeline.engine import marking
from pipeline.engine.revision import RENEW_AT


@pytest.mark.parametrize("first", range(0, 40, 20))
def test_any_story_across_the_end_of_the_sequence_ends_in_the_source(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marking, "FANOUT_INLINE", 1)
    for seed in range(first, first + 20):
        random, folder = Random(seed), tmp_path / str(seed)
        folder.mkdir()
        world = World(folder, random.choice(("orders", "trees", "cards", "sales")), random, sinks=2)
        world.start()
        shift(world, RENEW_AT - world.engine.mirror.seq - 5)
        world.crash()
        renewed = False
        try:
            for _ in range(60):
                act(world, random)
                renewed = renewed or world.engine.mirror.seq < RENEW_AT // 2
            while not renewed and world.engine.mirror.seq < RENEW_AT:
                world.commit()
                world.read_everything()
            world.crash()
            assert renewed or world.engine.mirror.seq < RENEW_AT // 2
            world.check_end()
        except Exception as error:
            error.add_note(f"story {seed}")
            raise
        finally:
            world.close()


def shift(world: World, by: int) -> None:
    """As if so many checkpoints had been made before."""
    db = world.engine.mirror.db
    tables = {table for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    for table in tables & {"dirty", "fanout", "marks", "released", "touched"}:
        names = {line[1] for line in db.execute(f"PRAGMA table_info({table})")}
        for column in names & {"seq", "since"}:
            db.execute(f"UPDATE {table} SET {column} = {column} + ?", (by,))
    db.execute("UPDATE meta SET value = value + ? WHERE name = 'seq'", (by,))
    world.engine.mirror.seq += by
