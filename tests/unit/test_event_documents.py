"""Event documents: folded in the source's order whatever the transport does; what fails, and what a wrong class is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Self
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sagas import ForgettingSaga, Saga, ShopEvent, sagas
from world import World

from pipeline import Aggregate, Document, EventDocument, count, elasticsearch, group, on, projection
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.discovery import look
from pipeline.authoring.shape import shape_of
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.errors import BadShape, ScenarioError
from pipeline.operations.check import check
from pipeline.operations.mirrors import gone_rows
from pipeline.operations.preview import preview
from pipeline.operations.status import mirror_file
from pipeline.settings import Settings
from pipeline.testing import Scenario

KEPT = projection(Saga, to=elasticsearch("sagas"))
FORGETTING = projection(ForgettingSaga, to=elasticsearch("sagas"))


def told(
    shop: Scenario[Any], id: int, type: str, payload: dict[str, Any], *, of: int = 7, about: str = "order"
) -> None:
    shop.insert("shop.outbox", id=id, aggregate_type=about, aggregate_id=of, type=type, payload=payload)


def paid() -> Scenario[Saga]:
    shop = Scenario(KEPT)
    told(shop, 1, "OrderPlaced", {"total": 12.5})
    told(shop, 2, "order.paid", {"amount": 12.5})
    return shop


# ---- what a fold is ---------------------------------------------------------------------------------------


def test_each_event_gives_the_next_document() -> None:
    shop = paid()
    assert shop.document(7) == Saga(order_id=7, state="paid", total=Decimal("12.5"), paid=Decimal("12.5"))
    told(shop, 3, "OrderCompensated", {})
    assert (shop.document(7).state, shop.document(7).due) == ("compensated", Decimal("12.5"))
    shop.assert_converges(40)


def test_an_event_that_comes_late_takes_the_place_that_its_order_gives_it() -> None:
    shop = Scenario(KEPT)
    told(shop, 9, "OrderRefused", {"reason": "no stock"})
    told(shop, 4, "OrderPlaced", {"total": 3})
    assert shop.document(7).state == "refused" and shop.document(7).total == 3


def test_a_number_in_a_payload_is_exact() -> None:
    shop = Scenario(KEPT)
    shop.insert("shop.outbox", id=1, aggregate_type="order", aggregate_id=7, type="order.paid", payload={"amount": 0.1})
    told(shop, 2, "order.paid", {"amount": 0.2})
    assert shop.document(7).paid == Decimal("0.3")
    assert json.loads(json.dumps(shop.writes()["elasticsearch:sagas"][-1].document))["paid"] == "0.3"


def test_an_event_that_no_method_is_on_and_one_that_is_let_go_write_nothing() -> None:
    shop = paid()
    before = shop.writes()
    told(shop, 3, "StockCounted", {"n": 1})
    told(shop, 4, "OrderRefused", {"reason": "other"}, about="stock")
    assert shop.writes() == before


def test_a_document_that_keep_lets_go_leaves_the_sink() -> None:
    shop = paid()
    for n in range(3, 7):
        told(shop, n, "OrderRefused", {"reason": str(n)})
    assert shop.get(7) is None
    shop.assert_converges(20)


# ---- rows that are deleted --------------------------------------------------------------------------------


def test_an_event_whose_row_is_deleted_has_happened_all_the_same() -> None:
    shop = paid()
    before = shop.document(7)
    shop.delete("shop.outbox", 1)
    shop.truncate("shop.outbox")
    assert shop.document(7) == before
    with shop.transaction():  # as an outbox does that is read from the log alone
        told(shop, 3, "OrderRefused", {"reason": "fraud"})
        shop.delete("shop.outbox", 3)
    assert shop.document(7).reasons == ("fraud",)
    shop.assert_converges(40)


def test_a_deleted_event_is_forgotten_where_the_class_says_so() -> None:
    shop: Scenario[ForgettingSaga] = Scenario(FORGETTING)
    told(shop, 1, "OrderPlaced", {"total": 3})
    told(shop, 2, "order.paid", {"amount": 3})
    shop.delete("shop.outbox", 2)
    assert shop.document(7).state == "placed"
    shop.truncate("shop.outbox")
    assert shop.get(7) is None
    shop.assert_converges(40)


@pytest.mark.edge_case(12)
def test_a_new_connector_and_a_row_read_again_take_no_event_away(tmp_path: Path) -> None:
    world = World(tmp_path, "sagas", Random(1), label="s1000/7/1")
    rows = {
        n: {"id": n, "aggregate_type": "order", "aggregate_id": 1, "type": "OrderRefused", "payload": '{"reason":"a"}'}
        for n in (1, 2)
    }
    for row in rows.values():
        world.source.insert("shop.outbox", row)
    world.open()
    world.read_everything()
    world.settle_everything()
    before = world.sinks["memory:0"].get("1")
    world.source.produce()
    world.source.delete("shop.outbox", (1,))
    world.source.anew("s2000/7/1")  # the delete was never sent
    world.source.elsewhere()
    world.read_everything()
    world.settle_everything()
    place = world.engine.mirror.row(world.layout.root, (1,))
    assert place is not None
    world.engine.refreshing.remove("shop.outbox", {(1,): (place["_commit"], place["_order"])})
    world.settle_everything()
    assert world.engine.mirror.row(world.layout.root, (1,)) is not None
    assert world.sinks["memory:0"].get("1") == before and before["reasons"] == ["a", "a"]
    world.close()


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 6), st.integers(1, 2),
        st.sampled_from(("OrderPlaced", "order.paid", "OrderRefused", "OrderCompensated", "StockCounted")),
        st.booleans(),
    ),
    min_size=1, max_size=8, unique_by=lambda event: event[0],
)  # fmt: skip


@pytest.mark.edge_case(13, 38)
@settings(max_examples=25, deadline=None)
@given(EVENTS, st.integers(0, 1000))
def test_any_events_in_any_delivery_are_the_fold_of_the_rows_in_their_order(
    events: list[tuple[int, int, str, bool]], seed: int
) -> None:
    shop, rows = Scenario(KEPT), {}
    for id, of, type, deleted in events:
        payload = {"total": "1.50", "amount": id, "reason": str(id)}
        rows[(id,)] = {
            "id": id, "aggregate_type": "order", "aggregate_id": of, "type": type, "payload": json.dumps(payload)
        }  # fmt: skip
        with shop.transaction():
            told(shop, id, type, payload, of=of)
            if deleted:
                shop.delete("shop.outbox", id)
    held = {w.id: w.document for w in shop.writes()["elasticsearch:sagas"]}
    assert held == sagas({"shop.outbox": rows})
    shop.assert_converges(4, seed=seed)


# ---- what fails -------------------------------------------------------------------------------------------


def test_a_payload_that_does_not_fit_holds_back_its_document_alone_until_the_row_comes_right() -> None:
    shop = paid()
    told(shop, 3, "OrderRefused", {"why": "fraud"})
    told(shop, 4, "OrderPlaced", {"total": "much"}, of=8)
    told(shop, 5, "OrderPlaced", {"total": 1}, of=9)
    assert shop.document(9).state == "placed"
    assert shop.pending() == {
        "7": "failed: shop.outbox 3: UnsupportedValue: the payload is no OrderRefused: Object missing required field `reason`",
        "8": "failed: shop.outbox 4: UnsupportedValue: the payload is no OrderPlaced: total: Input should be a valid decimal",
    }
    shop.update("shop.outbox", 3, payload={"reason": "fraud"})
    assert shop.document(7).reasons == ("fraud",)
    shop.assert_converges(20)


class Odd(EventDocument, of=ShopEvent):
    order_id: int = group("aggregate_id")
    share: Decimal = Decimal(1)

    @on(dict[str, Any], name="OrderPlaced")
    def placed(self, event: dict[str, Any]) -> Self:
        return self.but(share=1 / Decimal(event["parts"]))

    @on(dict[str, Any], name="OrderPaid")
    def settled(self, event: dict[str, Any]) -> Self:
        if event:
            return self.but(**event)
        return None  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("type", "payload", "said"),
    [
        ("OrderPlaced", {"parts": 0}, "DivisionByZero"),
        ("OrderPaid", {}, "settled gave NoneType for OrderPaid; return the next document"),
        ("OrderPaid", {"shrae": 1}, "Odd has no field shrae"),
        ("OrderPaid", {"share": "half"}, "Input should be a valid decimal"),
    ],
)
def test_a_method_that_fails_holds_back_its_document_alone(type: str, payload: dict[str, Any], said: str) -> None:
    shop = Scenario(projection(Odd, to=elasticsearch("odd")))
    told(shop, 1, type, payload)
    told(shop, 2, "OrderPlaced", {"parts": 2}, of=8)
    assert shop.document(8).share == Decimal("0.5")
    with pytest.raises(ScenarioError, match=said):
        shop.document(7)


# ---- what an event may be ---------------------------------------------------------------------------------


class Moved(Document, source="shop.moves", key="uid"):
    uid: UUID
    at: datetime
    account: UUID
    kind: str
    body: str


@dataclass
class Booked:
    cents: int


class Booking(BaseModel):
    cents: int


class Balance(EventDocument, of=Moved, type="kind", payload="body", order_by="at"):
    account: UUID = group()
    cents: int = 0
    order: tuple[str, ...] = ()

    @on(Booked, name="in")
    @on(Booking, name="out")
    def booked(self, event: Booked | Booking) -> Self:
        sign = 1 if isinstance(event, Booked) else -1
        return self.but(cents=self.cents + sign * event.cents, order=(*self.order, str(event.cents)))


def test_columns_have_any_name_payloads_may_be_text_and_a_time_may_give_the_order() -> None:
    shop = Scenario(projection(Balance, to=elasticsearch("balances")))
    account = UUID(int=5)
    for n, kind, at in ((3, "out", "2026-01-01T00:00:02Z"), (5, "in", "2026-01-01T00:00:01.5Z")):
        body = json.dumps({"cents": n})
        shop.insert("shop.moves", uid=UUID(int=n), at=datetime.fromisoformat(at), account=account, kind=kind, body=body)
    assert shop.document(account) == Balance(account=account, cents=2, order=("5", "3"))
    shop.assert_converges(20)


# ---- wrong classes ----------------------------------------------------------------------------------------


class Strange(Document, source="shop.strange"):
    id: UUID
    note: int | None
    type: str
    payload: dict[str, Any]


def wrong(make: Callable[[], type[Aggregate]]) -> list[str]:
    with pytest.raises(BadShape) as caught:
        shape_of(make())
    return [line.partition(": ")[2] for line in str(caught.value).splitlines()]


def test_all_that_is_wrong_is_said_at_once() -> None:
    class Bad(EventDocument, of=Strange, type="typ", payload="note", deleted="gone"):  # type: ignore[arg-type]
        key: int = group("nte")
        state: str
        events: int = count()

        @on(dict[str, Any])
        def nameless(self, event: dict[str, Any]) -> Self:
            return self

        @on(Booked)
        def one(self, event: Booked) -> Self:
            return self

        @on(Booking, name="Booked")
        def two(self, event: Booking) -> Self:
            return self

        @on(Booking)
        async def later(self, event: Booking) -> Self:  # type: ignore[misc]
            return self

        @on(Booked | Booking, name="either")  # type: ignore[arg-type]
        def either(self, event: Booked | Booking) -> Self:
            return self

    found = wrong(lambda: Bad)
    for line, part in zip(
        found,
        (
            "Bad.type: Strange has no field 'typ'; did you mean 'type'?",
            "Bad.payload: Strange.note is int; name a field that is dict[str, Any], payload=….",
            "Bad.order_by: Strange.id is uuid, which does not say what happened first",
            "Bad.deleted is 'gone'; write deleted='kept' or deleted='forgotten'.",
            "Bad.key: Strange has no field 'nte'; did you mean 'note'?",
            "Bad.state has no value before the first event; give it a default, or write = group(…).",
            "Bad.events is count(…), which is for an Aggregate",
            "Bad.nameless is @on dict[str, typing.Any], which has no name; write @on(…, name='order.placed').",
            "Bad.two is @on Booked, and one is too; an event goes to one method.",
            "Bad.later is @on an event; write def later(self, event) -> Self",
            "Bad.either: either can't be read from JSON",
        ),
        strict=True,
    ):
        assert part in line


def test_a_class_without_events_is_told_what_to_write() -> None:
    class Empty(EventDocument, of=ShopEvent):
        aggregate_id: int = group()

    class Lonely(EventDocument):
        pass

    class Unordered(Empty, of=Strange, order_by="note"):
        @on(Booked)
        def one(self, event: Booked) -> Self:
            return self

    assert "Empty.handles no event" in wrong(lambda: Empty)[0]
    assert "write class Lonely(EventDocument, of=MyDocument)" in wrong(lambda: Lonely)[0]
    assert any("Strange.note may be null, which has no place" in line for line in wrong(lambda: Unordered))


def test_check_names_the_lines_and_the_columns_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    found = look(tmp_path)
    assert [(p.line, p.subject, p.error) for p in found.problems] == [
        (17, "Saga.state", "BadShape"), (24, "Saga.again", "BadShape"),
    ]  # fmt: skip
    columns = [
        Column(name=n, type=t, nullable=False) for n, t in (("id", "bigint"), ("type", "text"), ("payload", "text"))
    ]
    catalog = Catalog.of([Table(name="shop.outbox", columns=tuple(columns), primary_key=("id",))])
    report = check([found.projections["other"]], catalog, sinks={})
    assert [(f.line, f.error) for f in report.findings if f.subject.startswith("Event")] == [
        (10, "UnknownColumn"), (12, "WrongType"),
    ]  # fmt: skip


WRONG = """
from typing import Any, Self
from pipeline import Document, EventDocument, elasticsearch, group, on, projection

class Placed(dict):
    pass

class Event(Document, source="shop.outbox"):
    id: int
    order_id: int
    type: str
    payload: dict[str, Any]


class Saga(EventDocument, of=Event):
    order_id: int = group()
    state: str

    @on(Placed)
    def placed(self, event: Placed) -> Self:
        return self

    @on(Placed)
    def again(self, event: Placed) -> Self:
        return self

class Other(EventDocument, of=Event):
    order_id: int = group()

    @on(Placed)
    def placed(self, event: Placed) -> Self:
        return self

sagas = projection(Saga, to=elasticsearch("sagas"))
other = projection(Other, to=elasticsearch("other"))
"""


# ---- preview ----------------------------------------------------------------------------------------------


class Rows:
    """The source's rows, in memory."""

    def first(self, *_: Any) -> list[dict[str, Any]]:
        row = {"aggregate_type": "order", "aggregate_id": 7, "type": "OrderRefused"}
        return [{**row, "id": n, "payload": f'{{"reason":"{n}"}}'} for n in (2, 1)]

    def matching(self, *_: Any) -> list[dict[str, Any]]:
        return []


def test_preview_folds_the_first_rows() -> None:
    types = {"id": "bigint", "aggregate_type": "text", "aggregate_id": "bigint", "type": "text", "payload": "jsonb"}
    columns = tuple(Column(name=name, type=type, nullable=False) for name, type in types.items())
    catalog = Catalog.of([Table(name="shop.outbox", columns=columns, primary_key=("id",))])
    (found,) = preview(KEPT, catalog, Rows())
    assert found.document is not None and found.document["reasons"] == ["1", "2"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_group_whose_key_nobody_knows_has_no_events_that_are_gone(tmp_path: Path, workers: int) -> None:
    """As of an id that is a hash: `verify` asks for it as for any other."""
    own, saga = Settings(state_dir=tmp_path), projection(Saga, to=elasticsearch("sagas"), workers=workers)
    for number, part in enumerate(saga.parts):
        path = mirror_file(own, part)
        path.parent.mkdir(exist_ok=True)
        mirror = Mirror(str(path), lay_out(shape_of(Saga)), owner="one")
        if number == workers - 1:
            mirror.db.execute("INSERT INTO contributions VALUES(7, '[1]', 7, 'null')")
        mirror.close()
    with gone_rows(own, saga) as gone:
        assert gone is not None
        assert gone("[1]", frozenset())
        assert not gone("[1]", frozenset({(7,)}))
        assert not gone("", frozenset())
