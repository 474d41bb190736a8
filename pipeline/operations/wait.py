"""Wait until a read model is complete up to a place in the source's log."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from pydantic import BaseModel, ConfigDict

from pipeline.errors import OperationError
from pipeline.events.sourcelog import parsed, position_of
from pipeline.ports import SinkRecord

BEAT = 0.1
_TOKEN: Final = re.compile(
    r"(?:([a-z][a-z0-9_-]*):)?(?:txid:(\d{1,19})|lsn:(\d{1,19}|[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:@([0-9]{1,20}/[0-9]{1,10}))?"
    r"|gtid:(\d{1,10}-\d{1,10}-\d{1,19}))"
)
Position = int | Mapping[str, int]
"""A place in the source's log; of documents over several sources, that of each connector."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a reader wants to see: a transaction, or all up to a place in the source's log.

    `identity` is the log's system id and timeline, where the token says so; `connector` the one whose source's log it is.
    """

    txid: int | None = None
    lsn: int | None = None
    identity: str = ""
    connector: str = ""


def token_of(text: str) -> Token:
    """`txid:742`, `lsn:0/16B3748`, `lsn:0/16B3748@7412345678/1`, MariaDB's `gtid:0-1-42`; raises OperationError.

    Each may begin with the connector whose source it is of: `crm:gtid:0-1-42`.
    """
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise OperationError(
            "That is no token: write txid:742, as pg_current_xact_id() told it, or lsn:0/16B3748, as pg_current_wal_insert_lsn()"
            " after the commit; MariaDB's is gtid:0-1-42, as @@last_gtid after it. Where a read model is of several"
            " databases, its connector comes first: crm:gtid:0-1-42."
        )
    connector, txid, lsn, identity, gtid = found.groups()
    if txid:
        return Token(txid=int(txid), connector=connector or "")
    return Token(lsn=position_of(lsn or gtid), identity=identity or "", connector=connector or "")


def tokens_of(text: str) -> tuple[Token, ...]:
    """Tokens with commas between them, each of another connector; raises OperationError."""
    found = tuple(token_of(part.strip()) for part in text.split(","))
    if len({token.connector for token in found}) < len(found):
        raise OperationError("Give one token for each connector: the later one says more.")
    return found


def of_connector(token: Token, connectors: Sequence[str], name: str) -> Token:
    """The token with the connector of read model `name` that it is of; raises OperationError where it may be of several."""
    if token.connector in connectors or (not token.connector and len(connectors) == 1):
        return replace(token, connector=token.connector or connectors[0])
    raise OperationError(
        f"{name} is of {' and '.join(connectors)}: say which of them a place is of, by --connector {connectors[-1]}, or at a"
        f" token's beginning, {connectors[-1]}:…"
    )


def places(connector: str, position: Position) -> Mapping[str, int]:
    """A position by connector; `connector`: whose one place is."""
    return {connector: position} if isinstance(position, int) else position


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
