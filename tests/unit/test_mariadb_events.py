"""MariaDB's events in the engine: places by the binlog, transactions by GTID, and what a killed connector sends again."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Document, many
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.engine.open import begun_in
from pipeline.errors import PositionWentBack
from pipeline.events.envelope import Boundary, decode_boundary
from pipeline.events.sourcelog import Gtid, position_of
from pipeline.operations.wait import token_of

LABEL = "s1764017000123/1/0"


class Line(Document, source="shop.lines"):
    id: int
    amount: int


class Order(Document, source="shop.orders"):
    id: int
    total: int
    lines: tuple[Line, ...] = many(by="order_id", order_by="id")


class Stream:
    """One worker's engine, fed by hand; `kill` opens the mirror again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kafka: dict[str, list[Any]] = defaultdict(list)
        self.open()
        # the load is over
        self.engine.catch_up({})
        self.row("orders", 1, 1, id=0, total=0)
        self.end(1, orders=1)
        self.cut()
        assert self.engine.loaded

    def open(self) -> None:
        layout = lay_out(shape_of(Order))
        self.mirror = Mirror(str(self.folder / "m.db"), layout, owner="test")
        topics = {f"m.{table}": table for table in layout.tables}
        self.engine = Engine(self.mirror, Inputs(topics, "m.transaction", "m"))

    def kill(self) -> None:
        """The worker dies, and another reads on where the mirror stands."""
        self.mirror.close()
        self.open()
        for partition, records in self.kafka.items():
            self.receive(partition, records[self.engine.next_offset(partition) :])
        self.cut()

    def send(self, partition: str, value: dict[str, Any], key: Any = None) -> None:
        """A record into Kafka, not to be read yet."""
        log = self.kafka[partition]
        log.append((len(log), None if key is None else json.dumps(key).encode(), json.dumps(value).encode()))

    def receive(self, partition: str, records: list[Any]) -> None:
        self.engine.receive(partition, records, LABEL)
        self.engine.step()

    def read(self, partition: str) -> None:
        self.receive(partition, self.kafka[partition][-1:])

    def row(
        self, table: str, sequence: int, order: int, *, op: str = "c", domain: int = 0,
        partition: int = 0, read: bool = True, **after: Any,
    ) -> None:  # fmt: skip
        """The event of a transaction that the connector counts as number `order`."""
        gtid = f"{domain}-1-{sequence}"
        event: dict[str, Any] = {
            "op": op, "after": None if op in "dt" else after, "transaction": {"id": gtid, "total_order": order},
            "source": {"gtid": gtid, "pos": 1000, "row": 0, "snapshot": "false", "ts_ms": 1000},
        }  # fmt: skip
        name = f"m.shop.{table}/{partition}"
        self.send(name, event, None if op == "t" else {"id": after["id"]})
        if read:
            self.read(name)

    def boundary(self, status: str, sequence: int, counts: dict[str, int]) -> None:
        told = {
            "status": status, "id": f"0-1-{sequence}", "ts_ms": 1000, "event_count": sum(counts.values()),
            "data_collections": [{"data_collection": f"shop.{t}", "event_count": n} for t, n in counts.items()],
        }  # fmt: skip
        self.send("m.transaction/0", told)
        self.read("m.transaction/0")

    def begin(self, sequence: int) -> None:
        self.boundary("BEGIN", sequence, {})

    def end(self, sequence: int, **counts: int) -> None:
        self.boundary("END", sequence, counts)

    def cut(self) -> None:
        """What the worker does where the engine wants to know how far Kafka is by now."""
        if self.engine.wants_cut:
            self.engine.catch_up({partition: len(records) for partition, records in self.kafka.items()})
            self.engine.step()

    def documents(self) -> dict[int, Any]:
        reader = self.engine.reader()
        try:
            found = reader.documents([(id,) for id in range(10)])
        finally:
            reader.close()
        return {
            key[0]: (made["total"], [x["id"] for x in made["lines"]])
            for key, text in found.items()
            if text and (made := json.loads(text))["id"]
        }


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Stream]:
    made = Stream(tmp_path)
    yield made
    made.mirror.close()


def test_a_transaction_is_applied_when_it_is_whole(stream: Stream) -> None:
    stream.begin(2)
    stream.row("orders", 2, 1, id=1, total=5)
    stream.end(2, orders=1, lines=1)
    assert stream.documents() == {}
    stream.row("lines", 2, 2, id=1, order_id=1, amount=5)
    assert stream.documents() == {1: (5, [1])}
    assert stream.engine.watermark(0) == {"m": {"lsn": 2, "txid": "0-1-2", "ts_ms": 1000, "log": LABEL}}


def test_what_a_connector_that_was_killed_amid_a_transaction_counts_anew_is_neither_lost_nor_doubled(
    stream: Stream,
) -> None:
    stream.begin(2)
    for n in range(1, 6):
        stream.row("lines", 2, n, id=n, order_id=1, amount=n)
    # killed; its offset was after the third row, from where it goes on, counting from 1
    stream.begin(2)
    for n in range(4, 9):
        stream.row("lines", 2, n - 3, id=n, order_id=1, amount=n)
    stream.row("orders", 2, 6, id=1, total=36)
    stream.end(2, orders=1, lines=5)
    stream.cut()
    assert stream.documents() == {1: (36, [1, 2, 3, 4, 5, 6, 7, 8])}
    assert stream.engine.may_flush


@pytest.mark.parametrize("killed", [False, True])
def test_an_end_that_counts_a_part_of_its_transaction_shows_none_of_it_before_the_rest_is_here(
    stream: Stream, killed: bool
) -> None:
    stream.begin(2)
    for n in (1, 2, 3):
        stream.row("lines", 2, n, id=n, order_id=1, amount=n)
    stream.begin(2)
    if killed:
        # a checkpoint, so that the BEGINs are not read again
        stream.row("orders", 1, 1, partition=1, id=0, total=0)
        stream.kill()
    # the END counts the row of `orders` alone, and comes before it: the three lines would do for its number
    stream.row("orders", 2, 4, id=1, total=6, read=False)
    stream.end(2, orders=1)
    assert not stream.engine.may_flush, "a part of it is in the mirror"
    stream.cut()
    assert not stream.engine.may_flush
    stream.read("m.shop.orders/0")
    assert stream.engine.may_flush
    assert stream.documents() == {1: (6, [1, 2, 3])}


@pytest.mark.parametrize("catching_up", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_what_is_counted_anew_comes_after_what_was_counted_before(
    stream: Stream, killed: bool, catching_up: bool
) -> None:
    stream.begin(2)
    if catching_up:
        stream.engine.catch_up({"m.transaction/0": 100})
    for n in (1, 2, 3):
        stream.row("lines", 2, n, id=n, order_id=1, amount=n)
    stream.row("lines", 2, 4, op="u", id=3, order_id=1, amount=4)
    # killed; its offset was after the second row
    stream.begin(2)
    sent = [
        ("lines", "c", {"id": 3, "order_id": 1, "amount": 3}),
        ("lines", "u", {"id": 3, "order_id": 1, "amount": 4}),
    ]
    sent += [("lines", "d", {"id": 1}), ("lines", "u", {"id": 2, "order_id": 1, "amount": 9})]
    for n, (table, op, row) in enumerate(sent, 1):
        stream.row(table, 2, n, op=op, read=False, **row)
    stream.end(2, lines=4)
    stream.cut()
    if killed:
        stream.kill()
    else:
        for record in stream.kafka["m.shop.lines/0"][4:]:
            stream.receive("m.shop.lines/0", [record])
    stream.row("orders", 3, 1, id=1, total=13)
    stream.end(3, orders=1)
    assert stream.engine.may_flush
    assert stream.documents() == {1: (13, [2, 3])}
    assert stream.engine.mirror.row(stream.engine.layout.tables["shop.lines"], (2,))["amount"] == 9  # type: ignore[index]


def test_a_connector_that_goes_back_over_several_transactions_tears_the_last_of_them(stream: Stream) -> None:
    """What it had sent of that one stands for nothing that is still to come."""
    stream.begin(2)
    stream.row("orders", 2, 1, id=1, total=9)
    stream.end(2, orders=1)
    stream.begin(3)
    stream.row("lines", 3, 1, id=1, order_id=1, amount=3)
    # killed; its offset was before the first of them
    stream.begin(2)
    stream.row("orders", 2, 1, id=1, total=9)
    stream.end(2, orders=1)
    stream.begin(3)
    stream.row("lines", 3, 1, id=1, order_id=1, amount=3)
    stream.row("lines", 3, 2, op="u", id=1, order_id=1, amount=9, read=False)
    stream.end(3, lines=2)
    stream.cut()
    assert not stream.engine.may_flush, "two rows are here, and one of them twice"
    stream.read("m.shop.lines/0")
    assert stream.engine.may_flush
    assert stream.documents() == {1: (9, [1])}
    assert stream.engine.mirror.row(stream.engine.layout.tables["shop.lines"], (1,))["amount"] == 9  # type: ignore[index]


def test_what_an_older_program_knew_of_begins_is_read() -> None:
    assert [begun_in(text) for text in (None, '["", []]', '["0-1-4", ["0-1-3"]]', '[["0-1-4"], []]')] == [
        ([], []), ([], []), (["0-1-4"], ["0-1-3"]), (["0-1-4"], []),
    ]  # fmt: skip


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_sent_again_of_a_transaction_that_has_ended_stands_for_nothing_that_is_missing(
    stream: Stream, killed: bool
) -> None:
    stream.begin(2)
    stream.row("orders", 2, 1, id=1, total=5)
    stream.row("lines", 2, 2, id=5, order_id=1, amount=5)
    stream.row("lines", 2, 3, op="d", id=5, read=False)
    stream.end(2, orders=1, lines=2)
    # killed; its offset was before it, and the table of orders is read ahead of that of lines
    stream.begin(2)
    stream.row("orders", 2, 1, id=1, total=5)
    assert stream.documents() == {}, "half a transaction"
    stream.row("lines", 2, 2, id=5, order_id=1, amount=5, read=False)
    stream.row("lines", 2, 3, op="d", id=5, read=False)
    stream.end(2, orders=1, lines=2)
    stream.cut()
    assert not stream.engine.may_flush
    if killed:
        stream.kill()
    else:
        stream.receive("m.shop.lines/0", stream.kafka["m.shop.lines/0"][1:])
    assert stream.engine.may_flush
    assert stream.documents() == {1: (5, [])}
    assert not stream.engine.gate.opens, "and what is sent of it from now on is a repeat"
    stream.begin(2)
    stream.row("lines", 2, 2, id=5, order_id=1, amount=5)
    assert stream.documents() == {1: (5, [])}


def test_repeated_transactions_change_nothing_and_are_forgotten_again(stream: Stream) -> None:
    for sequence, total in ((2, 5), (3, 7)):
        stream.begin(sequence)
        stream.row("orders", sequence, 1, id=1, total=total)
        stream.end(sequence, orders=1)
    for sequence, total in ((2, 5), (3, 7)):
        stream.begin(sequence)
        stream.row("orders", sequence, 1, id=1, total=total)
        assert stream.documents() == {1: (7, [])}
        stream.end(sequence, orders=1)
    stream.row("orders", 4, 1, id=1, total=8)
    stream.end(4, orders=1)
    assert stream.documents() == {1: (8, [])}
    assert not stream.engine.gate.opens


def test_a_truncate_which_has_no_end_waits_for_what_came_before_it_and_holds_up_nothing(stream: Stream) -> None:
    stream.begin(2)
    stream.row("lines", 2, 1, id=1, order_id=1, amount=5)
    stream.begin(3)  # DDL: it begins, and never ends
    stream.row("lines", 3, 1, op="t")
    stream.begin(4)
    stream.row("lines", 4, 1, id=2, order_id=1, amount=6)
    stream.row("orders", 2, 2, id=1, total=5)
    stream.end(2, orders=1, lines=1)
    stream.end(4, lines=1)
    assert stream.documents() == {1: (5, [2])}
    assert stream.engine.gate.waiting() == []


def test_a_key_that_changes_is_a_delete_and_a_create_at_one_place(stream: Stream) -> None:
    stream.row("orders", 2, 1, id=1, total=5)
    stream.end(2, orders=1)
    stream.row("orders", 3, 1, op="d", id=1)
    stream.row("orders", 3, 2, id=2, total=5)
    stream.end(3, orders=2)
    assert stream.documents() == {2: (5, [])}


def test_what_can_not_be_decoded_counts_in_its_transaction(stream: Stream) -> None:
    stream.row("orders", 2, 1, id=1, total=5)
    stream.row("orders", 2, 2, id=2, total="no number")
    stream.end(2, orders=2)
    assert stream.documents() == {1: (5, [])}


def test_another_gtid_domain_is_said_and_nothing_of_it_applied(stream: Stream) -> None:
    with pytest.raises(PositionWentBack, match=r"1-1-2.*gtid_domain_id"):
        stream.row("orders", 2, 1, domain=1, id=1, total=5)


def test_a_gtid_is_a_position_and_a_token() -> None:
    end = decode_boundary(b'{"status":"END","id":"0-1-42","event_count":0,"data_collections":[],"ts_ms":1}')
    assert (end.txid, end.lsn, end.has_gtid) == ("0-1-42", 42, True)
    assert (Boundary("END", "742:1234").lsn, Boundary("END", "742:1234").has_gtid) == (1234, False)
    assert position_of("0-1-42") == 42
    assert token_of("gtid:0-1-42").lsn == 42
    assert Gtid.newest("0-1-42,0-2-41").server == 1
