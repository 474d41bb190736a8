"""Event documents in random stories: whatever comes, in whatever order, is the fold of the rows in their order."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from test_engine_stories import tell

from pipeline.engine import folding

EACH = 60


@pytest.mark.edge_case(3, 6, 9, 10, 11, 13, 14, 17, 18, 38, 40, 43, 44, 53)
@pytest.mark.parametrize("kind", ["sagas", "forgetting sagas"])
def test_any_story_of_events_ends_in_their_fold(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(EACH):
        bounds = Random(seed)
        monkeypatch.setattr(folding, "BATCH", bounds.choice((1, 2, 1000)))
        monkeypatch.setattr(folding, "INLINE", bounds.choice((1, 2, 5000)))
        tell(seed, tmp_path / str(seed), monkeypatch, kind=kind)
