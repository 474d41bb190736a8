"""The flusher between the real engine and the memory sink: what it must not write, and what it writes again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from world import World

from connectors.sinks.memory import Entry, MemorySink, MemoryStore
from pipeline.errors import Fenced
from pipeline.ports import Outcome, SinkRecord, Write
from pipeline.runtime.flusher import Flusher

WINDOW = 0.3
ORDER = {"customer_id": None, "status": "new", "note": None, "placed_at": "2026-01-01T00:00:00.000000Z"}


class Desk:
    """One flusher at work. `allowed` is what the consumer group says."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, "orders", Random(0))
        self.world.start()
        self.sink_id = self.world.ids["memory:0"]
        self.world.sinks.clear()  # what the world checks at its own sinks has no meaning here
        self.store = MemoryStore()
        self.sink = MemorySink(store=self.store, alias="orders", projection="orders-v1")
        self.allowed: Callable[[], bool] = lambda: True
        self.rows, self.whole = 100, False

    @property
    def documents(self) -> dict[str, Any]:
        entries = self.store.versions["orders-v1"]
        return {id: entry.document for id, entry in entries.items() if entry.document is not None}

    @property
    def expected(self) -> dict[str, Any]:
        return self.world.oracle(self.world.source.rows)

    def change(self) -> None:
        """Order 21 is made or changed."""
        source = self.world.source
        if (21,) in source.rows["shop.orders"]:
            source.update("shop.orders", (21,), status=f"changed {len(source.transactions)}")
        else:
            source.insert("shop.orders", {"id": 21, **ORDER})
        self.read()

    def read(self) -> None:
        self.world.read_everything()
        self.flusher.changed.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Desk]:
        async def here(function: Callable[..., Any], *arguments: Any) -> Any:
            return function(*arguments)

        async def look() -> None:
            self.world.cut()

        await self.sink.prepare()
        engine = self.world.engine
        assert engine is not None
        self.flusher = Flusher(
            engine=engine, reader=engine.reader(), sink=self.sink, sink_id=self.sink_id, owner="me",
            rows=self.rows, rate=0, in_flight=1, whole=self.whole, in_engine=here, in_reader=here, may_write=lambda: self.allowed(),
            window=WINDOW, look=look,
        )  # fmt: skip
        self.task = asyncio.create_task(self.flusher.run())
        try:
            yield self
        finally:
            self.flusher.stopping = True
            self.flusher.changed.set()
            await asyncio.wait({self.task}, timeout=10)
            self.world.close()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.edge_case(38)
async def test_a_worker_that_its_group_may_have_replaced_writes_nothing_until_the_group_answers(desk: Desk) -> None:
    desk.allowed = lambda: False
    async with desk.at_work():
        desk.change()
        await asyncio.sleep(0.5)
        assert not desk.store.records and not desk.sink.log, "not even the epoch is claimed"
        desk.allowed = lambda: True
        await desk.until(lambda: desk.documents == desk.expected)


@pytest.mark.edge_case(38)
async def test_what_was_made_ready_is_not_sent_when_the_group_falls_silent_meanwhile(desk: Desk) -> None:
    async with desk.at_work():
        await desk.until(lambda: desk.documents == desk.expected)
        sent, answers = len(desk.sink.log), iter((True, False))
        desk.allowed = lambda: next(answers, False)
        desk.change()
        await desk.until(lambda: "NotAllowed" in str(desk.flusher.error))
        assert len(desk.sink.log) == sent
        desk.allowed = lambda: True
        await desk.until(lambda: desk.documents == desk.expected)


@pytest.mark.edge_case(47)
async def test_a_deleted_document_that_a_late_write_brought_back_is_deleted_again(desk: Desk) -> None:
    """As Elasticsearch may let it: it forgets the version of a deleted document after a while, or at a restart."""
    source = desk.world.source
    async with desk.at_work():
        desk.change()
        await desk.until(lambda: "21" in desk.documents)
        source.delete("shop.orders", (21,))
        desk.read()
        await desk.until(lambda: "21" not in desk.documents)
        desk.store.versions["orders-v1"]["21"] = Entry(1, {"id": 21, "status": "late"}, 1)
        desk.sink.away = "restarts"
        source.insert("shop.orders", {"id": 22, **ORDER})
        desk.read()
        await desk.until(lambda: desk.flusher.error)
        desk.sink.away = None
        await desk.until(lambda: "21" not in desk.documents and desk.documents == desk.expected)


@pytest.mark.edge_case(38)
async def test_a_stale_answer_from_another_owners_sink_settles_nothing(desk: Desk) -> None:
    async with desk.at_work():
        desk.change()
        await desk.until(lambda: "21" in desk.documents)
        await desk.sink.claim("another", 0)
        for entry in desk.store.versions["orders-v1"].values():
            entry.revision = 1 << 62
        desk.change()
        async with asyncio.timeout(10):
            with pytest.raises(Fenced, match=r"another worker has claimed|not epoch"):
                await desk.task
        assert desk.world.engine is not None and desk.world.engine.dirty(desk.sink_id)


@pytest.mark.edge_case(49)
async def test_a_throttled_document_is_written_later_and_is_no_failure(desk: Desk) -> None:
    async with desk.at_work():
        await desk.until(lambda: desk.documents == desk.expected)
        refused: list[Write] = []

        def throttle(write: Write) -> str | None:
            refused.append(write)
            return "no room" if len(refused) < 3 else None

        desk.sink.throttle = throttle
        desk.change()
        await desk.until(lambda: desk.documents == desk.expected)
        assert desk.flusher.written["throttled"] == 2 and desk.flusher.written["rejected"] == 0
        await desk.until(lambda: desk.flusher.error is None)


async def written_by_another(desk: Desk, orphans: int) -> set[str]:
    """The sink as a worker left it whose mirror is lost: orders that nobody knows of now; their ids. Order 21 is known."""
    desk.world.source.insert("shop.orders", {"id": 21, **ORDER})
    desk.world.read_everything()
    await desk.sink.prepare()
    for _ in range(5):
        await desk.sink.claim("the lost one", 0)
    ids = {str(5000 + n) for n in range(orphans)}
    desk.store.versions["orders-v1"].update({id: Entry(5 << 40 | 7, {"id": int(id)}, 5) for id in ids})
    return ids


@pytest.mark.edge_case(35)
async def test_what_a_lost_mirror_wrote_and_its_successor_does_not_know_of_goes(desk: Desk) -> None:
    orphans = await written_by_another(desk, 3)
    async with desk.at_work():
        await desk.until(lambda: desk.documents and desk.documents == desk.expected)
        late = orphans.pop()
        desk.store.versions["orders-v1"][late] = Entry(5 << 40 | 8, {"id": int(late)}, 5)
        await desk.until(lambda: desk.documents == desk.expected)


@pytest.mark.edge_case(35)
async def test_the_successor_of_a_lost_mirror_says_no_watermark_while_there_is_what_it_does_not_know_of(
    desk: Desk,
) -> None:
    orphans = await written_by_another(desk, 3)
    save, seen = desk.sink.save, []

    async def saved(record: SinkRecord) -> None:
        seen.append(orphans & desk.documents.keys())
        await save(record)

    desk.sink.save = saved  # type: ignore[method-assign]
    async with desk.at_work():
        desk.change()
        await desk.until(lambda: len(seen) > 0)
    assert not any(seen)


async def test_what_only_waits_in_quarantine_is_no_orphan(desk: Desk) -> None:
    orphans = await written_by_another(desk, 3)
    desk.store.versions["orders-v1"]["21"] = Entry(5 << 40 | 7, {"of": "the lost one"}, 5)
    desk.sink.refuse = lambda write: "never" if write.id == "21" and write.document is not None else None
    async with desk.at_work():
        await desk.until(lambda: desk.documents and not orphans & desk.documents.keys())
        await desk.until(lambda: desk.documents.keys() == desk.expected.keys())
    assert desk.documents["21"] == {"of": "the lost one"}


async def test_more_orphans_than_the_limit_are_held_and_named(desk: Desk) -> None:
    orphans = await written_by_another(desk, 150)
    engine = desk.world.engine
    assert engine is not None
    async with desk.at_work():
        await desk.until(lambda: engine.mirror.get(f"orphans held/{desk.sink_id}") == 150)
        assert desk.documents.keys() == desk.expected.keys() | orphans


@pytest.mark.parametrize(("rows", "split"), [(1000, False), (7, True)])
async def test_where_a_write_is_atomic_a_source_transaction_is_written_at_once_within_the_bound(
    desk: Desk, rows: int, split: bool
) -> None:
    desk.rows, desk.whole = rows, True
    writes: list[int] = []
    write = desk.sink.write

    async def counted(documents: Sequence[Write], *rest: Any) -> Sequence[Outcome]:
        writes.append(len(documents))
        return await write(documents, *rest)

    desk.sink.write = counted  # type: ignore[method-assign]
    async with desk.at_work():
        await desk.until(lambda: desk.documents == desk.expected)
        writes.clear()
        before = desk.flusher.written["split"]
        source = desk.world.source
        with source.transaction():
            for id in range(100, 150):
                source.insert("shop.orders", {"id": id, **ORDER})
        desk.read()
        await desk.until(lambda: desk.documents == desk.expected)
    assert sum(writes) == 50 and max(writes) == min(rows, 50)
    assert (desk.flusher.written["split"] > before) == split


@pytest.fixture
def no_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause ends by what it is told alone."""

    async def wait_for(what: Any, _: float) -> Any:
        return await what

    monkeypatch.setattr(asyncio, "wait_for", wait_for)


@pytest.mark.usefixtures("no_timeouts")
async def test_a_change_that_comes_just_before_a_pause_does_not_wait_for_its_end(desk: Desk) -> None:
    async with desk.at_work():
        await desk.until(lambda: desk.documents == desk.expected)
        engine, changes = desk.world.engine, iter((desk.change,))
        assert engine is not None
        fanout = engine.continue_fanout

        def at_the_last_moment() -> bool:
            for change in changes:
                change()
            return fanout()

        engine.continue_fanout = at_the_last_moment  # type: ignore[method-assign]
        desk.flusher.changed.set()
        await desk.until(lambda: "21" in desk.documents)


@pytest.mark.usefixtures("no_timeouts")
async def test_a_change_of_a_document_that_is_on_its_way_follows_it_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk.at_work():
        await desk.until(lambda: desk.documents == desk.expected)
        write, changes = desk.sink.write, iter((desk.change,))

        async def slow(writes: Sequence[Write], *arguments: Any) -> Sequence[Outcome]:
            for change in changes:
                change()
                await asyncio.sleep(0.1)
            return await write(writes, *arguments)

        monkeypatch.setattr(desk.sink, "write", slow)
        desk.change()
        await desk.until(lambda: desk.documents == desk.expected)
