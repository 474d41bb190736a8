"""The memory sink keeps the promises of every sink, and fails when told to."""

from __future__ import annotations

import pytest
from sink_contract import SECRET, SHAPE, Server, SinkContract, text

from connectors.sinks import open_sink
from connectors.sinks.memory import MemorySink, MemoryStore
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError
from pipeline.ports import APPLIED, Rejected, Throttled, Write
from pipeline.settings import Settings


class MemoryServer:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.sinks: list[MemorySink] = []

    def open(self, projection: str, *, shape: Shape, bulk_bytes: int) -> MemorySink:
        sink = MemorySink(store=self.store, alias="orders", projection=projection, shape=shape)
        self.sinks.append(sink)
        return sink

    def unreachable(self, projection: str) -> MemorySink:
        sink = self.open(projection, shape=SHAPE, bulk_bytes=1)
        sink.away = "nobody listens there"
        return sink

    async def lose(self, projection: str) -> None:
        del self.store.versions[projection]

    async def block(self, projection: str, on: bool) -> None:
        for sink in self.sinks:
            sink.throttle = lambda write: "the disk is full" if on else None

    async def visible(self) -> str | None:
        which = self.store.visible("orders").get("which")
        return None if which is None else str(which["note"])

    async def close(self) -> None:
        assert SECRET


class TestMemorySink(SinkContract):
    @pytest.fixture
    def prefix(self) -> str:
        return "orders"

    @pytest.fixture
    def server(self) -> Server:
        return MemoryServer()

    async def test_it_refuses_and_throttles_what_it_is_told_to_and_logs_everything(self) -> None:
        sink = MemorySink(store=MemoryStore(), alias="orders", projection="orders-v1")
        await sink.prepare()
        sink.refuse = lambda write: "too ugly" if write.id == "1" else None
        sink.throttle = lambda write: "too much" if write.id == "2" else None
        writes = [Write(id, 1, text()) for id in ("1", "2", "3")]
        outcomes = await sink.write(writes, 1)
        assert outcomes == [Rejected("too ugly"), Throttled("too much"), APPLIED]
        assert sink.log == list(zip(writes, outcomes, strict=True))


def projection() -> Projection:
    return Projection(SHAPE.document, (), "orders", 3)


def test_a_target_is_opened_by_its_kind() -> None:
    store = MemoryStore()
    target = Target("memory", "orders", {"store": store})
    assert open_sink(target, projection(), SHAPE, Settings()).name == "memory:orders-v3"


def test_an_unknown_kind_of_sink_names_the_known_ones() -> None:
    with pytest.raises(
        DefinitionError,
        match=r"orders-v3: no sink is called 'elastic'; known are elasticsearch, kafka, memory, postgres, redis",
    ):
        open_sink(Target("elastic", "orders"), projection(), SHAPE, Settings())
