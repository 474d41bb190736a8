"""The exchange against an oracle: senders that die, repeat themselves or come back late, readers that crash at any step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.exchange import Router
from pipeline.engine.inputs import Record
from pipeline.engine.layout import Layout
from pipeline.engine.mirror import Mirror
from pipeline.engine.owners import Owners
from pipeline.errors import LogTruncated
from pipeline.operations.replay import Past, ReplayReport, share_out
from pipeline.testing.source import SourceModel
from tests.unit.test_engine_properties import KEYS, LAYOUT, Customers, Worker, copy, small_fanouts, truth

__all__ = ["small_fanouts"]


@dataclass(frozen=True)
class Shop:
    """What is projected, what happens to it, and the oracle: the documents after so many transactions."""

    layout: Layout
    keys: Mapping[str, Sequence[str]]
    customers: type[Customers]
    documents: Callable[[SourceModel, int], dict[str, Any]]
    full: frozenset[str] = frozenset()


ORDERS = Shop(LAYOUT, KEYS, Customers, lambda model, n: truth(model.states[n]))


@dataclass
class Exchange:
    """The exchange topic, and what Kafka's group has committed of the source's partitions."""

    model: SourceModel
    partitions: int
    random: Random
    layout: Layout = field(default_factory=lambda: LAYOUT)
    committed: dict[str, int] = field(default_factory=dict)
    log: list[list[Record]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = [[] for _ in range(self.partitions)]
        self.router = Router(self.layout, Inputs(self.model.topics, self.model.boundaries, "shop"), self.partitions)

    def runs(self, source: str, start: int, length: int) -> list[tuple[str, list[Record]]]:
        """Records of one of the source's partitions, by their source logs."""
        return list(self.model.runs(source, start, start + length))

    def append(self, number: int, data: bytes) -> None:
        self.log[number].append((len(self.log[number]), None, data))


class Sender:
    """One exchange worker: reads on from what is committed, in polls of its own size; it may be a zombie and not know."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.at, self.dying = exchange, dict[str, int](), False
        self.sent: set[str] = set()

    def poll(self) -> bool:
        exchange, random = self.exchange, self.exchange.random
        log = exchange.model.log
        ready = [p for p in log if self.at.setdefault(p, exchange.committed.get(p, 0)) < len(log[p])]
        if not ready or self.dying:
            return False
        source = random.choice(ready)
        at = self.at[source]
        records = log[source][at : at + random.randint(1, 6)]
        first = source not in self.sent
        for frames in exchange.router.frames(source, exchange.runs(source, at, len(records)), at, first=first):
            for number, data in enumerate(frames):
                exchange.append(number, data)
                if random.random() < 0.1:  # a client without idempotence
                    exchange.append(number, data)
        self.sent.add(source)
        self.at[source] = at + len(records)
        # acknowledged by all; the commit may come late, and a zombie's is refused or goes back
        if random.random() < 0.7:
            exchange.committed[source] = self.at[source]
        return True

    def fail(self) -> None:
        """A send of the next poll is lost, a later one of it or of the next poll may go through; then the process ends."""
        exchange, random = self.exchange, self.exchange.random
        log, lost = exchange.model.log, random.randrange(exchange.partitions)
        for source, at in self.at.items():
            first = source not in self.sent
            for _ in range(2):
                records = log[source][at : at + random.randint(1, 6)]
                if not records:
                    break
                for frames in exchange.router.frames(source, exchange.runs(source, at, len(records)), at, first=first):
                    for number, data in enumerate(frames):
                        if number != lost or (not first and random.random() < 0.3):
                            exchange.append(number, data)
                at, first = at + len(records), False
                lost = random.randrange(exchange.partitions)
        self.dying = True


class Reader(Worker):
    """The worker of one partition: the same engine, fed by the exchange topic."""

    def __init__(self, exchange: Exchange, number: int, *args: Any) -> None:
        self.exchange, self.number = exchange, number
        super().__init__(exchange.model, *args)

    def start(self) -> None:
        if self.engine is not None:
            for reader in self.readers.values():
                reader.close()
            self.engine.mirror.close()
        self.epoch += 1
        mirror = Mirror(self.path, self.exchange.layout, owner=f"worker{self.epoch}")
        with mirror.checkpoint():
            ids = [mirror.sink_id("one")]
        for number in ids:
            self.sinks.setdefault(number, {})
        inputs = Inputs(self.model.topics, self.model.boundaries, "shop", exchange=f"exchange/{self.number}")
        self.engine = Engine(mirror, inputs, staged_bytes=self.staged_bytes)
        self.readers = {number: self.engine.reader() for number in ids}
        self.flying = []
        if self.random.random() < 0.5 or self.engine.wants_cut:
            self.cut()

    def poll(self, most: int = 4) -> bool:
        inlet = self.running.inlet
        assert inlet is not None
        records = self.exchange.log[self.number][inlet.next : inlet.next + self.random.randint(1, most)]
        inlet.receive(records)
        return bool(records)


@pytest.mark.edge_case(6, 8, 13, 38, 40, 41)
@given(
    random=st.randoms(use_true_random=False),
    workers=st.integers(1, 3),
    partitions=st.integers(1, 3),
    rounds=st.integers(10, 70),
    staged_bytes=st.sampled_from([300, 64_000_000]),
    begin=st.sampled_from(["log", "snapshot", "copy"]),
)
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_lost_repeated_or_late_each_document_is_the_sources_and_never_half_a_transaction(
    random: Random, workers: int, partitions: int, rounds: int, staged_bytes: int, begin: str
) -> None:
    converge(ORDERS, random, workers, partitions, rounds, staged_bytes, begin)


def converge(
    shop: Shop, random: Random, workers: int, partitions: int, rounds: int, staged_bytes: int, begin: str,
    source: type[SourceModel] = SourceModel,
) -> None:  # fmt: skip
    """Whatever happens, every document is the source's in the end, and each written one was so at some time."""
    model = source(shop.keys, partitions=partitions, seed=random.randint(0, 99))
    model.full = shop.full
    customers = shop.customers(model, random)
    for _ in range(3):
        customers.transaction()
    if begin == "copy":
        model.label = "s1764017000123/7412345/1"
    if begin == "snapshot":
        model.messages.clear()
        model.snapshot()
    exchange = Exchange(model, workers, random, shop.layout)
    sender, zombies = Sender(exchange), list[Sender]()
    with tempfile.TemporaryDirectory() as folder:
        readers = []
        for number in range(workers):
            (own := Path(folder) / str(number)).mkdir()
            if begin == "copy":  # each at a moment of its own
                copy(model, customers, random, str(own), _rows_of(shop.layout, number, workers), shop.layout)
            readers.append(Reader(exchange, number, random, str(own), "transaction", staged_bytes))
        if random.random() < 0.8:  # a first load hides much: have it over early
            model.produce()
            while sender.poll():
                pass
            for reader in readers:
                reader.drain()
        for _ in range(rounds):
            reader = random.choice(readers)
            match random.choice(("change", "change", "send", "send", "poll", "poll", "poll", "poll", "exchange",
                                 "exchange", "exchange", "step", "step", "take", "take", "land", "again", "crash",
                                 "die", "flow", "flow", "flow", "flow", "flow", "crash", "fan", "successor", "failed", "zombie", "zombie", "check")):  # fmt: skip
                case "change":
                    customers.transaction()
                case "send":
                    model.produce(random.randint(1, 8))
                case "exchange":
                    sender.poll()
                case "flow":
                    customers.transaction()
                    model.produce(random.randint(1, 8))
                    while sender.poll():
                        pass
                    for each in readers:
                        while each.poll():
                            each.step()
                case "poll":
                    reader.poll()
                case "step":
                    reader.step()
                case "take":
                    reader.take()
                case "land":
                    reader.land()
                case "again":
                    model.restart(random.randint(1, 12))
                case "crash":
                    reader.start()
                case "die":
                    reader.land(die=True)
                case "fan":
                    reader.running.continue_fanout()
                case "successor":
                    zombies.append(sender)
                    sender = Sender(exchange)
                case "failed":
                    sender.fail()
                    sender = Sender(exchange)
                case "zombie" if zombies:
                    random.choice(zombies).poll()
                case "check":
                    reader.check_watermark([_owned(state, reader) for state in _states(shop, model)])
        model.produce()
        while sender.poll():
            pass
        states = _states(shop, model)
        for reader in readers:
            reader.drain()
            mine = [_owned(state, reader) for state in states]
            assert reader.documents(1) == mine[-1]
            reader.check_watermark(mine)
            for key, document in reader.written:
                assert any(state.get(key) == document for state in mine), f"half a transaction: {key} {document}"
            reader.running.mirror.close()


@pytest.mark.edge_case(3)
@pytest.mark.parametrize("seed", range(8))
def test_kept_history_says_nothing_against_right_partitions_and_names_the_one_that_is_wrong(
    seed: int, tmp_path: Path
) -> None:
    random, workers = Random(seed), 3
    model = SourceModel(KEYS, partitions=2, seed=seed)
    customers = Customers(model, random)
    customers.customer()
    for _ in range(40):
        customers.transaction()
    model.produce()
    exchange = Exchange(model, workers, random)
    sender, readers = Sender(exchange), list[Reader]()
    while sender.poll():
        pass
    for number in range(workers):
        (own := tmp_path / str(number)).mkdir()
        readers.append(Reader(exchange, number, random, str(own), "transaction", 64_000_000))
        readers[-1].drain()

    def judged(name: str) -> tuple[ReplayReport, list[dict[str, list[tuple[Any, ...]]]]]:
        report = ReplayReport(projection="orders")
        pasts = [Past(LAYOUT, model.topics, Path(r.path), tmp_path / f"{name}{r.number}", 0) for r in readers]
        for partition, log in model.log.items():
            if partition.rpartition("/")[0] in model.topics:
                share_out(exchange.router, pasts, [(partition, *record, "") for record in log])
        found = [past.judge(report) for past in pasts]
        for past in pasts:
            past.close()
        return report, found

    right, found = judged("right")
    assert (right.wrong, found) == (0, [{}, {}, {}])
    assert right.equal > 0
    customer, one = max(model.rows["shop.customers"]), random.choice(readers)
    wrong = "UPDATE \"shop.customers\" SET name = 'of no event' WHERE id = ?"
    one.running.mirror.db.execute(wrong, customer)
    report, found = judged("wrong")
    assert [of for of in found if of] == [{"shop.customers": [customer]}]
    assert found.index({"shop.customers": [customer]}) == one.number
    assert (report.wrong, report.events) == (1, right.events)
    for reader in readers:
        reader.running.mirror.close()


def _states(shop: Shop, model: SourceModel) -> list[dict[str, Any]]:
    return [shop.documents(model, n) for n in range(len(model.states))]


def _rows_of(layout: Layout, number: int, partitions: int) -> Callable[[str, tuple[Any, ...]], bool]:
    owners = Owners(layout, partitions)
    return lambda table, row: (own := owners.places[table]) is None or owners.of_row(own, row) == number


def _owned(documents: dict[str, Any], reader: Reader) -> dict[str, Any]:
    owners = Owners(reader.exchange.layout, reader.exchange.partitions)
    return {k: d for k, d in documents.items() if owners.of_id(k) == reader.number}


@pytest.fixture
def reader() -> Iterator[Reader]:
    random = Random(1)
    model = SourceModel(KEYS, partitions=1, seed=1)
    customers = Customers(model, random)
    for _ in range(20):
        customers.transaction()
    model.produce()
    with tempfile.TemporaryDirectory() as folder:
        yield Reader(Exchange(model, 2, random), 0, random, folder, "transaction", 64_000_000)


def test_a_sender_that_begins_behind_a_gap_stops_its_readers(reader: Reader) -> None:
    """All before its beginning was acknowledged, so what is missing is in no log any more."""
    exchange = reader.exchange
    source = f"{exchange.model.boundaries}/0"
    (frames,) = exchange.router.frames(source, [("", exchange.model.log[source][5:])], 5, first=True)
    exchange.append(0, frames[0])
    with pytest.raises(LogTruncated, match="and 0 comes next"):
        reader.poll()


def test_what_comes_behind_a_lost_send_waits_for_its_successors(reader: Reader) -> None:
    exchange = reader.exchange
    source = f"{exchange.model.boundaries}/0"
    (frames,) = exchange.router.frames(source, [("", exchange.model.log[source][5:])], 5, first=False)
    exchange.append(0, frames[0])
    reader.poll()
    assert reader.running.next_offset(source) == 0


def test_a_snapshots_row_that_is_sent_again_does_not_undo_what_came_after_it(tmp_path: Path) -> None:
    """It has no place in commit order: only by its offset is it known as had."""
    model = SourceModel(KEYS, partitions=1, seed=1)
    model.insert("shop.customers", {"id": 1, "name": "old"})
    model.messages.clear()
    model.snapshot()
    model.update("shop.customers", (1,), name="new")
    model.insert("shop.customers", {"id": 2, "name": "other"})
    model.produce()
    exchange = Exchange(model, 1, Random(1))
    reader = Reader(exchange, 0, Random(1), str(tmp_path), "transaction", 64_000_000)
    source = f"{model.topic('shop.customers')}/0"
    for end in (2, 3):
        (frames,) = exchange.router.frames(source, [("", model.log[source][:end])], 0, first=True)
        exchange.append(0, frames[0])
        while reader.poll():
            reader.step()
    row = reader.running.mirror.row(LAYOUT.tables["shop.customers"], (1,))
    assert row is not None and row["name"] == "new"


def test_lines_are_owned_by_their_order_and_what_has_no_order_goes_everywhere() -> None:
    assert Owners(LAYOUT, 3).places == {
        "shop.orders": (0,),
        "shop.order_lines": (0,),
        "shop.customers": None,
        "shop.products": None,
    }
