"""Waiting until a projection has written what it is to write, by what its mirrors and its workers' files say."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from pipeline.authoring.projection import Projection, elasticsearch
from pipeline.authoring.shape import shape_of
from pipeline.bench.models.orders import OrderDocument
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.operations.passing import written
from pipeline.operations.status import mirror_file, status, worker_file
from pipeline.settings import Settings

STOPPED = {"state": "stopped", "at": time.time(), "pid": 1}
MOVED = {"state": "moved", "at": time.time(), "pid": 1}
RUNNING = {"state": "running", "at": time.time() + 3600, "pid": os.getpid()}


def dirty(settings: Settings, own: Projection[OrderDocument], *said: dict[str, object]) -> list[Mirror]:
    """Each partition has a document to write, and its worker said this last."""
    found = []
    for part, last in zip(own.parts, said, strict=True):
        for path in (mirror_file(settings, part), worker_file(settings, part)):
            path.parent.mkdir(parents=True, exist_ok=True)
        worker_file(settings, part).write_text(json.dumps(last))
        mirror = Mirror(str(mirror_file(settings, part)), lay_out(shape_of(OrderDocument)), owner=part)
        with mirror.checkpoint() as seq:
            sink = mirror.sink_id("elasticsearch:orders-v1")
            mirror.db.execute("INSERT INTO dirty(sink, k0, seq, since, low) VALUES(?, 1, ?, ?, 0)", (sink, seq, seq))
        found.append(mirror)
    return found


@pytest.mark.edge_case(38)
async def test_a_partition_that_changes_hands_is_waited_for(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    own = Projection(OrderDocument, (elasticsearch("orders"),), "orders", workers=2)
    mirrors = dirty(settings, own, RUNNING, MOVED)
    found = status(settings, [own]).projections[0]
    assert (found.state, found.attention) == ("running", [])
    asking = asyncio.create_task(written(settings, own, patience=20))
    await asyncio.sleep(0.5)
    assert not asking.done()
    for mirror in mirrors:
        with mirror.checkpoint():
            mirror.db.execute("DELETE FROM dirty")
    assert await asking == ""


@pytest.mark.parametrize(
    ("said", "patience"), [([STOPPED], 20), ([STOPPED, STOPPED], 20), ([STOPPED, MOVED], 20), ([RUNNING, STOPPED], 0.3)]
)
async def test_what_nobody_works_on_is_said(tmp_path: Path, said: list[dict[str, object]], patience: float) -> None:
    settings = Settings(state_dir=tmp_path)
    own = Projection(OrderDocument, (elasticsearch("orders"),), "orders", workers=len(said))
    dirty(settings, own, *said)
    async with asyncio.timeout(10):
        assert await written(settings, own, patience) == "it is stopped: start it, cdc run"
