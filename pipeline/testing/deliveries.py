"""Deliveries: one history brought to a worker in every way that the transport allows, and what has to hold each time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from pipeline.engine.dirty import Taken
from pipeline.testing.expected import difference
from pipeline.testing.source import SourceModel
from pipeline.testing.worker import Died, Setup, Worker

ACTS = 40
"""About how many things happen in one delivery before the rest of it comes in order."""
LIVES, RESTARTS = 4, 3
"""At most this many lives of the worker, and restarts of the connector, in one delivery."""


@dataclass(frozen=True, slots=True)
class InOrder:
    """What a worker does that gets everything once and in order: the measure of all other deliveries."""

    documents: Mapping[str, Mapping[str, Any]]
    waiting: Mapping[str, tuple[str, str]]
    """By id what could not be built: the kind, and why."""
    versions: Mapping[str, list[Any]] | None
    """By id every document that some state of the source has; None where half a transaction may be seen."""


class Delivery:
    """One way of bringing a history: partitions, restarts of the connector, crashes of the worker, an absent sink."""

    def __init__(self, setup: Setup, source: SourceModel, random: Random) -> None:
        self.random, self.restarts = random, 0
        self.partitions = random.choice((1, 1, 2, 3))
        self.topics = source.replayed(partitions=self.partitions, seed=random.randrange(1 << 30))
        topics = {*setup.inputs.topics, setup.inputs.boundaries}
        log = {name: records for name, records in self.topics.log.items() if name.rpartition("/")[0] in topics}
        self.worker = Worker(setup, log, staged_bytes=random.choice((64_000_000, 64_000_000, 400)))
        self.late: list[tuple[str, Taken]] = []
        self.story = [f"{self.partitions} partition{'s' * (self.partitions > 1)} a table"]

    def run(self) -> Worker:
        """Deliver all of it; the worker at the end has nothing left to do."""
        random, history = self.random, len(self.topics.messages)
        if random.random() < 0.7:  # a first load hides much: have it over early
            self.topics.produce(random.randint(1, max(1, history // 2)))
            self.worker.drain()
        stride = max(1, history // random.randint(1, 6))
        for _ in range(ACTS):
            if self.topics.sent < history and random.random() < 0.3:
                self.topics.produce(random.randint(1, stride))
            self._act()
        self.topics.produce()
        for sink in self.worker.sinks.values():
            sink.away = None
        self.worker.drain()
        self._arrive_late(len(self.late))
        return self.worker

    def _act(self) -> None:
        worker, random = self.worker, self.random
        what = random.choices(range(8), (10, 6, 6, 3, 1, 1, 1, 1))[0]
        try:
            if what == 0 and (behind := worker.behind()):
                worker.poll(random.choice(behind), random.choice((1, 2, 5, 100)))
            elif what == 1:
                worker.step()
            elif what == 2:
                worker.take(random.choice(list(worker.sinks)), random.choice((1, 3, 1000)))
            elif what == 3 and worker.flying:
                worker.land(random.randrange(len(worker.flying)))
            elif what == 4 and worker.lives < LIVES:
                self._die()
            elif what == 5 and self.restarts < RESTARTS:
                self._restart()
            elif what == 6:
                sink = random.choice(list(worker.sinks.values()))
                sink.away = "switched off" if sink.away is None else None
            elif what == 7:
                self._arrive_late(1)
        except Died:
            worker.start()

    def _die(self) -> None:
        """At once, or between the next write and its settling; what is on its way may still arrive."""
        worker = self.worker
        self.story.append("the worker dies")
        if worker.flying and self.random.random() < 0.5:
            worker.dies_in = 0
            worker.land()
        self.late += worker.flying
        worker.start()

    def _restart(self) -> None:
        self.restarts += 1
        back = self.random.randint(1, 1 + self.topics.sent)
        self.topics.restart(back)
        self.story.append(f"the connector restarts and goes back {back} messages")

    def _arrive_late(self, n: int) -> None:
        """A dead worker's write, still in the network, reaches the sink after its successor's."""
        for _ in range(min(n, len(self.late))):
            name, taken = self.late.pop(self.random.randrange(len(self.late)))
            self.worker.write_late(name, taken)


def wrong(worker: Worker, right: InOrder) -> str | None:
    """The first thing in which a delivery ended otherwise, in words; None where there is none."""
    waiting = worker.waiting_ids()
    if waiting.keys() != right.waiting.keys():
        id = min(waiting.keys() ^ right.waiting.keys())
        first, then = (of[id][1] if id in of else "could be built" for of in (waiting, right.waiting))
        return f"document {id}: {first} in this delivery, and {then} in order"
    for name, sink in worker.sinks.items():
        found = {id: document for id, document in worker.stored(name).items() if id not in waiting}
        for id in dict.fromkeys((*right.documents, *found)):
            here, there = found.get(id), right.documents.get(id)
            if here is None or there is None:
                if here is not there:
                    has, has_not = ("order", "this delivery") if here is None else ("this delivery", "order")
                    return f"{name}: {has} gives a document {id}, and {has_not} none"
                continue
            if said := difference(here, there, id, (" in this delivery", " in order")):
                return f"{name}: {said}"
        for write, _ in sink.log if right.versions is not None else ():
            document = None if write.document is None else json.loads(write.document)
            known = (right.versions or {}).get(write.id, [])
            if document is not None and document not in known:
                near = difference(document, known[-1], write.id, ("", " at last")) if known else None
                return f"{name}: a document was written that no state of the source has: {near or document}"
    return None
