"""Wait until a read model is complete up to a place in the source's log."""

from __future__ import annotations

import asyncio
import time

from pydantic import BaseModel, ConfigDict

from pipeline.events.sourcelog import parsed
from pipeline.ports import Sink

BEAT = 0.1


class Waited(BaseModel):
    """How a wait ended. `reached` says whether the watermark passed `lsn`; `watermark` is the last seen, None where none.

    `log` is the label of the source log that the watermark is in.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sink: str
    connector: str
    lsn: int
    reached: bool
    watermark: int | None
    log: str = ""
    seconds: float


async def wait(
    sink: Sink, connector: str, lsn: int, *, patience: float, log: str | None = None, searchable: bool = False
) -> Waited:
    """Ask the sink's checkpoint record until it says that all up to `lsn` is written, or `patience` seconds are over.

    `log` is the label of the source log that `lsn` is in: a restored source begins a new one, in which positions may be
    below those already read. None: not known, so positions alone are compared. `searchable`: searches find it, too; they
    are behind reads by id until the sink refreshes.
    """
    began = time.monotonic()
    while True:
        record = await sink.record()
        mark = record.watermark.get(connector) if record is not None else None
        at = None if mark is None else int(mark["lsn"])
        label = str(mark.get("log", "")) if mark is not None else ""
        reached = at is not None and _place(label if log is not None else "", at) >= _place(log or "", lsn)
        passed = time.monotonic() - began
        if reached or passed >= patience:
            if reached and searchable:
                await sink.refresh()
            return Waited(
                sink=sink.name, connector=connector, lsn=lsn, reached=reached, watermark=at, log=label,
                seconds=round(passed, 3),
            )  # fmt: skip
        await asyncio.sleep(BEAT)


def _place(log: str, lsn: int) -> tuple[int, int]:
    return parsed(log).number, lsn
