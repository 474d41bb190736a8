"""Random stories of a source, its connector, crashes and sinks, each step checked against SQL over the source's rows."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from world import World, act

from pipeline.engine import engine, marking, staging, transactions

EACH = 50
ANEW: dict[str, Any] = {"label": "s1000/7/1"}
"""Databases are restored, and connectors made anew."""
FAILED_ONCE: tuple[tuple[int, dict[str, Any]], ...] = (
    *((seed, {}) for seed in (324, 832, 1125, 1196, 1743, 1870, 15284, 61003, 100180)),
    *((seed, ANEW) for seed in (25431, 26817)),
    *((seed, {**ANEW, "by_row": by_row}) for seed, by_row in ((3330, False), (43325, True), (48045, True))),
)
"""Stories that found a defect, now mended."""


@pytest.mark.edge_case(3, 6, 9, 10, 11, 13, 14, 17, 18, 38, 40, 41, 43, 44, 53)
@pytest.mark.parametrize("first", range(0, 400, EACH))
def test_any_story_ends_in_the_source_and_never_claims_too_much(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(first, first + EACH):
        tell(seed, tmp_path / str(seed), monkeypatch)


@pytest.mark.edge_case(12, 13, 16)
@pytest.mark.parametrize("first", range(0, 200, EACH))
def test_any_story_with_restored_databases_and_new_connectors_ends_in_the_source(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(first, first + EACH):
        tell(seed, tmp_path / str(seed), monkeypatch, **ANEW)


@pytest.mark.edge_case(35)
@pytest.mark.parametrize("given", [{}, ANEW])
def test_any_story_in_which_the_mirror_goes_back_ends_in_the_source(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2 * EACH):
        tell(seed, tmp_path / str(seed), monkeypatch, loses=True, **given)


@pytest.mark.edge_case(44, 53)
@pytest.mark.parametrize(("seed", "given"), FAILED_ONCE)
def test_a_story_that_found_a_defect_ends_well(
    seed: int, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell(seed, tmp_path / str(seed), monkeypatch, **given)


@pytest.mark.edge_case(41, 45)
@pytest.mark.parametrize("kind", ["webs", "python webs"])
def test_any_story_of_tables_joined_in_every_way_ends_in_the_source(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(EACH):
        tell(seed, tmp_path / str(seed), monkeypatch, kind=kind)


def tell(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
    """One story: small bounds, so that few rows meet fan-outs, spilling and forgetting."""
    random = Random(seed)
    monkeypatch.setattr(marking, "FANOUT_INLINE", random.choice((1, 2, 1000)))
    monkeypatch.setattr(engine, "FANOUT_CHUNK", random.choice((1, 2, 2000)))
    monkeypatch.setattr(staging, "CHUNK", random.choice((1, 3, 5000)))
    remembered = random.choice((2, 50_000))
    monkeypatch.setattr(transactions, "REMEMBERED", remembered)
    monkeypatch.setattr(engine, "REMEMBERED", remembered)
    options: dict[str, Any] = {
        "kind": random.choice(("orders", "trees", "cards")),
        "consistency": random.choice(("transaction", "transaction", "transaction", "row")),
        "partitions": random.choice((1, 2, 3)),
        "sinks": random.choice((1, 2)),
        "staged_bytes": random.choice((64_000_000, 300, 2000)),
        "by_row": random.random() < 0.5,
        "gives_up": random.random() < 0.15,
    }
    options |= given
    snapshot = random.random() < 0.4
    folder.mkdir()
    world = World(folder, random=random, **options)
    if snapshot:
        for _ in range(random.randint(1, 6)):
            world.commit(3)
        world.source.snapshot()
    try:
        if not snapshot and random.random() < 0.7:
            world.start()
        else:
            world.open()
        for _ in range(random.randint(5, 150)):
            act(world, random)
        world.check_end()
    except Exception as error:
        error.add_note(f"story {seed}")
        raise
    finally:
        world.close()
