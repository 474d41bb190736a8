"""One mirror fed by two connectors: each has its own source logs, positions and sweeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline import Document, elasticsearch, one, projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.errors import DefinitionError
from pipeline.events.foreign import Foreign, JsonRows, Plain
from pipeline.runtime.wiring import connectors_of, definitions_of, wire
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
    def __init__(self, folder: Path, inputs: Inputs | None = None) -> None:
        layout = lay_out(shape_of(Order))
        self.mirror = Mirror(str(folder / "m.db"), layout, owner="test")
        topics = {f"{table.partition('.')[0]}.{table}": table for table in layout.tables}
        others = {"crm.crm.customers": "crm", "crm.transaction": "crm"}
        inputs = inputs or Inputs(topics, "shop.transaction", "shop", others)
        self.engine = Engine(self.mirror, inputs, sweep_limit=1.0)
        self.offsets: dict[str, int] = {}
        self.labels = {"shop": SHOP, "crm": CRM}

    def send(self, table: str, op: str, source: dict[str, Any], order: int = 1, **row: Any) -> None:
        connector = table.partition(".")[0]
        partition = f"{connector}.{table}/0"
        offset = self.offsets[partition] = self.offsets.get(partition, -1) + 1
        place = source.get("gtid") or f"{source.get('lsn')}:{source.get('lsn')}"
        block = None if op == "r" else {"id": place, "total_order": order}
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

    def end(self, connector: str, id: str, label: str | None = None, **counts: int) -> None:
        """A transaction's END, with how many events each table has."""
        partition = f"{connector}.transaction/0"
        offset = self.offsets[partition] = self.offsets.get(partition, -1) + 1
        told = {
            "status": "END", "id": id, "event_count": sum(counts.values()), "ts_ms": 1000,
            "data_collections": [{"data_collection": f"{connector}.{t}", "event_count": n} for t, n in counts.items()],
        }  # fmt: skip
        self.receive(partition, (offset, None, json.dumps(told).encode()), label or self.labels[connector])

    def marks(self) -> dict[str, int]:
        """How far each connector's entry of the watermark is."""
        while self.engine.continue_fanout():
            pass
        return {connector: int(mark["lsn"]) for connector, mark in self.engine.watermark(1).items()}

    def restart(self) -> None:
        self.mirror.close()
        self.mirror = Mirror(self.mirror.path, self.engine.layout, owner="test")
        self.engine = Engine(self.mirror, self.engine.inputs, sweep_limit=1.0)

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
    assert two.engine.may_flush, "no END is waited for"


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
    two.end("crm", "0-1-9", CRM)
    two.end("shop", "300:300")
    assert not two.engine.may_flush, "one is from before it, the other of the other connector"
    two.end("crm", "0-1-10")
    assert two.engine.may_flush
    assert two.documents() == {1: ("new", "Ada anew")}


def test_the_logs_of_both_are_known_after_a_restart(two: Two, tmp_path: Path) -> None:
    two.crm(5, id=1, name="Ada 5")
    two.shop(101, id=1, status="paid", customer_id=1)
    before = two.engine.logs.connectors
    two.restart()
    assert two.engine.logs.connectors == before
    assert two.engine.logs.begun(1764017000100) == two.engine.logs.ordinal(1764017000100)
    two.crm(4, id=1, name="from before")
    assert two.documents() == {1: ("paid", "Ada 5")}


def test_a_connector_that_has_another_name_goes_on(two: Two) -> None:
    two.shop(110, id=1, status="paid", customer_id=1)
    two.end("shop", "110:110", orders=1)
    two.end("shop", "120:120", orders=2)
    two.shop(120, id=1, status="sent", customer_id=1)
    known, two.engine.inputs = two.engine.inputs, replace(two.engine.inputs, connector="store")
    assert known.connectors == ("shop", "crm") and two.engine.inputs.connectors == ("store", "crm")
    two.restart()
    two.shop(130, id=1, status="back", customer_id=1)
    assert two.documents() == {1: ("back", "Ada")}


def test_each_connectors_end_moves_its_own_entry_and_only_with_all_its_events(two: Two) -> None:
    two.end("shop", "110:110")
    two.end("crm", "0-1-5")
    assert two.marks() == {"shop": 110, "crm": 5}
    two.end("crm", "0-1-6", customers=2)
    two.end("crm", "0-1-7")
    two.crm(6, id=1, name="Ada 6")
    two.end("shop", "120:120")
    assert two.marks() == {"shop": 120, "crm": 5}, "one of its two events is not here, and no later END goes before it"
    two.crm(6, order=2, id=2, name="Bo 6")
    assert two.marks() == {"shop": 120, "crm": 7}
    assert two.documents() == {1: ("new", "Ada 6")}


def test_what_was_counted_of_each_is_known_after_a_restart(two: Two) -> None:
    two.end("crm", "0-1-5")
    two.end("crm", "0-1-6", customers=2)
    two.crm(6, id=1, name="Ada 6")
    two.shop(110, id=1, status="paid", customer_id=1)
    two.restart()
    assert two.engine.next_offset("crm.transaction/0") == 1, "the END that waits is read again"
    two.offsets["crm.transaction/0"] -= 1
    two.end("crm", "0-1-6", customers=2)
    two.end("shop", "110:110", orders=1)
    assert two.marks() == {"shop": 110, "crm": 5}
    two.crm(6, order=2, id=2, name="Bo 6")
    assert two.marks() == {"shop": 110, "crm": 6}
    two.end("crm", "0-1-6", customers=2)  # sent again
    two.crm(7, id=1, name="Ada 7")
    two.end("crm", "0-1-7", customers=1)
    assert two.marks() == {"shop": 110, "crm": 7}


def test_what_does_not_complete_holds_up_its_own_connector_and_is_given_up(two: Two) -> None:
    two.end("crm", "0-1-5")
    two.end("crm", "0-1-6", customers=2)
    two.end("shop", "110:110", orders=1)
    assert two.engine.overdue(0.0, 10.0) is None
    two.shop(110, id=1, status="paid", customer_id=1)
    stuck = two.engine.overdue(11.0, 10.0)
    assert stuck is not None and stuck.endswith("/0-1-6")
    two.engine.give_up(stuck)
    assert two.marks() == {"shop": 110, "crm": 6} and two.engine.overdue(30.0, 10.0) is None


def test_the_snapshots_of_both_are_awaited_whichever_began_later(tmp_path: Path) -> None:
    two = Two(tmp_path)
    two.shop(100, "r", "true", id=1, status="new", customer_id=1)
    two.crm_snapshot({"id": 1, "name": "Ada"})
    two.crm(5, id=1, name="Ada 5")
    assert not two.engine.loaded, "the shop's snapshot goes on"
    two.shop(100, "r", "last", id=2, status="new", customer_id=1)
    assert two.engine.loaded and two.documents() == {1: ("new", "Ada 5"), 2: ("new", "Ada 5")}
    two.mirror.close()


def test_two_that_begin_anew_at_once_each_take_away_what_is_gone(two: Two) -> None:
    two.shop(110, "c", id=2, status="new", customer_id=2)
    two.labels |= {"shop": "s1764017000300/7412345/1", "crm": "s1764017000400/1/0"}
    two.shop(200, "r", "first", id=1, status="again", customer_id=1)
    two.crm_snapshot({"id": 1, "name": "Ada again"})
    two.shop(200, "r", "last", id=3, status="again", customer_id=2)
    assert two.documents() == {1: ("again", "Ada again"), 3: ("again", None)}
    two.end("shop", "210:210")
    two.end("crm", "0-1-9")
    assert two.marks() == {"shop": 210, "crm": 9}


def flat() -> Foreign:
    return Foreign(partial(JsonRows, envelope="flattened", plain=Plain("", False, {})), frozenset())


def test_a_foreign_topic_beside_it_counts_nothing_and_holds_up_no_watermark(tmp_path: Path) -> None:
    topics = {"shop.shop.orders": "shop.orders", "erp.people": "crm.customers"}
    inputs = Inputs(topics, "shop.transaction", "shop", {"erp.people": "erp"}, foreign={"erp.people": flat()})
    two = Two(tmp_path, inputs)
    two.shop(100, "r", "last", id=1, status="new", customer_id=1)
    two.receive("erp.people/0", (0, b'{"id":1}', b'{"id":1,"name":"Ada"}'), CRM)
    assert two.engine.loaded and two.documents() == {1: ("new", "Ada")}
    two.end("shop", "110:110", orders=1)
    assert two.marks() == {}, "its event is not here"
    two.shop(110, id=1, status="paid", customer_id=1)
    assert two.marks() == {"shop": 110}
    two.restart()
    assert (two.engine.next_offset("erp.people/0"), two.engine.next_offset("shop.transaction/0")) == (1, 1)
    two.receive("erp.people/0", (1, b'{"id":1}', b'{"id":1,"name":"Bo"}'), CRM)
    assert two.documents() == {1: ("paid", "Bo")} and two.engine.consistency == "row"
    assert two.engine.logs.connectors.keys() == {0, 1764017000100}, "whose a label of others is nobody knows"
    two.mirror.close()


def test_beside_documents_of_a_foreign_topic_a_connector_is_counted(tmp_path: Path) -> None:
    topics = {"erp.orders": "shop.orders", "crm.crm.customers": "crm.customers"}
    others = {"crm.crm.customers": "crm", "crm.transaction": "crm"}
    two = Two(tmp_path, Inputs(topics, None, "erp", others, foreign={"erp.orders": flat()}))
    two.receive("erp.orders/0", (0, b'{"id":1}', b'{"id":1,"status":"new","customer_id":1}'), "")
    two.crm_snapshot({"id": 1, "name": "Ada"}, {"id": 2, "name": "Bo"})
    assert two.engine.loaded and two.documents() == {1: ("new", "Ada")}
    two.end("crm", "0-1-5", customers=1)
    two.crm(5, id=1, name="Ada 5")
    assert two.marks() == {"crm": 5}
    two.restart()
    two.labels["crm"] = "s1764017000300/1/0"
    two.crm_snapshot({"id": 2, "name": "Bo anew"})
    assert two.documents() == {1: ("new", None)}, "its own tables only"
    two.mirror.close()


def test_the_tables_of_several_connectors_are_read_only_where_the_author_says_so(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text('name = "shop"\ntables = ["shop.orders"]\n')
    (tmp_path / "crm.toml").write_text('name = "crm"\nkind = "mariadb"\nsource = "crm"\ntables = ["crm.customers"]\n')
    settings = Settings(connectors=tmp_path, catalog=tmp_path / "none.json")
    wired = wire(settings, orders)
    assert (wired.definition.name, wired.inputs.boundaries) == ("shop", "shop.transaction")
    assert wired.inputs.others == {"crm.crm.customers": "crm", "crm.transaction": "crm"}
    assert wired.inputs.transactions == {"shop.transaction": "shop", "crm.transaction": "crm"}
    assert {table: of.name for table, of in definitions_of(settings, orders).items()} == {
        "shop.orders": "shop", "crm.customers": "crm",
    }  # fmt: skip
    assert list(connectors_of(settings, orders)) == ["shop", "crm"]
    with pytest.raises(DefinitionError, match="captures"):
        wire(settings, projection(Order, to=elasticsearch("orders")))
