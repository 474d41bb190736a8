"""Rows whose owner can change: children with keys of their own, groups, and events, in the exchange against the oracle."""

from __future__ import annotations

import json
from decimal import Decimal
from random import Random
from typing import Any, Self

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import Aggregate, Document, EventDocument, count, group, many, maximum, on, one, total
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.shape import shape_of
from pipeline.engine.exchange import Router
from pipeline.engine.inputs import Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.measures import group_id, group_text
from pipeline.engine.owners import Owners, owner_of
from pipeline.events.envelope import TableDecoder
from pipeline.testing.source import SourceModel
from tests.unit.test_engine_properties import Customers, small_fanouts
from tests.unit.test_exchange_properties import Shop, converge

__all__ = ["small_fanouts"]

KEYS = {"shop.customers": ("id",), "shop.orders": ("id",), "shop.lines": ("id",)}


class Line(Document, source="shop.lines"):
    id: int
    quantity: int


class Buyer(Document, source="shop.customers"):
    name: str


class Order(Document, source="shop.orders"):
    id: int
    status: str
    charged: Decimal
    customer_id: int | None
    customer: Buyer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id", order_by="id")

    @property
    def pieces(self) -> int:
        return sum(line.quantity for line in self.lines)

    @property
    def large(self) -> bool:
        return self.pieces > 9

    def keep(self) -> bool:
        return self.status != "draft"


class OfCustomer(Aggregate, of=Order):
    customer_id: int | None = group()
    orders: int = count()
    charged: Decimal = total("charged")
    pieces: int = total("pieces")
    name: str | None = maximum("customer.name")


class ByStatus(Aggregate, of=Order):
    large: bool = group()
    status: str = group()
    orders: int = count()
    pieces: int = total("pieces")


class Moves(Customers):
    """Orders that change hands, lines that change their order, with keys of their own."""

    def product(self) -> None:
        self.order()

    def order(self) -> None:
        self._put("shop.orders", {
            "id": self.random.randint(1, 5),
            "status": self.random.choice(("draft", "placed", 'pa"id', "{ø😀\\", "[", "")),
            "charged": self.random.choice(("1.00", "0.5", "-3")),
            "customer_id": self.random.choice((None, 0, 1, 2, 3)),
        })  # fmt: skip

    def line(self) -> None:
        self._put("shop.lines", {
            "id": self.random.randint(1, 6),
            "quantity": self.random.randint(0, 9),
            "order_id": self.random.choice((None, 0, 1, 2, 3, 4, 5)),
        })  # fmt: skip


def orders(model: SourceModel, n: int) -> dict[str, Any]:
    rows = model.states[n]
    found = {}
    for order in rows["shop.orders"].values():
        if order["status"] == "draft":
            continue
        customer = rows["shop.customers"].get((order["customer_id"],))
        lines = sorted((line for line in rows["shop.lines"].values() if line["order_id"] == order["id"]),
                       key=lambda line: line["id"])  # fmt: skip
        found[str(order["id"])] = {
            **order,
            "customer": None if customer is None else {"name": customer["name"]},
            "lines": [{"id": line["id"], "quantity": line["quantity"]} for line in lines],
        }
    return found


def of_customer(model: SourceModel, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for order in orders(model, n).values():
        whose = order["customer_id"]
        known = found.setdefault(group_id(json.dumps([whose])), [])
        known.append(order)
    return {
        id: {
            "customer_id": of[0]["customer_id"],
            "orders": len(of),
            "charged": str(sum(Decimal(order["charged"]) for order in of)),
            "pieces": sum(line["quantity"] for order in of for line in order["lines"]),
            "name": None if of[0]["customer"] is None else of[0]["customer"]["name"],
        }
        for id, of in found.items()
    }


def by_status(model: SourceModel, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for order in orders(model, n).values():
        pieces = sum(line["quantity"] for line in order["lines"])
        key = [pieces > 9, order["status"]]
        text = json.dumps(key, ensure_ascii=False, separators=(",", ":"))
        document = found.setdefault(group_id(text), {"large": key[0], "status": key[1], "orders": 0, "pieces": 0})
        document["orders"] += 1
        document["pieces"] += pieces
    return found


class Event(Document, source="shop.events"):
    id: int
    of: int
    type: str
    payload: str


class Story(EventDocument, of=Event):
    of: int = group()
    seen: tuple[int, ...] = ()

    @on(int, name="seen")
    def see(self, event: int) -> Self:
        return self.but(seen=(*self.seen, event))


class Events(Customers):
    """An outbox that somebody tidies up, and where somebody puts right whose an event is; no id is used again."""

    def transaction(self) -> None:
        with self.model.transaction():
            for _ in range(self.random.randint(1, 4)):
                self.random.choice((self.event, self.event, self.event, self.delete))()

    def event(self) -> None:
        rows = self.model.rows["shop.events"]
        self.serial += 1
        key = self.random.choice([*(key for (key,) in rows), self.serial, self.serial])
        event = {"of": self.random.randint(0, 3), "type": "seen", "payload": str(self.random.randint(1, 99))}
        self._put("shop.events", {"id": key, **event})

    order = event


def stories(model: SourceModel, n: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (_,), row in sorted(model.ever("shop.events", n).items()):
        document = found.setdefault(str(row["of"]), {"of": row["of"], "seen": []})
        document["seen"].append(int(row["payload"]))
    return found


# ---- what each partition gets ---------------------------------------------------------------------------------

LINES = "shop.lines"
PARTITIONS = 4


def shares(
    value: bytes, document: type[Any] = Order, table: str = LINES, key: bytes = b'{"id":7}'
) -> list[bytes | None]:
    """What each partition gets of a record of this table."""
    layout = lay_out(shape_of(document))
    router = Router(
        layout, Inputs({f"shop.{name}": name for name in layout.tables}, "shop.transaction", "shop"), PARTITIONS
    )
    found = router.shares(f"shop.{table}", (3, key, value))
    return [None if one is None else one[2] for one in found]


def change(op: str, after: dict[str, Any] | None, before: dict[str, Any] | None = None, **source: Any) -> bytes:
    block = {"id": "77:900", "total_order": 2}
    source = {"ts_ms": 5, "lsn": 100, "sequence": '["90","100"]', **source}
    return json.dumps({"op": op, "before": before, "after": after, "source": source, "transaction": block}).encode()


def line(order: Any) -> dict[str, Any]:
    return {"id": 7, "quantity": 1, "order_id": order}


def gone(found: list[bytes | None]) -> list[int]:
    """Who is told that the row has moved."""
    return [n for n, value in enumerate(found) if value is not None and b'"moved":true' in value]


OWNER = owner_of("5", PARTITIONS)
OTHERS = [n for n in range(PARTITIONS) if n != OWNER]


def test_an_update_goes_to_its_owner_and_takes_the_row_from_all_others() -> None:
    value = change("u", line(5))
    found = shares(value)
    assert (found[OWNER], gone(found)) == (value, OTHERS)
    layout = lay_out(shape_of(Order))
    table = layout.tables[LINES]
    event = TableDecoder(LINES, table.number, table.wires, table.key).decode(b'{"id":7}', found[OTHERS[0]])
    assert (event.op, event.moved, event.key) == ("d", True, (7,))
    assert event.transaction is not None and event.transaction.total_order == 2, "it counts in its transaction"
    assert event.source.lsn == 100


def test_an_old_image_that_says_the_row_stayed_tells_nobody_else() -> None:
    found = shares(change("u", line(5), line(5)))
    assert [n for n, value in enumerate(found) if value is not None] == [OWNER]
    assert gone(shares(change("u", line(5), line(6)))) == OTHERS


@pytest.mark.parametrize("nothing", [0, None])
def test_what_an_old_image_has_in_place_of_a_column_that_it_lacks_says_nothing(nothing: int | None) -> None:
    """REPLICA IDENTITY USING INDEX: a column that is not in it comes as null, or where it may not be null as 0."""
    found = shares(change("u", line(nothing), line(nothing)))
    assert len(gone(found)) == PARTITIONS - 1


def test_an_insert_is_its_owners_alone_and_a_delete_is_told_to_all() -> None:
    found = shares(change("c", line(5)))
    assert [n for n, value in enumerate(found) if value is not None] == [OWNER]
    value = change("d", None)
    assert shares(value) == [value] * PARTITIONS


@pytest.mark.parametrize("value", [b"no envelope", change("u", {"id": 7, "quantity": 1}), change("t", None),
                                   change("u", line([5]))])  # fmt: skip
def test_what_does_not_say_whose_it_is_goes_to_all(value: bytes) -> None:
    assert shares(value) == [value] * PARTITIONS


def test_a_row_read_again_answers_whoever_asked_for_it() -> None:
    found = shares(change("r", line(5), snapshot="incremental"))
    assert gone(found) == OTHERS
    found = shares(change("r", line(5), snapshot="true"))
    assert gone(found) == []


def test_a_message_is_nobodys() -> None:
    assert shares(change("m", None)) == [None] * PARTITIONS


def test_an_envelope_with_its_schema_around_it_is_read_as_one_without() -> None:
    value = b'{"schema":{},"payload":%b}' % change("u", line(5))
    found = shares(value)
    assert (found[OWNER], gone(found)) == (value, OTHERS)


def test_a_text_that_did_not_change_and_is_left_out_is_that_of_the_old_image() -> None:
    order = {"id": 7, "status": "__debezium_unavailable_value", "charged": "1", "customer_id": 1}
    value = change("u", order, {**order, "status": "paid"})
    owner = owner_of("paid", PARTITIONS)
    assert shares(value, ByStatus, "shop.orders")[owner] == value
    value = change("u", order)
    assert shares(value, ByStatus, "shop.orders") == [value] * PARTITIONS


# ---- whose what is --------------------------------------------------------------------------------------------


@given(status=st.text(max_size=200), large=st.booleans())
def test_a_group_is_where_its_rows_are(status: str, large: bool) -> None:
    owners = Owners(lay_out(shape_of(ByStatus)), PARTITIONS)
    key = group_text(list(zip((large, status), aggregate_of(ByStatus).groups, strict=True)))
    own = owners.of_values((status,))
    assert owners.of_key((key,)) == own
    assert owners.of_id(group_id(key)) in (own, None)
    assert owners.of_id(group_id(key)) == own or group_id(key).startswith("sha256:")


@given(customer=st.none() | st.integers())
def test_a_group_by_one_column_is_where_its_rows_are(customer: int | None) -> None:
    owners = Owners(lay_out(shape_of(OfCustomer)), PARTITIONS)
    key = group_text([(customer, aggregate_of(OfCustomer).groups[0])])
    assert owners.of_values((customer,)) == owners.of_key((key,)) == owners.of_id(group_id(key))


def aggregate_of(aggregate: type[Any]) -> AggregateShape:
    shape = shape_of(aggregate)
    assert isinstance(shape, AggregateShape)
    return shape


def test_rows_go_by_the_roots_key_or_the_groups_columns_as_far_as_joins_carry_them() -> None:
    of_orders, of_groups = (Owners(lay_out(shape_of(of)), PARTITIONS) for of in (Order, OfCustomer))
    assert (of_orders.columns, of_groups.columns) == (("id",), ("customer_id",))
    assert [name for name in KEYS if of_orders.places[name] is None] == ["shop.customers"]
    assert [name for name in KEYS if of_groups.places[name] is None] == [LINES]
    assert [of_orders.by_key(name) for name in KEYS] == [False, True, False]
    assert [of_groups.by_key(name) for name in KEYS] == [True, False, False]
    assert not of_orders.has_all_of(of_groups), "a rebuild can't begin with the other's mirrors"
    assert of_groups.has_all_of(Owners(lay_out(shape_of(OfCustomer)), PARTITIONS))


# ---- against the oracle ---------------------------------------------------------------------------------------

FULL = frozenset({"shop.orders", "shop.lines", "shop.events"})
SHOPS = {
    "children with keys of their own": Shop(lay_out(shape_of(Order)), KEYS, Moves, orders),
    "the same, and old images": Shop(lay_out(shape_of(Order)), KEYS, Moves, orders, FULL),
    "groups": Shop(lay_out(shape_of(OfCustomer)), KEYS, Moves, of_customer),
    "groups, and old images": Shop(lay_out(shape_of(OfCustomer)), KEYS, Moves, of_customer, FULL),
    "groups by what is computed, too": Shop(lay_out(shape_of(ByStatus)), KEYS, Moves, by_status),
    "events": Shop(lay_out(shape_of(Story)), {"shop.events": ("id",)}, Events, stories),
}


@pytest.mark.edge_case(6, 8, 13, 38, 40, 41)
@pytest.mark.parametrize("shop", SHOPS.values(), ids=SHOPS.keys())
@given(
    random=st.randoms(use_true_random=False),
    workers=st.integers(2, 3),
    partitions=st.integers(1, 3),
    rounds=st.integers(10, 70),
    staged_bytes=st.sampled_from([300, 64_000_000]),
    begin=st.sampled_from(["log", "snapshot", "copy"]),
)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_row_that_moves_is_its_new_owners_and_no_longer_its_old_ones(
    shop: Shop, random: Random, workers: int, partitions: int, rounds: int, staged_bytes: int, begin: str
) -> None:
    if shop.layout.root.kept:
        begin = "log"  # only the log knows of events that were deleted
    converge(shop, random, workers, partitions, rounds, staged_bytes, begin)
