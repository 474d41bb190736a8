"""The engine against an oracle: any history, any order the transport allows, repeats, crashes, several sinks."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.authoring.shape import shape_of
from pipeline.engine import engine as engine_module
from pipeline.engine import marking
from pipeline.engine.dirty import Reader, Taken
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import Layout, lay_out
from pipeline.engine.loading import end_copy, put
from pipeline.engine.mirror import Mirror
from pipeline.events.envelope import UNCHANGED
from pipeline.events.sourcelog import Moment, SourceLog
from pipeline.ports import APPLIED, STALE, Outcome, Throttled, Write
from pipeline.testing.source import Rows, SourceModel
from projections.orders import OrderDocument

KEYS = {
    "shop.customers": ("id",),
    "shop.products": ("id",),
    "shop.orders": ("id",),
    "shop.order_lines": ("order_id", "line_no"),
}
LAYOUT = lay_out(shape_of(OrderDocument))


# ---- the oracle: plain SQL over the source's tables ---------------------------------------------------------


def truth(rows: Rows) -> dict[str, dict[str, Any]]:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE TABLE customers(id, name)")
    db.execute("CREATE TABLE products(id, sku, title)")
    db.execute("CREATE TABLE orders(id, status, placed_at, charged, customer_id)")
    db.execute("CREATE TABLE order_lines(order_id, line_no, quantity, unit_price, product_id)")
    for table, of in rows.items():
        short = table.partition(".")[2]
        names = [c[1] for c in db.execute(f"PRAGMA table_info({short})")]
        marks = ", ".join("?" * len(names))
        db.executemany(f"INSERT INTO {short} VALUES({marks})", [[row[n] for n in names] for row in of.values()])
    found: dict[str, dict[str, Any]] = {}
    for key, status, placed, charged, customer, name in db.execute(
        "SELECT o.id, status, placed_at, charged, c.id, c.name FROM orders o LEFT JOIN customers c ON c.id = customer_id"
    ):
        found[str(key)] = {
            "id": key,
            "status": status,
            "placed_at": placed,
            "charged": charged,
            "customer": None if customer is None else {"id": customer, "name": name},
            "lines": [],
            "total": 0,
        }
    for order, line, quantity, price, product, sku, title in db.execute(
        "SELECT order_id, line_no, quantity, unit_price, p.id, sku, title FROM order_lines"
        " LEFT JOIN products p ON p.id = product_id ORDER BY order_id, line_no"
    ):
        document = found.get(str(order))
        if document is not None:
            cents = quantity * int(price.replace(".", ""))
            document["total"] += cents
            amount = f"{cents // 100}.{cents % 100:02}"
            document["lines"].append(
                {
                    "line_no": line,
                    "quantity": quantity,
                    "unit_price": price,
                    "product": None if product is None else {"sku": sku, "title": title},
                    "amount": amount,
                }
            )
    for document in found.values():
        cents = document["total"]
        document["total"] = f"{cents // 100}.{cents % 100:02}" if document["lines"] else "0"
    return found


# ---- histories ----------------------------------------------------------------------------------------------


class Customers:
    """Random transactions on the shop; few keys, so that rows meet."""

    def __init__(self, model: SourceModel, random: Random) -> None:
        self.model, self.random, self.serial = model, random, 0

    def transaction(self) -> None:
        began = self.model.here() if self.random.random() < 0.2 else None
        with self.model.transaction(began=began):
            for _ in range(self.random.randint(1, 5)):
                self.random.choice(
                    (self.customer, self.product, self.order, self.order, self.line, self.line, self.delete, self.move)
                )()
            if self.random.random() < 0.04:
                self.model.truncate(self.random.choice(list(self.model.keys)))

    def _text(self) -> str:
        self.serial += 1
        return self.random.choice(("a", 'q"', "ø😀", "\\", "")) + str(self.serial)

    def _put(self, table: str, row: dict[str, Any], toasted: str | None = None) -> None:
        key = self.model.key_of(table, row)
        if key not in self.model.rows[table]:
            self.model.insert(table, row)
        else:
            changes: dict[str, Any] = {n: v for n, v in row.items() if n not in self.model.keys[table]}
            if toasted and self.random.random() < 0.4:
                changes[toasted] = UNCHANGED
            self.model.update(table, key, **changes)

    def customer(self) -> None:
        self._put("shop.customers", {"id": self.random.randint(1, 3), "name": self._text()}, "name")

    def product(self) -> None:
        row = {"id": self.random.randint(1, 3), "sku": self._text(), "title": self._text()}
        self._put("shop.products", row, "title")

    def order(self) -> None:
        self._put(
            "shop.orders",
            {
                "id": self.random.randint(1, 5),
                "status": self._text(),
                "placed_at": f"2026-11-24T12:00:{self.random.randint(10, 59)}Z",
                "charged": "1.00",
                "customer_id": self.random.choice((None, 1, 2, 3)),
            },
        )

    def line(self) -> None:
        self._put(
            "shop.order_lines",
            {
                "order_id": self.random.randint(1, 5),
                "line_no": self.random.randint(1, 3),
                "quantity": self.random.randint(1, 9),
                "unit_price": f"{self.random.randint(1, 99)}.{self.random.randint(10, 99)}",
                "product_id": self.random.randint(1, 4),
            },
        )

    def _any(self) -> tuple[str, tuple[Any, ...]] | None:
        rows = [(table, key) for table, of in self.model.rows.items() for key in of]
        return self.random.choice(rows) if rows else None

    def delete(self) -> None:
        found = self._any()
        if found:
            self.model.delete(*found)

    def move(self) -> None:
        """A row changes its key: a line to another order, an order to another number."""
        found = self._any()
        if found is None:
            return
        table, key = found
        fresh = {self.model.keys[table][0]: self.random.randint(1, 5)}
        moved = self.model.key_of(table, {**self.model.rows[table][key], **fresh})
        if moved not in self.model.rows[table] or moved == key:
            self.model.update(table, key, **fresh)


# ---- a worker that may die anywhere -------------------------------------------------------------------------


class Worker:
    """What the runtime does, one small step at a time, in an order that the test chooses."""

    def __init__(self, model: SourceModel, random: Random, folder: str, consistency: str, staged_bytes: int) -> None:
        self.model, self.random, self.consistency, self.staged_bytes = model, random, consistency, staged_bytes
        self.path = str(Path(folder) / "mirror.db")
        self.sinks: dict[int, dict[str, tuple[int, dict[str, Any] | None]]] = {}
        self.epoch = 0
        self.written: list[tuple[str, dict[str, Any]]] = []
        self.engine: Engine | None = None
        self.start()

    def start(self) -> None:
        """Start, or start again after a crash: everything in memory is gone."""
        if self.engine is not None:
            for reader in self.readers.values():
                reader.close()
            self.engine.mirror.close()
        self.epoch += 1
        mirror = Mirror(self.path, LAYOUT, owner=f"worker{self.epoch}")
        with mirror.checkpoint():
            ids = [mirror.sink_id(name) for name in ("one", "two")]
        for number in ids:
            self.sinks.setdefault(number, {})
        inputs = Inputs(self.model.topics, self.model.boundaries, "shop")
        self.engine = Engine(mirror, inputs, consistency=self.consistency, staged_bytes=self.staged_bytes)  # type: ignore[arg-type]
        self.readers: dict[int, Reader] = {number: self.engine.reader() for number in ids}
        self.flying: list[Taken] = []
        self.read = {partition: self.engine.next_offset(partition) for partition in self.model.log}
        if self.random.random() < 0.5 or self.engine.wants_cut:
            self.cut()

    @property
    def running(self) -> Engine:
        assert self.engine is not None
        return self.engine

    def cut(self) -> None:
        self.running.catch_up({partition: len(log) for partition, log in self.model.log.items()})

    def poll(self, most: int = 4) -> bool:
        """One partition's next records, as Kafka may give them."""
        ready = [p for p, log in self.model.log.items() if self.read[p] < len(log)]
        if not ready:
            return False
        partition = self.random.choice(ready)
        at = self.read[partition]
        records = self.model.log[partition][at : at + self.random.randint(1, most)]
        self.read[partition] = at + len(records)
        self.running.receive(partition, records, self.model.label)
        return True

    def step(self) -> None:
        self.running.step()
        if self.running.wants_cut:
            self.cut()
            self.running.step()

    def take(self) -> bool:
        if not self.running.may_flush:
            return False
        sink = self.random.choice(list(self.sinks))
        taken = self.readers[sink].take(sink, self.random.randint(1, 4), self.epoch)
        if not taken.keys and not taken.refused:
            return False
        self.flying.append(taken)
        return True

    def write(self, sink: int, writes: Sequence[Write], *, throttle: bool) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for write in writes:
            stored = self.sinks[sink].get(write.id)
            if throttle and self.random.random() < 0.2:
                outcomes.append(Throttled("busy"))
            elif stored is not None and stored[0] >= write.revision:
                outcomes.append(STALE)
            else:
                document = None if write.document is None else json.loads(write.document)
                self.sinks[sink][write.id] = (write.revision, document)
                if document is not None:
                    self.written.append((write.id, document))
                outcomes.append(APPLIED)
        return outcomes

    def land(self, *, throttle: bool = True, die: bool = False) -> None:
        """One batch in flight is written and settled; `die`: after the write, before it is settled."""
        if not self.flying:
            return
        taken = self.flying.pop(self.random.randrange(len(self.flying)))
        outcomes = self.write(taken.sink, taken.writes, throttle=throttle)
        if die:
            self.start()
            return
        self.running.settle(taken, outcomes)
        self.readers[taken.sink].landed(taken)

    def drain(self) -> None:
        """To the end of everything, without further accidents."""
        while self.poll(50):
            self.step()
        self.step()
        while self.flying:
            self.land(throttle=False)
        for _ in range(10_000):
            busy = self.running.continue_fanout() or self.take()
            if not busy and all(self.running.dirty(sink) == 0 for sink in self.sinks):
                break
            while self.flying:
                self.land(throttle=False)

    def documents(self, sink: int) -> dict[str, dict[str, Any]]:
        return {key: document for key, (_, document) in self.sinks[sink].items() if document is not None}

    # ---- what must hold at any time -----------------------------------------------------------------------

    def check_watermark(self, states: Sequence[dict[str, dict[str, Any]]]) -> None:
        """Each document is that of a state at or after the claimed position."""
        ends = [t.lsn for t in self.model.transactions]
        for sink in self.sinks:
            mark = self.running.watermark(sink).get("shop")
            if mark is None:
                continue
            n = ends.index(mark["lsn"]) + 1
            later = states[n:]
            for key in {key for state in later for key in state} | set(self.documents(sink)):
                own = self.documents(sink).get(key)
                assert any(state.get(key) == own for state in later), f"{key} at {mark}: {own}"


def copy(
    model: SourceModel, customers: Customers, random: Random, folder: str,
    mine: Callable[[str, tuple[Any, ...]], bool] = lambda table, row: True, layout: Layout = LAYOUT,
) -> None:  # fmt: skip
    """A mirror filled with the rows of one moment, some time after the place where its reading begins; with `mine` only."""
    model.produce(random.randint(0, len(model.messages)))
    ends = {partition: len(log) for partition, log in model.log.items()}
    for _ in range(random.randint(0, 3)):
        customers.transaction()
    early, here, next = model.here(), model.here(), model._txid + 1
    mirror = Mirror(str(Path(folder) / "mirror.db"), layout, owner="copy")
    for name, table in layout.tables.items():
        rows = (tuple(row[column] for column in table.columns) for row in model.rows[name].values())
        put(mirror, table, [row for row in rows if mine(name, row)], here)
    log = SourceLog(1764017000123, "7412345", "1", fresh=True)
    end_copy(mirror, ends, Moment(log.identity, here, f"{next}:{next}:"), ["one", "two"], "shop", log)
    mirror.close()
    with model.transaction(began=early):  # written before that moment, and committed after it
        customers.order()


@pytest.mark.edge_case(6, 7, 8, 9, 10, 13, 14, 15, 17, 38, 40, 41, 42, 43)
@pytest.mark.parametrize("consistency", ["transaction", "row"])
@given(
    random=st.randoms(use_true_random=False),
    partitions=st.integers(1, 3),
    rounds=st.integers(5, 60),
    staged_bytes=st.sampled_from([300, 4_000, 64_000_000]),
    begin=st.sampled_from(["log", "snapshot", "copy"]),
)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_any_delivery_with_repeats_and_crashes_ends_in_the_source(
    consistency: str, random: Random, partitions: int, rounds: int, staged_bytes: int, begin: str
) -> None:
    deliver(consistency, random, partitions, rounds, staged_bytes, begin)


def deliver(
    consistency: str, random: Random, partitions: int, rounds: int, staged_bytes: int, begin: str,
    source: type[SourceModel] = SourceModel,
) -> None:  # fmt: skip
    """Whatever happens, all documents are the source's in the end; by transaction each written one was so at some time."""
    model = source(KEYS, partitions=partitions, seed=random.randint(0, 99))
    customers = Customers(model, random)
    for _ in range(3):
        customers.transaction()
    if begin == "copy":
        model.label = "s1764017000123/7412345/1"
    if begin == "snapshot":
        model.messages.clear()
        model.snapshot()
    with tempfile.TemporaryDirectory() as folder:
        if begin == "copy":
            copy(model, customers, random, folder)
        worker = Worker(model, random, folder, consistency, staged_bytes)
        crashes = 0
        for _ in range(rounds):
            match random.choice(("change", "change", "send", "send", "poll", "poll", "poll", "step", "step", "take",
                                 "take", "land", "land", "again", "crash", "die", "fan", "check")):  # fmt: skip
                case "change":
                    customers.transaction()
                case "send":
                    model.produce(random.randint(1, 8))
                case "poll":
                    worker.poll()
                case "step":
                    worker.step()
                case "take":
                    worker.take()
                case "land":
                    worker.land()
                case "again":
                    model.restart(random.randint(1, 12))
                case "crash" if crashes < 4:
                    crashes += 1
                    worker.start()
                case "die":
                    worker.land(die=True)
                case "fan":
                    worker.running.continue_fanout()
                case "check" if consistency == "transaction":
                    worker.check_watermark([truth(state) for state in model.states])
        model.produce()
        worker.drain()
        states = [truth(state) for state in model.states]
        for sink in worker.sinks:
            assert worker.documents(sink) == states[-1]
        worker.check_watermark(states)
        if consistency == "transaction":
            for key, document in worker.written:
                assert any(state.get(key) == document for state in states), f"half a transaction: {key} {document}"
        for reader in worker.readers.values():
            reader.close()
        worker.running.mirror.close()


@pytest.fixture(autouse=True)
def small_fanouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are many here, so that fan-outs happen."""
    monkeypatch.setattr(marking, "FANOUT_INLINE", 2)
    monkeypatch.setattr(engine_module, "FANOUT_CHUNK", 2)
