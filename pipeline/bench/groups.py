"""What an update of an aggregate costs as its group grows: `python -m pipeline.bench.groups`; the engine alone."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final

from pipeline import Aggregate, Document, collect, count, count_distinct, group, latest, maximum, minimum, total
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.ports import APPLIED
from pipeline.testing.source import SourceModel

TABLE: Final = "shop.payments"
SIZES: Final = (10, 1_000, 100_000)
UPDATES: Final = 4_000
A_POLL: Final = 10
"""Updates in one checkpoint, of as many rows."""


class Payment(Document, source=TABLE):
    id: int
    customer_id: int
    country: str
    amount: Decimal
    paid_at: str


class Payments(Aggregate, of=Payment):
    """Every measure there is, but the average, which is a total and a count."""

    country: str = group()
    payments: int = count()
    customers: int = count_distinct("customer_id")
    revenue: Decimal = total("amount")
    least: Decimal = minimum("amount")
    most: Decimal = maximum("amount")
    last_amount: Decimal = latest("amount", by="paid_at")
    newest: tuple[int, ...] = collect("id", by="-paid_at", limit=10)


def _row(random: Random, n: int) -> dict[str, Any]:
    amount = f"{random.randrange(1_000_000) / 100:.2f}"
    at = f"2026-01-01T00:00:00.{random.randrange(1_000_000):06}Z"
    return {"id": n, "customer_id": random.randrange(1000), "country": "NO", "amount": amount, "paid_at": at}


def measure(size: int, updates: int = UPDATES) -> dict[str, float]:
    """Microseconds of CPU that an update takes in a group of this size, and its document each time that it is read."""
    random, source = Random(1), SourceModel({TABLE: ("id",)})  # noqa: S311 - to be repeated
    for n in range(size):
        source.rows[TABLE][n,] = _row(random, n)
    source.snapshot()
    with tempfile.TemporaryDirectory() as folder:
        mirror = Mirror(str(Path(folder) / "mirror.db"), lay_out(shape_of(Payments)), owner="bench")
        with mirror.checkpoint():
            sink = mirror.sink_id("none")
        engine = Engine(mirror, Inputs(source.topics, source.boundaries, "shop"))
        reader, read = engine.reader(), dict.fromkeys(source.log, 0)

        def follow() -> None:
            source.produce()
            for name, log in source.log.items():
                engine.receive(name, log[read[name] :])
                read[name] = len(log)
            engine.step()

        follow()
        engine.catch_up({})
        engine.step()
        while engine.continue_fanout():
            pass
        writing = reading = 0.0
        for _ in range(updates // A_POLL):
            source.states.clear()
            with source.transaction():
                for n in random.sample(range(size), k=A_POLL):
                    source.update(TABLE, (n,), **{k: v for k, v in _row(random, n).items() if k != "id"})
            began = time.process_time()
            follow()
            writing += time.process_time() - began
            began = time.process_time()
            taken = reader.take(sink, 1000, 1)
            reading += time.process_time() - began
            assert [json.loads(w.document or "{}")["payments"] for w in taken.writes] == [size], taken
            engine.settle(taken, [APPLIED] * len(taken.writes))
            reader.landed(taken)
        reader.close()
        mirror.close()
    return {"update_us": writing / updates * 1e6, "read_us": reading / (updates // A_POLL) * 1e6}


def main() -> None:
    """The table on stderr, JSON on stdout."""
    found = {size: measure(size) for size in SIZES}
    for size, cost in found.items():
        sys.stderr.write(
            f"{size:>9,} in the group: {cost['update_us']:.0f} µs of CPU an update, {cost['read_us']:.0f} µs its document\n"
        )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
