"""`cdc apply`: what is created, what is left alone, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from connectors.sinks.memory import MemorySink, MemoryStore
from pipeline import Document, elasticsearch, projection
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.errors import OperationError
from pipeline.operations.apply import Applied, ApplyReport, CapturedBy, Opener, apply, plan
from pipeline.ports import Sink


class Order(Document, source="shop.orders"):
    id: int


class Changed(Document, source="shop.orders"):
    id: int
    status: str


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


async def test_a_damaged_record_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "applied.json").write_text("{")

    with pytest.raises(OperationError, match="delete it"):
        await plan([ORDERS], opener(MemoryStore()), Applied(tmp_path))
