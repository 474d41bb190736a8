"""Transactions of very many rows through the engine, in a process of its own; prints how the memory grew."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import value
from pipeline.events.envelope import Event
from projections.orders import OrderDocument

POLL = 2000
ORDERS = 1000
LINES, BOUNDARIES = "shop.shop.order_lines", "shop.transaction"


def records(rows: int, txid: int, op: bytes, offset: int) -> Iterator[tuple[int, bytes, bytes]]:
    """The wire bytes of one transaction that inserts (`c`) or deletes (`d`) `rows` lines."""
    for n in range(rows):
        order, line, lsn = n % ORDERS, n // ORDERS, txid * 10_000_000 + n
        key = b'{"order_id":%d,"line_no":%d}' % (order, line)
        image = b'{"order_id":%d,"line_no":%d,"product_id":1,"quantity":1,"unit_price":"3.00"}' % (order, line)
        value = (
            b'{"after":%b,"source":{"snapshot":"false","sequence":"[\\"%d\\",\\"%d\\"]","txId":%d,"lsn":%d,"ts_ms":1},'
            b'"op":"%b","transaction":{"id":"%d:%d","total_order":%d,"data_collection_order":%d}}'
        ) % (
            image if op == b"c" else b"null", txid * 10_000_000 - 1, lsn, txid, lsn, op, txid, lsn, n + 1, n + 1,
        )  # fmt: skip
        yield offset + n, key, value


def end(rows: int, txid: int) -> bytes:
    counts = [{"data_collection": "shop.order_lines", "event_count": rows}]
    id = f"{txid}:{txid * 10_000_000 + rows}"
    said = {"status": "END", "id": id, "event_count": rows, "data_collections": counts, "ts_ms": 1}
    return json.dumps(said).encode()


def memory_bytes() -> int:
    """What this process holds of its own: code and libraries, mapped from files, do not count."""
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main(path: str, rows: int, staged_bytes: int) -> None:
    mirror = Mirror(path, lay_out(shape_of(OrderDocument)), owner="huge")
    topics = {LINES: "shop.order_lines"} | {f"shop.shop.{t}": f"shop.{t}" for t in ("customers", "products", "orders")}
    engine = Engine(mirror, Inputs(topics, BOUNDARIES, "shop"), staged_bytes=staged_bytes)
    engine.receive(f"{BOUNDARIES}/0", [(0, None, end(0, 699))])
    engine.step()
    if engine.wants_cut:
        engine.catch_up({})
        engine.step()
    assert engine.loaded, "the first load is over"
    started = peak = memory_bytes()
    apply = engine.applier.apply

    def watched(events: Sequence[Event], seq: int, *, mark: bool) -> None:
        nonlocal peak
        apply(events, seq, mark=mark)
        peak = max(peak, memory_bytes())

    engine.applier.apply = watched  # type: ignore[method-assign]
    applied = offset = 0
    for txid, op, count in ((700, b"c", rows), (701, b"d", rows // 4)):
        source = records(count, txid, op, offset)
        offset += count
        while batch := list(islice(source, POLL)):
            engine.receive(f"{LINES}/0", batch)
            assert not engine.step().applied, "half a transaction was applied"
            peak = max(peak, memory_bytes())
        engine.receive(f"{BOUNDARIES}/0", [(txid, None, end(count, txid))])
        applied += engine.step().applied
    held, left = (value(mirror.db, f"SELECT count(*) FROM {t}") for t in ('"shop.order_lines"', "staged"))
    report = {"applied": applied, "rows": held, "staged": left, "grew_bytes": peak - started}
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
