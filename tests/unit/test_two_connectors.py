"""One mirror fed by two connectors: each has its own source logs, positions and sweeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import Document, elasticsearch, one, projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.errors import DefinitionError
from pipeline.runtime.wiring import definition_of, definitions_of, wire
from pipeline.settings import Settings

SHOP, CRM = "s1764017000100/7412345/1", "s1764017000200/1/0"


class Customer(Document, source="crm.customers"):
    name: str


class Order(Document, source="shop.orders"):
    id: int
    status: str
    customer: Customer | None = one(via="customer_id")


orders = projection(Order, to=elasticsearch("orders"), across_sources=True)


class Two:
    def __init__(self, folder: Path) -> None:
        layout = lay_out(shape_of(Order))
        self.mirror = Mirror(str(folder / "m.db"), layout, owner="test")
        topics = {f"{table.partition('.')[0]}.{table}": table for table in layout.tables}
        others = {"crm.crm.customers": "crm", "crm.transaction": "crm"}
        heard = frozenset({"shop.transaction", "crm.transaction"})
        self.engine = Engine(self.mirror, Inputs(topics, None, "shop", others, heard), sweep_limit=1.0)
        self.offsets: dict[str, int] = {}
        self.labels = {"shop": SHOP, "crm": CRM}

    def send(self, table: str, op: str, source: dict[str, Any], order: int = 1, **row: Any) -> None:
        connector = table.partition(".")[0]
        partition = f"{connector}.{table}/0"
        offset = self.offsets[partition] = self.offsets.get(partition, -1) + 1
        block = None if op == "r" else {"id": source.get("gtid") or f"9:{source['lsn']}", "total_order": order}
        told = {
            "op": op,
            "after": None if op == "d" else row,
            "source": {"ts_ms": 1000, **source},
            "transaction": block,
        }
        key = json.dumps({"id": row["id"]}).encode()
        self.receive(partition, (offset, key, json.dumps(told).encode()), self.labels[connector])

    def receive(self, partition: str, record: Any, label: str) -> None:
        self.engine.receive(partition, [record], label)
        self.engine.step()
        if self.engine.wants_cut:
            self.engine.catch_up({name: last + 1 for name, last in self.offsets.items()})
            self.engine.step()

    def shop(self, lsn: int, op: str = "u", snapshot: str = "false", **row: Any) -> None:
        self.send("shop.orders", op, {"lsn": lsn, "snapshot": snapshot, "sequence": f'["{lsn - 1}","{lsn}"]'}, **row)

    def crm(self, sequence: int, op: str = "u", order: int = 1, **row: Any) -> None:
        self.send("crm.customers", op, {"gtid": f"0-1-{sequence}", "snapshot": "false"}, order, **row)

    def crm_snapshot(self, *rows: dict[str, Any]) -> None:
        for n, row in enumerate(rows):
            self.send("crm.customers", "r", {"snapshot": "last" if n == len(rows) - 1 else "true"}, **row)

    def heartbeat(self, sequence: int, ts_ms: int) -> None:
        """A transaction of the second that has nothing in these tables."""
        partition = "crm.transaction/0"
        offset = self.offsets[partition] = self.offsets.get(partition, -1) + 1
        told = {"status": "END", "id": f"0-1-{sequence}", "event_count": 1, "data_collections": [], "ts_ms": ts_ms}
        self.receive(partition, (offset, None, json.dumps(told).encode()), self.labels["crm"])

    def documents(self) -> dict[int, Any]:
        reader = self.engine.reader()
        try:
            found = reader.documents([(id,) for id in range(10)])
        finally:
            reader.close()
        made = {key[0]: json.loads(text) for key, text in found.items() if text}
        return {id: (one["status"], one["customer"] and one["customer"]["name"]) for id, one in made.items()}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Two]:
    made = Two(tmp_path)
    made.shop(100, "r", "last", id=1, status="new", customer_id=1)
    made.crm_snapshot({"id": 1, "name": "Ada"}, {"id": 2, "name": "Bo"})
    assert made.engine.loaded and made.documents() == {1: ("new", "Ada")}
    yield made
    made.mirror.close()


def test_positions_of_one_say_nothing_of_the_other(two: Two) -> None:
    two.crm(5, id=1, name="Ada 5")
    two.shop(1_000_000, id=1, status="paid", customer_id=1)
    two.crm(6, id=1, name="Ada 6")
    two.shop(1_000_001, id=1, status="sent", customer_id=2)
    assert two.documents() == {1: ("sent", "Bo")}
    two.crm(5, id=1, name="Ada 5")  # sent again
    two.shop(1_000_002, id=1, status="sent", customer_id=1)
    assert two.documents() == {1: ("sent", "Ada 6")}
    assert two.engine.may_flush and not two.engine.gate.opens, "without ENDs nothing is counted, and nothing waits"


def test_what_is_counted_anew_is_in_the_order_of_kafka(two: Two) -> None:
    for order, name in enumerate(("one", "two", "three"), 1):
        two.crm(7, order=order, id=1, name=name)
    # killed; its offset was after the second row
    two.crm(7, order=1, id=1, name="three")
    two.crm(7, order=2, id=1, name="four")
    assert two.documents() == {1: ("new", "four")}


def test_a_connector_that_begins_anew_takes_away_rows_of_its_own_tables_only(two: Two) -> None:
    two.crm(5, id=2, name="Bo 5")
    two.labels["crm"] = "s1764017000300/1/0"
    two.crm_snapshot({"id": 1, "name": "Ada anew"})
    assert two.documents() == {1: ("new", "Ada anew")}
    assert two.engine.mirror.row(two.engine.layout.tables["crm.customers"], (2,)) is None
    two.shop(101, id=1, status="paid", customer_id=2)
    assert two.documents() == {1: ("paid", None)}


def test_a_snapshot_that_ends_in_another_table_is_over_when_its_connector_streams(two: Two) -> None:
    two.labels["crm"] = "s1764017000300/1/0"
    two.send("crm.customers", "r", {"snapshot": "first"}, id=1, name="Ada anew")
    assert not two.engine.may_flush
    two.heartbeat(9, 1000)
    assert not two.engine.may_flush, "from before it"
    two.heartbeat(10, 2000)
    assert two.engine.may_flush
    assert two.documents() == {1: ("new", "Ada anew")}


def test_the_logs_of_both_are_known_after_a_restart(two: Two, tmp_path: Path) -> None:
    two.crm(5, id=1, name="Ada 5")
    two.shop(101, id=1, status="paid", customer_id=1)
    before = two.engine.logs.connectors
    two.mirror.close()
    two.mirror = Mirror(two.mirror.path, two.engine.layout, owner="test")
    two.engine = Engine(two.mirror, two.engine.inputs, sweep_limit=1.0)
    assert two.engine.logs.connectors == before
    assert two.engine.logs.begun(1764017000100) == two.engine.logs.ordinal(1764017000100)
    two.crm(4, id=1, name="from before")
    assert two.documents() == {1: ("paid", "Ada 5")}


def test_the_tables_of_several_connectors_are_read_only_where_the_author_says_so(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text('name = "shop"\ntables = ["shop.orders"]\n')
    (tmp_path / "crm.toml").write_text('name = "crm"\nkind = "mariadb"\nsource = "crm"\ntables = ["crm.customers"]\n')
    settings = Settings(connectors=tmp_path, catalog=tmp_path / "none.json")
    wired = wire(settings, orders)
    assert (wired.definition.name, wired.inputs.boundaries) == ("shop", None)
    assert wired.inputs.others == {"crm.crm.customers": "crm", "crm.transaction": "crm"}
    assert wired.inputs.heard == {"shop.transaction", "crm.transaction"}
    assert {table: of.name for table, of in definitions_of(settings, orders).items()} == {
        "shop.orders": "shop", "crm.customers": "crm",
    }  # fmt: skip
    with pytest.raises(DefinitionError, match="crm and shop, whose positions have no common order"):
        definition_of(settings, orders)
    with pytest.raises(DefinitionError, match="captures"):
        wire(settings, projection(Order, to=elasticsearch("orders")))
