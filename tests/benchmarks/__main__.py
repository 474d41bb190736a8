"""`make bench`: what the engine alone takes, without Kafka and without a sink; the first part of the benchmarks."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.testing.source import SourceModel
from projections.orders import OrderDocument

KEYS = {
    "shop.customers": ("id",),
    "shop.products": ("id",),
    "shop.orders": ("id",),
    "shop.order_lines": ("order_id", "line_no"),
}
POLL = 1600


def filled(orders: int) -> SourceModel:
    """A shop as a connector's first snapshot sends it: each order with three lines."""
    model = SourceModel(KEYS)
    rows = model.rows
    for n in range(orders // 5 + 1):
        rows["shop.customers"][n,] = {"id": n, "name": f"Customer {n}", "email": f"c{n}@example.org"}
    for n in range(orders // 50 + 1):
        rows["shop.products"][n,] = {"id": n, "sku": f"SKU-{n}", "title": f"Product {n}", "stock": 1}
    for n in range(orders):
        at = "2026-06-01T00:00:00.000000Z"
        order = {"id": n, "status": "new", "placed_at": at, "charged": "9.00", "customer_id": n // 5}
        rows["shop.orders"][n,] = order
        for line in (1, 2, 3):
            rows["shop.order_lines"][n, line] = {
                "order_id": n, "line_no": line, "quantity": 1, "unit_price": "3.00", "product_id": n // 50
            }  # fmt: skip
    model.snapshot()
    model.produce()
    return model


def main(orders: int) -> None:
    model = filled(orders)
    events = sum(len(log) for log in model.log.values())
    with tempfile.TemporaryDirectory() as folder:
        mirror = Mirror(str(Path(folder) / "mirror.db"), lay_out(shape_of(OrderDocument)), owner="bench")
        with mirror.checkpoint():
            sink = mirror.sink_id("none")
        engine = Engine(mirror, Inputs(model.topics, model.boundaries, "shop"))
        engine.catch_up({name: len(log) for name, log in model.log.items()})
        began = time.perf_counter()
        for name, log in model.log.items():
            for at in range(0, len(log), POLL):
                engine.receive(name, log[at : at + POLL])
                engine.step()
        if engine.wants_cut:
            engine.catch_up({})
            engine.step()
        loaded = time.perf_counter()
        reader, documents = engine.reader(), 0
        while (taken := reader.take(sink, 1000, 1)).writes:
            documents += len(taken.writes)
        ended = time.perf_counter()
        reader.close()
        mirror.close()
    assert documents == orders, f"{documents} documents of {orders} orders"
    report = {
        "events": events,
        "events_per_second": round(events / (loaded - began)),
        "documents": documents,
        "documents_per_second": round(documents / (ended - loaded)),
    }
    sys.stderr.write(f"decode and mirror: {report['events_per_second']:,} events/s\n")
    sys.stderr.write(f"assemble, with @derived: {report['documents_per_second']:,} documents/s\n")
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
