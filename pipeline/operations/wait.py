"""Wait until a read model is complete up to a place in the source's log."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.errors import OperationError
from pipeline.events.sourcelog import parsed, position_of
from pipeline.ports import SinkRecord

BEAT = 0.1
_TOKEN: Final = re.compile(
    r"txid:(\d{1,19})|lsn:(\d{1,19}|[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:@([0-9]{1,20}/[0-9]{1,10}))?"
    r"|gtid:(\d{1,10}-\d{1,10}-\d{1,19})"
)


@dataclass(frozen=True, slots=True)
class Token:
    """What a reader wants to see: a transaction, or all up to a place in the source's log.

    `identity` is the log's system id and timeline, where the token says so.
    """

    txid: int | None = None
    lsn: int | None = None
    identity: str = ""


def token_of(text: str) -> Token:
    """`txid:742`, `lsn:0/16B3748`, `lsn:0/16B3748@7412345678/1`, MariaDB's `gtid:0-1-42`; raises OperationError."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise OperationError(
            "That is no token: write txid:742, as pg_current_xact_id() told it, or lsn:0/16B3748, as pg_current_wal_insert_lsn()"
            " after the commit; MariaDB's is gtid:0-1-42, as @@last_gtid after it."
        )
    if found[1]:
        return Token(txid=int(found[1]))
    if found[4]:
        return Token(lsn=position_of(found[4]))
    return Token(lsn=position_of(found[2]), identity=found[3] or "")


class Watched(Protocol):
    """What a wait asks: a sink, or what keeps its record at hand."""

    @property
    def name(self) -> str: ...

    async def record(self) -> SinkRecord | None: ...

    async def refresh(self) -> None: ...


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
    sink: Watched,
    connector: str,
    lsn: int,
    *,
    patience: float,
    log: str | None = None,
    searchable: bool = False,
    beat: float = BEAT,
) -> Waited:
    """Ask the sink's checkpoint record until it says that all up to `lsn` is written, or `patience` seconds are over.

    `log` is the label of the source log that `lsn` is in: a restored source begins a new one, in which positions may be
    below those already read. None: not known, so positions alone are compared. `searchable`: searches find it, too; they
    are behind reads by id until the sink refreshes. `beat`: seconds from one question to the next.
    """
    began = time.monotonic()
    while True:
        record = await sink.record()
        mark = record.watermark.get(connector) if record is not None else None
        at = None if mark is None else int(mark["lsn"])
        label = str(mark.get("log", "")) if mark is not None else ""
        reached = passed_by(mark, lsn, log)
        passed = time.monotonic() - began
        if reached or passed >= patience:
            if reached and searchable:
                await sink.refresh()
            return Waited(
                sink=sink.name, connector=connector, lsn=lsn, reached=reached, watermark=at, log=label,
                seconds=round(passed, 3),
            )  # fmt: skip
        await asyncio.sleep(beat)


def passed_by(mark: Mapping[str, Any] | None, lsn: int, log: str | None) -> bool:
    """Whether a watermark's mark is at or past a position; `log` as in `wait`."""
    if mark is None:
        return False
    label = str(mark.get("log", "")) if log is not None else ""
    return _place(label, int(mark["lsn"])) >= _place(log or "", lsn)


def _place(log: str, lsn: int) -> tuple[int, int]:
    return parsed(log).number, lsn
