"""Wait until a read model is complete up to a place in the source's log."""

from __future__ import annotations

import asyncio
import time

from pydantic import BaseModel, ConfigDict

from pipeline.ports import Sink

BEAT = 0.1


class Waited(BaseModel):
    """How a wait ended. `reached` says whether the watermark passed `lsn`; `watermark` is the last seen, None where none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sink: str
    connector: str
    lsn: int
    reached: bool
    watermark: int | None
    seconds: float


async def wait(sink: Sink, connector: str, lsn: int, *, patience: float) -> Waited:
    """Ask the sink's checkpoint record until it says that all up to `lsn` is written, or `patience` seconds are over."""
    began = time.monotonic()
    while True:
        record = await sink.record()
        mark = record.watermark.get(connector) if record is not None else None
        at = None if mark is None else int(mark["lsn"])
        passed = time.monotonic() - began
        if (at is not None and at >= lsn) or passed >= patience:
            return Waited(
                sink=sink.name, connector=connector, lsn=lsn, reached=at is not None and at >= lsn, watermark=at,
                seconds=round(passed, 3),
            )  # fmt: skip
        await asyncio.sleep(BEAT)
