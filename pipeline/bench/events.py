"""What an event costs as its group has more of them: `python -m pipeline.bench.events`; the fold alone."""

from __future__ import annotations

import json
import sys
import time
from decimal import Decimal
from typing import Any, Final, Self

from msgspec import Struct
from pydantic import BaseModel

from pipeline import Document, EventDocument, group, on
from pipeline.authoring.event_shape import EventShape
from pipeline.authoring.shape import shape_of
from pipeline.engine.event_fold import EventFold

SIZES: Final = (10, 100, 1_000)


class Moved(Document, source="shop.moves"):
    id: int
    account_id: int
    type: str
    payload: dict[str, Any]


class Added(Struct):
    amount: Decimal


class Taken(BaseModel):
    amount: Decimal


class Account(EventDocument, of=Moved):
    account_id: int = group()
    balance: Decimal = Decimal(0)
    moves: int = 0

    @on(Added)
    def added(self, event: Added) -> Self:
        return self.but(balance=self.balance + event.amount, moves=self.moves + 1)

    @on(Taken)
    def taken(self, event: Taken) -> Self:
        return self.but(balance=self.balance - event.amount, moves=self.moves + 1)


def measure(size: int) -> float:
    """Microseconds of CPU that a document of so many events takes."""
    shape = shape_of(Account)
    assert isinstance(shape, EventShape)
    fold, rounds = EventFold(shape), max(5, 20_000 // size)
    events = ",".join(f'["{"Added" if n % 2 else "Taken"}",{{"amount":{n}.25}}]' for n in range(size))
    began = time.process_time()
    for _ in range(rounds):
        document = fold.document("[7]", f"[{events}]")
    cost = (time.process_time() - began) / rounds * 1e6
    assert json.loads(document or "{}")["moves"] == size, document
    return cost


def main() -> None:
    """The table on stderr, JSON on stdout."""
    found = {size: measure(size) for size in SIZES}
    for size, cost in found.items():
        sys.stderr.write(f"{size:>6,} events: {cost:.0f} µs of CPU a document\n")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
