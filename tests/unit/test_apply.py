"""`cdc apply`: what is created, what is left alone, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.sinks.memory import MemorySink, MemoryStore
from pipeline import Document, elasticsearch, one, projection
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.errors import OperationError, PlanOutdated
from pipeline.operations.apply import Applied, ApplyReport, CapturedBy, Opener, apply, compare_plans, plan
from pipeline.ports import Sink, Write


class Order(Document, source="shop.orders"):
    id: int


class Changed(Document, source="shop.orders"):
    id: int
    status: str


class Person(Document, source="crm.people"):
    name: str


class Bought(Document, source="shop.orders"):
    id: int
    person: Person | None = one(via="person_id")


ORDERS = projection(Order, to=elasticsearch("orders"))


def opener(store: MemoryStore) -> Opener:
    def opened(target: Target, of: Projection[Any]) -> Sink:
        return MemorySink(store=store, alias=target.name, projection=of.id, shape=shape_of(of.shape))

    return opened


async def applied(store: MemoryStore, folder: Path, *projections: Projection[Any]) -> ApplyReport:
    memory = Applied(folder)
    return await apply(await plan(projections, opener(store), memory), projections, opener(store), memory)


def actions(report: ApplyReport) -> list[str]:
    return [step.action for step in report.steps]


def readable(store: MemoryStore) -> str | None:
    return store.aliases.get("orders")


async def test_a_first_version_is_shown_to_readers_at_once(tmp_path: Path) -> None:
    store = MemoryStore()

    report = await applied(store, tmp_path, ORDERS)

    assert actions(report) == ["create"]
    assert report.done
    assert readable(store) == "orders-v1"


async def test_a_first_version_may_have_any_number(tmp_path: Path) -> None:
    store = MemoryStore()

    await applied(store, tmp_path, replace(ORDERS, version=3))

    assert readable(store) == "orders-v3"


async def test_applying_again_changes_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path, ORDERS)
    before = (tmp_path / "applied.json").read_text()

    report = await applied(store, tmp_path, ORDERS)

    assert actions(report) == ["unchanged"]
    assert not report.changes
    assert (tmp_path / "applied.json").read_text() == before


async def test_a_plan_changes_nothing(tmp_path: Path) -> None:
    store = MemoryStore()

    report = await plan([ORDERS], opener(store), Applied(tmp_path))

    assert actions(report) == ["create"]
    assert readable(store) is None
    assert list(tmp_path.iterdir()) == []


async def test_the_next_version_is_built_beside_the_live_one(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path, ORDERS)

    report = await applied(store, tmp_path, replace(ORDERS, shape=Changed, version=2))

    assert actions(report) == ["beside"]
    assert readable(store) == "orders-v1"


async def test_a_changed_definition_needs_the_next_version(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path, ORDERS)

    with pytest.raises(OperationError, match=r"raise its version to 2"):
        await applied(store, tmp_path, replace(ORDERS, shape=Changed))

    assert readable(store) == "orders-v1"


async def test_a_plan_shows_the_fields_that_differ_and_what_building_takes(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path, ORDERS)
    sink = opener(store)(ORDERS.to[0], ORDERS)
    await sink.write([Write(str(n), 1, f'{{"id": {n}}}') for n in range(8)], 1)

    (step,) = (await plan([replace(ORDERS, shape=Changed, version=2)], opener(store), Applied(tmp_path))).steps

    assert step.changes == ("+ status text",)
    assert (step.documents, step.seconds) == (8, 0.0)
    assert "its log has all that it needs" in step.reason
    (less,) = (await plan([replace(ORDERS, version=2)], opener(store), Applied(tmp_path))).steps
    assert less.changes == () and "its mirror has all that it needs" in less.reason


async def test_a_refused_change_says_what_it_is(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path, ORDERS)

    report = await plan([replace(ORDERS, shape=Changed)], opener(store), Applied(tmp_path))

    assert report.refused[0].changes == ("+ status text",)


async def test_what_no_file_declares_any_more_is_named_and_left(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path, ORDERS)

    report = await plan([], opener(store), Applied(tmp_path))

    assert [(s.projection, s.version, s.target, s.action) for s in report.steps] == [
        ("orders", 1, "elasticsearch:orders", "left")
    ]
    assert not report.changes


async def test_a_plan_for_something_else_is_refused(tmp_path: Path) -> None:
    store = MemoryStore()
    given = await plan([ORDERS], opener(store), Applied(tmp_path))

    compare_plans(given, await plan([ORDERS], opener(store), Applied(tmp_path)))
    with pytest.raises(PlanOutdated, match=r"orders \(create\) differ"):
        compare_plans(given, await plan([replace(ORDERS, shape=Changed)], opener(store), Applied(tmp_path)))
    await applied(store, tmp_path, ORDERS)
    with pytest.raises(PlanOutdated, match="Make it again"):
        compare_plans(given, await plan([ORDERS], opener(store), Applied(tmp_path)))


async def test_readers_stay_where_they_are_when_the_state_directory_is_lost(tmp_path: Path) -> None:
    store = MemoryStore()
    await applied(store, tmp_path / "first", ORDERS)
    await opener(store)(ORDERS.to[0], ORDERS).claim("worker", 0)

    again = await applied(store, tmp_path / "second", ORDERS)
    later = await applied(store, tmp_path / "third", replace(ORDERS, shape=Changed, version=2))

    assert (actions(again), actions(later)) == (["adopt"], ["beside"])
    assert readable(store) == "orders-v1"


async def test_the_plan_says_what_the_connector_lacks(tmp_path: Path) -> None:
    async def notes(*connectors: CapturedBy) -> list[str]:
        return list((await plan([ORDERS], opener(MemoryStore()), Applied(tmp_path), connectors)).notes)

    tables = frozenset({"shop.orders"})

    assert await notes(CapturedBy("shop", tables, True)) == []
    assert "is not applied" in (await notes(CapturedBy("shop", tables, False)))[0]
    assert "captures shop.orders" in (await notes(CapturedBy("shop", frozenset(), True)))[0]
    assert "captures shop.orders" in (await notes())[0]


async def test_the_plan_asks_for_every_connector_of_a_projection_over_several(tmp_path: Path) -> None:
    both = projection(Bought, to=elasticsearch("bought"), across_sources=True)

    async def notes(*connectors: CapturedBy) -> list[str]:
        return list((await plan([both], opener(MemoryStore()), Applied(tmp_path), connectors)).notes)

    shop, crm = CapturedBy("shop", frozenset({"shop.orders"}), True), frozenset({"crm.people"})
    assert await notes(CapturedBy("other", frozenset({"x.y"}), False), shop, CapturedBy("crm", crm, True)) == []
    assert await notes(shop, CapturedBy("crm", crm, False)) == [
        "Connector crm is not applied: run `cdc connector apply crm`."
    ]
    (missing,) = await notes(shop)
    assert "captures crm.people" in missing


async def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "applied.json").write_text("{")

    with pytest.raises(OperationError, match="delete it"):
        await plan([ORDERS], opener(MemoryStore()), Applied(tmp_path))
