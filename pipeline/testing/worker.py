"""A worker without Kafka: the runtime's loop over a log in memory, one step at a time, and it may die after any."""

from __future__ import annotations

import itertools
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from connectors.sinks.memory import MemorySink, MemoryStore
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape
from pipeline.engine.assemble import document_id
from pipeline.engine.dirty import Reader, Taken
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import Layout
from pipeline.engine.measures import group_id
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import connect, rows
from pipeline.errors import SinkUnavailable
from pipeline.ports import Outcome
from pipeline.testing.source import Record

T = TypeVar("T")
Consistency = Literal["transaction", "row"]
_numbers: Final = itertools.count(1)
_NEVER: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Setup:
    """One projection's parts, as the runtime wires them."""

    projection: Projection[Any]
    shape: Shape
    layout: Layout
    inputs: Inputs
    consistency: Consistency


class Died(Exception):
    """The process is gone; its mirror and its sinks are as they were."""


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing: the memory sink's never do."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise AssertionError("a memory sink waits for nothing")


class Worker:
    """The engine between a log (`{"topic/partition": records}`, which may grow) and a memory sink for each target."""

    def __init__(self, setup: Setup, log: Mapping[str, list[Record]], *, staged_bytes: int = 64_000_000) -> None:
        self.setup, self.log, self.staged_bytes = setup, log, staged_bytes
        self.path = f"file:/cdc-scenario-{next(_numbers)}?vfs=memdb"
        # SQLite keeps a file in memory for as long as some connection has it open
        self._file = connect(self.path)
        self.sinks = {f"{target.kind}:{target.name}": self._sink(target.name) for target in setup.projection.to}
        self.lives, self.dies_in = 0, _NEVER
        self.engine: Engine
        self.reader: Reader
        self.start()

    def _sink(self, alias: str) -> MemorySink:
        projection = self.setup.projection
        sink = MemorySink(store=MemoryStore(), alias=alias, projection=projection.id, shape=self.setup.shape)
        done(sink.prepare())
        return sink

    def start(self) -> None:
        """Start, or start again: all that was in memory is gone."""
        if self.lives:
            self.close()
        self.lives += 1
        owner = f"worker {self.lives}"
        mirror = Mirror(self.path, self.setup.layout, owner=owner)
        with mirror.checkpoint():
            self.ids = {name: mirror.sink_id(name) for name in self.sinks}
        self.epochs: dict[str, int] = {}
        self.engine = Engine(
            mirror, self.setup.inputs, consistency=self.setup.consistency, staged_bytes=self.staged_bytes
        )
        self.reader = self.engine.reader()
        self.flying: list[tuple[str, Taken]] = []
        self.read = {partition: self.engine.next_offset(partition) for partition in self.log}
        if self.engine.wants_cut:
            self.cut()

    def close(self) -> None:
        self.reader.close()
        self.engine.mirror.close()

    def _step_done(self) -> None:
        if self.dies_in == 0:
            self.dies_in = _NEVER
            raise Died
        self.dies_in -= 1

    # ---- in -----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """What is in the log by now is read before a document is written."""
        self.engine.catch_up({partition: len(records) for partition, records in self.log.items()})

    def behind(self) -> list[str]:
        """The partitions with something to read."""
        return [partition for partition, records in self.log.items() if self.read[partition] < len(records)]

    def poll(self, partition: str, most: int) -> None:
        """The next records of one partition reach the gate."""
        at = self.read[partition]
        records = self.log[partition][at : at + most]
        self.read[partition] = at + len(records)
        self.engine.receive(partition, records)

    def step(self) -> None:
        """One checkpoint."""
        self.engine.step()
        if self.engine.wants_cut:
            self.cut()
            self.engine.step()
        self._step_done()

    # ---- out ----------------------------------------------------------------------------------------------

    def take(self, name: str, limit: int = 1000) -> bool:
        """The next documents for one sink are on their way; False where there is none."""
        if not self.engine.may_flush or not self._owns(name):
            return False
        taken = self.reader.take(self.ids[name], limit, self.epochs[name])
        if not taken.keys and not taken.refused:
            return False
        self.flying.append((name, taken))
        return True

    def _owns(self, name: str) -> bool:
        """Ownership is taken when there is first something to write, so that an absent sink stops no mirror."""
        if name not in self.epochs:
            mirror, number = self.engine.mirror, self.ids[name]
            try:
                epoch = done(self.sinks[name].claim(mirror.owner, mirror.epoch(number))).epoch
            except SinkUnavailable:
                return False
            with mirror.checkpoint():
                mirror.set_epoch(number, epoch)
            self.epochs[name] = epoch
        return True

    def land(self, number: int = 0) -> None:
        """One batch on its way is written, and settled by its outcomes."""
        name, taken = self.flying.pop(number)
        outcomes: list[Outcome] | None = None
        try:
            outcomes = list(done(self.sinks[name].write(taken.writes, self.epochs[name])))
        except SinkUnavailable:  # what is dirty stays dirty
            pass
        self._step_done()
        if outcomes is not None:
            self.engine.settle(taken, outcomes)
        self.reader.landed(taken)
        self._step_done()

    # ---- to the end ---------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Everything in the log is read, applied and written, whatever dies on the way."""
        while True:
            try:
                self._drain()
                return
            except Died:
                self.start()

    def _drain(self) -> None:
        while self.flying:
            self.land()
        while behind := self.behind():
            for partition in behind:
                self.poll(partition, 500)
        self.step()
        busy = True
        while busy:
            busy = self.engine.continue_fanout()
            for name in self.sinks:
                while self.take(name):
                    self.land()
                    busy = True

    # ---- what there is ------------------------------------------------------------------------------------

    def stored(self, name: str) -> dict[str, dict[str, Any]]:
        """The documents in one sink, by id."""
        sink = self.sinks[name]
        ids = list(dict.fromkeys(write.id for write, _ in sink.log if write.document is not None))
        return {id: dict(stored.document) for id, stored in done(sink.read(ids)).items()}

    def waiting(self) -> dict[tuple[Any, ...], tuple[str, str]]:
        """Keys (a group's, of an aggregate) whose document could not be built or was refused: the kind, and why."""
        keys = ", ".join(self.setup.layout.written_key)
        found = rows(self.engine.mirror.db, f"SELECT {keys}, kind, error FROM quarantine ORDER BY {keys}")
        return {row[:-2]: (row[-2], row[-1]) for row in found}

    def waiting_ids(self) -> dict[str, tuple[str, str]]:
        """The same by the document's id."""
        grouped = self.setup.layout.aggregate is not None
        return {group_id(key[0]) if grouped else document_id(key): said for key, said in self.waiting().items()}

    def write_late(self, name: str, taken: Taken) -> None:
        """A dead worker's batch reaches the sink after all."""
        sink = self.sinks[name]
        if sink.away is None:
            done(sink.write(taken.writes, 0))
