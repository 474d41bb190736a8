"""Rows that must not go to a sink: what the engine makes of a rule, and what check and the worker say of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Aggregate, Document, count, elasticsearch, group, hidden, many, one, projection
from pipeline.authoring.catalog import Catalog, Column, MaskedBy, Table
from pipeline.authoring.shape import shape_of
from pipeline.cli.sinks import RULES
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.engine.withholding import Rules, apply_rules, concerning, unkept, withheld
from pipeline.engine.withholding import count as counted
from pipeline.operations.check import check
from pipeline.ports import APPLIED, Throttled
from pipeline.settings import Settings


class Line(Document, source="shop.lines"):
    sku: str
    bad: bool | None = hidden()


class Customer(Document, source="shop.customers"):
    region: str | None


class Order(Document, source="shop.orders"):
    id: int
    level: int | None
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", where={"kind": "sold"}, order_by="-id", limit=2)


class Regions(Aggregate, of=Customer):
    region: str | None = group()
    customers: int = count()


EU: Rules = {"shop.customers.region": ("eu", "uk")}


class World:
    """A mirror, one sink with a rule, and what was written there."""

    def __init__(self, folder: Path) -> None:
        self.path, self.stored = str(folder / "mirror.db"), dict[str, Any]()
        self.offsets: dict[str, int] = {}
        self.open(EU)
        self.send("shop.customers", *({"id": n, "region": region} for n, region in enumerate(("us", "eu", None), 1)))
        self.send("shop.orders", *({"id": n, "customer_id": n if n < 4 else None, "level": n} for n in range(1, 5)))

    def open(self, rules: Rules) -> None:
        self.mirror = Mirror(self.path, lay_out(shape_of(Order)), owner="test")
        with self.mirror.checkpoint():
            self.sink = self.mirror.sink_id("memory:orders")
        tables = self.mirror.layout.tables
        self.engine = Engine(self.mirror, Inputs({name: name for name in tables}, None), consistency="row")
        apply_rules(self.mirror, self.sink, rules)
        self.reader = self.engine.reader(rules)

    def reopened(self, rules: Rules) -> World:
        self.close()
        self.open(rules)
        return self

    def send(self, table: str, *rows: dict[str, Any]) -> None:
        at = self.offsets.get(table, 0)
        events = [json.dumps({"op": "c", "source": {"ts_ms": 0}, "after": row}).encode() for row in rows]
        self.engine.receive(f"{table}/0", [(at + n, None, event) for n, event in enumerate(events)])
        self.offsets[table] = at + len(rows)
        self.engine.step()
        if self.engine.catching_up is not None:
            self.engine.catch_up({})
            self.engine.step()

    def flush(self, *, lost: bool = False) -> dict[str, Any]:
        """What the sink holds once all that is dirty is written; `lost`: the answer never comes."""
        while self.engine.continue_fanout():
            pass
        while (taken := self.reader.take(self.sink, 100, 1)).keys or taken.refused:
            for write in taken.writes:
                self.stored.pop(write.id, None)
                if write.document is not None:
                    self.stored[write.id] = json.loads(write.document)
            if lost:
                return self.stored
            self.engine.settle(taken, [APPLIED] * len(taken.writes))
            self.reader.landed(taken)
        return self.stored

    @property
    def held(self) -> int:
        return counted(self.mirror.db, self.sink)

    def close(self) -> None:
        self.reader.close()
        self.mirror.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_a_document_made_of_such_a_row_is_not_written_and_one_without_is(world: World) -> None:
    assert sorted(world.flush()) == ["1", "3", "4"]
    assert world.held == 1


def test_it_goes_when_a_row_becomes_such_a_one_and_comes_back(world: World) -> None:
    world.flush()
    world.send("shop.customers", {"id": 1, "region": "uk  "})
    assert sorted(world.flush()) == ["3", "4"] and world.held == 2
    world.send("shop.customers", {"id": 1, "region": "us"}, {"id": 2, "region": "EU"})
    assert sorted(world.flush()) == ["1", "2", "3", "4"] and world.held == 0


def test_only_rows_that_are_shown_count(world: World) -> None:
    world.reopened({"shop.lines.bad": (True,)}).flush()
    line = {"order_id": 1, "sku": "x", "bad": None, "kind": "sold"}
    world.send("shop.lines", {**line, "id": 1, "bad": True}, {**line, "id": 2}, {**line, "id": 3})
    world.send("shop.lines", {**line, "id": 4, "order_id": 2, "bad": True, "kind": "kept"})
    assert sorted(world.flush()) == ["1", "2", "3", "4"], "beyond the limit, and not chosen"
    world.send("shop.lines", {**line, "id": 9, "bad": True}, {**line, "id": 4, "order_id": 2, "bad": True})
    assert sorted(world.flush()) == ["3", "4"] and world.held == 2


@pytest.mark.parametrize(
    ("rules", "left", "held"),
    [
        ({}, "1234", 0),
        ({"shop.orders.level": (1, 3)}, "24", 2),
        ({**EU, "shop.orders.level": (4,)}, "13", 2),
        (EU, "134", 1),
    ],
)
def test_another_rule_after_a_restart_moves_documents(world: World, rules: Rules, left: str, held: int) -> None:
    world.flush()
    assert "".join(sorted(world.reopened(rules).flush())) == left
    assert world.held == held
    assert "".join(sorted(world.reopened(rules).flush())) == left, "the same rule again moves nothing"


def test_an_answer_that_is_lost_or_late_changes_nothing(world: World) -> None:
    world.flush(lost=True)
    assert world.held == 0, "not settled"
    assert sorted(world.reopened(EU).flush()) == ["1", "3", "4"] and world.held == 1
    world.send("shop.customers", {"id": 1, "region": "eu"})
    while world.engine.continue_fanout():
        pass
    taken = world.reader.take(world.sink, 100, 1)
    world.engine.settle(taken, [Throttled("full")] * len(taken.writes))
    world.reader.landed(taken)
    assert world.held == 1
    assert sorted(world.flush()) == ["3", "4"] and world.held == 2


def test_rows_say_the_same_to_verify() -> None:
    raw = {"id": 1, "level": 1, "customer": {"region": "eu"}, "lines": [{"sku": "a", "bad": None}]}
    shape = shape_of(Order)
    assert withheld(shape, raw, EU)
    assert withheld(shape, {**raw, "customer": {"region": "uk  "}}, EU)
    assert not withheld(shape, {**raw, "customer": None}, EU)
    assert not withheld(shape, {**raw, "customer": {"region": None}}, EU)
    assert withheld(shape, raw, {"shop.orders.level": (1,)}) and not withheld(shape, raw, {"shop.lines.bad": (True,)})
    assert withheld(shape, {**raw, "lines": [{"sku": "a", "bad": True}]}, {"shop.lines.bad": (True,)})


def test_a_rule_that_could_not_be_kept_is_named() -> None:
    def said(document: Any, rules: Rules) -> str:
        return "; ".join(why for why, _ in unkept(lay_out(shape_of(document)), rules))

    assert said(Order, EU) == said(Order, {"crm.others.region": ("eu",)}) == ""
    assert "Order does not read; add a field of it" in said(Order, {"shop.orders.status": ("x",)})
    assert "which it never is" in said(Order, {"shop.customers.region": (1,)})
    assert "which it never is" in said(Order, {"shop.orders.level": ("1",)})
    assert "groups have rows of all kinds" in said(Regions, EU)


def test_rules_about_other_tables_are_of_no_concern() -> None:
    others: Rules = {"shop.payments.state": ("x",), "crm.customers.region": ("eu",)}
    for document in (Order, Regions):
        assert concerning(lay_out(shape_of(document)), others) == {}
        assert concerning(lay_out(shape_of(document)), {**others, **EU}) == EU


def test_check_names_rules_that_keep_nothing_back() -> None:
    columns = tuple(
        Column(name=name, type=kind, nullable=False) for name, kind in {"id": "bigint", "region": "text"}.items()
    )
    hashed = Column(name="email", type="text", masked=MaskedBy(way="hash"))
    table = Table(name="shop.customers", columns=(*columns, hashed), primary_key=("id",))
    rules: dict[str, Rules] = {
        "elasticsearch": {"shop.customers.region": ("eu",)},
        "elasticsearch:customer": {"shop.customers.area": ("eu",)},
        "redis": {"shop.costumers.region": ("eu",), "shop.customers.email": ("ada@x.example",)},
        "mongodb": {"shop.customers.region": ("eu",)},
    }
    made = projection(Customer, to=elasticsearch("customers"))
    report = check(
        [made], Catalog.of([table]), sinks=RULES, withheld_rows=rules, targets={"elasticsearch:customers"}
    )  # fmt: skip
    assert {(f.error, f.subject) for f in report.findings if f.file == "cdc.toml"} == {
        ("UnknownSink", "withheld_rows.elasticsearch:customer"),
        ("UnknownColumn", "withheld_rows.elasticsearch:customer"),
        ("UnknownTable", "withheld_rows.redis"),
        ("BadMask", "withheld_rows.redis"),
        ("UnknownSink", "withheld_rows.mongodb"),
    }
    other = check(
        [made], Catalog.of([table]), sinks=RULES, withheld_rows={"elasticsearch": {"shop.customers.id": (1,)}}
    )
    assert [f.error for f in other.findings if f.error == "Withheld"] == ["Withheld"]


def test_rules_of_a_kind_and_of_a_target_add_up() -> None:
    own = Settings(
        withheld_rows={"redis": {"a.b.c": ("x",)}, "redis:orders": {"a.b.c": ("y", "x"), "a.b.d": (True, 1)}}
    )  # fmt: skip
    assert own.rows_withheld("redis", "orders") == {"a.b.c": ("x", "y"), "a.b.d": (True,)}
    assert own.rows_withheld("redis", "others") == {"a.b.c": ("x",)}
    assert own.rows_withheld("kafka", "orders") == {}
