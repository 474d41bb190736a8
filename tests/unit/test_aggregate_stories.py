"""Aggregates in random stories, each document checked against SQL's GROUP BY over the source's rows."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from test_engine_stories import tell

from pipeline.engine import folding

EACH = 40


@pytest.mark.edge_case(3, 6, 9, 10, 11, 13, 14, 17, 18, 38, 40, 41, 43, 44, 53)
@pytest.mark.parametrize("kind", ["sales", "items"])
@pytest.mark.parametrize("first", range(0, 80, EACH))
def test_any_story_of_an_aggregate_ends_in_what_group_by_says(
    first: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(first, first + EACH):
        bounds = Random(seed)
        monkeypatch.setattr(folding, "BATCH", bounds.choice((1, 2, 1000)))
        monkeypatch.setattr(folding, "INLINE", bounds.choice((1, 2, 5000)))
        tell(seed, tmp_path / str(seed), monkeypatch, kind=kind)
