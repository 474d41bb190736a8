"""The parts of exchange mode by themselves: who reads what, whose a row is, what a read model in partitions can say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from pipeline.authoring.shape import shape_of
from pipeline.engine.exchange import FRAME_BYTES, Frame, Router
from pipeline.engine.inputs import Inputs, Record
from pipeline.engine.layout import lay_out
from pipeline.engine.owners import owner_of
from pipeline.ports import SinkRecord
from pipeline.runtime.assignors import HomeFirst
from projections.orders import OrderDocument

TOPICS = {f"shop.{table}": table for table in ("shop.orders", "shop.order_lines", "shop.customers", "shop.products")}
PARTITIONS = 4


# ---- who reads what -----------------------------------------------------------------------------------------


class Cluster:
    """As many partitions as each topic has."""

    def __init__(self, **partitions: int) -> None:
        self.partitions = partitions

    def partitions_for_topic(self, topic: str) -> set[int]:
        return set(range(self.partitions[topic]))


def shared_out(
    monkeypatch: pytest.MonkeyPatch, cluster: Cluster, numbers: Mapping[str, int], homes: int
) -> dict[str, dict[str, list[int]]]:
    monkeypatch.setattr(HomeFirst, "homes", homes)
    members = {}
    for member, number in numbers.items():
        monkeypatch.setattr(HomeFirst, "number", number)
        members[member] = HomeFirst.metadata(sorted(cluster.partitions))
    assigned = HomeFirst.assign(cluster, members)  # type: ignore[arg-type]
    return {m: {topic: sorted(numbers) for topic, numbers in a.assignment} for m, a in assigned.items()}


def test_each_partition_of_the_exchange_is_at_home_with_one_member(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shared_out(monkeypatch, Cluster(exchange=3, orders=2, lines=2), {"x": 3, "y": 1, "z": 2}, 3)
    assert {m: of["exchange"] for m, of in found.items()} == {"y": [0], "z": [1], "x": [2]}
    every = sorted((topic, n) for of in found.values() for topic, numbers in of.items() for n in numbers)
    assert every == [
        ("exchange", 0),
        ("exchange", 1),
        ("exchange", 2),
        ("lines", 0),
        ("lines", 1),
        ("orders", 0),
        ("orders", 1),
    ]


def test_only_the_partitions_of_who_is_away_move(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(exchange=4)
    found = shared_out(monkeypatch, cluster, {"a": 1, "c": 3, "d": 4}, 4)
    assert all(number - 1 in found[member]["exchange"] for member, number in {"a": 1, "c": 3, "d": 4}.items())
    assert sorted(n for of in found.values() for n in of["exchange"]) == [0, 1, 2, 3]


def test_one_too_many_stands_by_until_another_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(exchange=2)
    assert shared_out(monkeypatch, cluster, {"a": 1, "b": 2, "more": 3}, 2)["more"] == {}
    found = shared_out(monkeypatch, cluster, {"b": 2, "more": 3}, 2)
    assert 1 in found["b"]["exchange"]
    assert sorted(n for of in found.values() for n in of.get("exchange", ())) == [0, 1]


def test_two_with_one_number_read_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shared_out(monkeypatch, Cluster(exchange=2), {"a": 1, "b": 1}, 2)
    assert sorted(n for of in found.values() for n in of.get("exchange", ())) == [0, 1]


# ---- whose a row is -----------------------------------------------------------------------------------------


def change(op: str, after: dict[str, Any] | None = None, order: int = 1, **source: Any) -> bytes:
    block = None if source.get("snapshot") else {"id": "77:900", "total_order": order}
    source = {"ts_ms": 5, "lsn": 100, "sequence": '["90","100"]', **source}
    return json.dumps({"op": op, "after": after, "source": source, "transaction": block}).encode()


def routed(table: str, records: list[Record]) -> list[list[Frame]]:
    """By poll's part, the frame of each partition."""
    router = Router(lay_out(shape_of(OrderDocument)), Inputs(TOPICS, "shop.transaction", "shop"), PARTITIONS)
    sent = router.frames(f"shop.{table}/0", [("", records)], records[0][0], first=True)
    return [[msgspec.msgpack.decode(data, type=Frame) for data in frames] for frames in sent]


def having(frames: list[Frame]) -> list[int]:
    return [number for number, frame in enumerate(frames) if frame.records]


def test_a_line_goes_where_its_order_is_and_the_others_count_it() -> None:
    key = json.dumps({"order_id": 12, "line_no": 1}).encode()
    (frames,) = routed("shop.order_lines", [(8, key, change("u", {"order_id": 12, "line_no": 1}, order=3))])
    owner = owner_of("12", PARTITIONS)
    assert having(frames) == [owner]
    assert all(frame.passed[0].places == [8, 3] for n, frame in enumerate(frames) if n != owner)
    assert {(frame.start, frame.end) for frame in frames} == {(8, 9)}
    (frames,) = routed("shop.order_lines", [(9, key, change("d"))])
    assert having(frames) == [owner], "a delete too, by its key"


@pytest.mark.parametrize("record", [
    ("shop.customers", json.dumps({"id": 1}).encode(), change("c", {"id": 1, "name": "a"})),
    ("shop.order_lines", None, change("t")),
])  # fmt: skip
def test_rows_without_an_order_and_truncates_go_everywhere(record: tuple[str, bytes | None, bytes]) -> None:
    table, key, value = record
    (frames,) = routed(table, [(0, key, value)])
    assert having(frames) == [0, 1, 2, 3]


def test_what_can_not_be_decoded_goes_to_one_and_counts_for_all() -> None:
    broken = change("c", {"id": 1}).replace(b'"op": "c"', b'"op": "?"')
    (frames,) = routed("shop.orders", [(4, b"no key", broken)])
    assert len(having(frames)) == 1
    assert sum(frame.passed != [] for frame in frames) == PARTITIONS - 1


def test_what_can_not_be_decoded_goes_where_its_key_says() -> None:
    """Its row is read again there, and the answer settles it."""
    key = json.dumps({"order_id": 12, "line_no": 1}).encode()
    (frames,) = routed("shop.order_lines", [(4, key, b"no envelope")])
    assert having(frames) == [owner_of("12", PARTITIONS)]


def test_a_key_that_can_not_be_read_does_not_part_a_row_from_its_order() -> None:
    order = {"id": 12, "status": "s", "placed_at": "2026-01-01T00:00:00Z", "charged": "1.00", "customer_id": 1}
    (frames,) = routed("shop.orders", [(4, b"no key", change("c", order))])
    assert having(frames) == [owner_of("12", PARTITIONS)]


def test_of_a_snapshot_others_are_told_where_it_stands_and_no_row() -> None:
    flags = ["first", "true", "true", "last"]
    key = json.dumps({"id": 12}).encode()
    (frames,) = routed(
        "shop.orders", [(n, key, change("r", {"id": 12}, snapshot=flag)) for n, flag in enumerate(flags)]
    )
    others = [frame for n, frame in enumerate(frames) if n != owner_of("12", PARTITIONS)]
    assert [[(offset, flag) for offset, flag, _ in frame.marks] for frame in others] == [
        [(0, "first"), (3, "last")]
    ] * 3


def test_a_poll_too_large_for_one_record_is_several_without_a_gap() -> None:
    large = "x" * (FRAME_BYTES // 2)
    parts = routed("shop.customers", [(n, b"{}", large.encode()) for n in range(5)])
    assert [(frames[0].start, frames[0].end) for frames in parts] == [(0, 2), (2, 4), (4, 5)]
    assert [frames[0].first for frames in parts] == [True, False, False]


# ---- what a read model in partitions can say ------------------------------------------------------------------


def record(epoch: int, lsn: int | None, log: str = "") -> SinkRecord:
    mark = {} if lsn is None else {"shop": {"lsn": lsn, "log": log, "ts_ms": 1, "txid": "7"}}
    return SinkRecord(epoch, "owner", {f"exchange/{epoch}": lsn or 0}, mark)


def test_the_watermark_is_that_of_the_partition_furthest_behind() -> None:
    found = SinkRecord.least([record(3, 50), record(1, 40), record(2, 60)])
    assert found is not None
    assert found.watermark["shop"]["lsn"] == 40
    assert found.offsets == {"exchange/1": 40, "exchange/2": 60, "exchange/3": 50}
    later = SinkRecord.least([record(1, 900, "c1/7/1"), record(2, 5, "c2/7/2")])
    assert later is not None and later.watermark["shop"]["lsn"] == 900, "a later source log is above an earlier one"


def test_there_is_no_watermark_before_every_partition_has_one() -> None:
    for others in ([None], [record(2, None)]):
        found = SinkRecord.least([record(1, 40), *others])
        assert found is not None and found.watermark == {}
    assert SinkRecord.least([None, None]) is None
