"""The engine between a modelled source and dictionaries for sinks: anything may happen, and each step is checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, Literal

import apsw
import pytest
from debezium import KEYS, SHAPES, Documents, change

from pipeline.authoring.shape import shape_of
from pipeline.engine.dirty import Taken
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.measures import group_id
from pipeline.engine.mirror import Mirror, doubt
from pipeline.engine.sweep import held
from pipeline.errors import Fenced
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, Throttled, Write
from pipeline.testing.source import Rows, SourceModel


class Sink:
    """Documents with the revision guard that every sink has."""

    def __init__(self) -> None:
        self.stored: dict[str, tuple[int, Any]] = {}
        self.writes = 0

    def write(self, write: Write, fate: str) -> Outcome:
        if fate == "throttled":
            return Throttled("no room")
        if fate == "rejected":
            return Rejected("does not fit")
        self.writes += 1
        known = self.stored.get(write.id)
        if known is not None and known[0] >= write.revision:
            return STALE
        self.stored[write.id] = write.revision, None if write.document is None else json.loads(write.document)
        return APPLIED

    def get(self, id: str) -> Any:
        return self.stored[id][1] if id in self.stored else None

    def documents(self) -> Documents:
        return {id: document for id, (_, document) in self.stored.items() if document is not None}


class World:
    def __init__(
        self,
        folder: Path,
        kind: str,
        random: Random,
        *,
        consistency: Literal["transaction", "row"] = "transaction",
        partitions: int = 1,
        sinks: int = 1,
        staged_bytes: int = 64_000_000,
        by_row: bool = True,
        gives_up: bool = False,
        label: str = "",
        loses: bool = False,
    ) -> None:
        self.path, self.random, self.consistency = str(folder / "mirror.db"), random, consistency
        self.staged_bytes, self.by_row, self.gives_up = staged_bytes, by_row, gives_up
        document, self.oracle = SHAPES[kind]
        self.layout = lay_out(shape_of(document))
        used = {table: key for table, key in KEYS.items() if table in self.layout.tables}
        self.source = SourceModel(used, partitions=partitions, seed=random.randrange(1 << 30), label=label)
        self.sinks = {f"memory:{n}": Sink() for n in range(sinks)}
        self.epoch = 0
        self.taken: list[tuple[str, Taken, Any]] = []
        self.late: list[tuple[str, Taken]] = []
        self.ends: list[tuple[int, int]] = []
        self._oracles: list[Documents] = []
        self.engine: Engine | None = None
        self.given_up = False
        self.logs = 1
        self.loses = loses
        """The mirror goes back to an earlier state of itself, by a state snapshot or a power cut."""
        self.kept = folder / "kept.db"
        self.unswept: set[str] = set()
        """Sinks at no watermark yet, for they may hold what no mirror knows of."""

    # ---- the process --------------------------------------------------------------------------------------

    def open(self) -> None:
        self.epoch += 1
        mirror = Mirror(self.path, self.layout, owner=f"owner {self.epoch}")
        self.ids = {name: mirror.sink_id(name) for name in self.sinks}
        inputs = Inputs(self.source.topics, self.source.boundaries, "shop")
        self.engine = Engine(mirror, inputs, consistency=self.consistency, staged_bytes=self.staged_bytes)
        self.reader = self.engine.reader()
        self.at = {name: self.engine.next_offset(name) for name in self.source.log}
        if self.loses:
            self.unswept = {n for n, id in self.ids.items() if self.engine.ownership.claimed(id, self.epoch, {})}

    def crash(self) -> None:
        """The process is gone; what it had in flight may still reach a sink."""
        old = self.engine
        self.late += [(name, taken) for name, taken, outcomes in self.taken if outcomes is None]
        self.taken.clear()
        self.reader.close()
        self.open()
        assert old is not None
        with pytest.raises(Fenced), old.mirror.checkpoint():
            pass
        old.mirror.close()

    def keep(self) -> None:
        """A state snapshot of the mirror, or what a power cut will leave of it."""
        self.kept.unlink(missing_ok=True)
        self.engine.mirror.db.execute("VACUUM INTO ?", (str(self.kept),))

    def lose(self) -> None:
        """The machine is gone with its mirror; what was kept of it is the next one's."""
        self.taken.clear()
        self.late.clear()
        self.close()
        Path(self.path).unlink()
        if self.kept.exists():
            shutil.copy(self.kept, self.path)
            with closing(apsw.Connection(self.path)) as db:
                doubt(db)
        self.open()

    def sweep(self) -> None:
        """What a sink holds of nothing that the mirror knows is deleted, as soon as it can be told."""
        for name, id in self.ids.items():
            if (found := self.engine.ownership.orphans(id)) is not None:
                sink = self.sinks[name]
                for key in sink.documents().keys() - found.leave:
                    if sink.stored[key][0] >> 40 < found.epoch:
                        sink.write(Write(key, found.revision, None), "applied")
                self.unswept.discard(name)

    def close(self) -> None:
        if self.engine is not None:
            self.reader.close()
            self.engine.mirror.close()

    def start(self) -> None:
        """The first transaction is read, so that the first load is over."""
        self.open()
        self.commit()
        self.read_everything()

    # ---- what may happen ----------------------------------------------------------------------------------

    def commit(self, changes: int = 3) -> None:
        source = self.source
        if not changes:
            source.elsewhere()
            return
        began, spare = None, frozenset[Any]()
        if self.random.random() < 0.2:
            began = source.here()  # a transaction that begins before others and commits after them
            since = len(source.transactions)
            self.commit(changes)
            spare = frozenset((c.table, c.key) for t in source.transactions[since:] for c in t.changes)
            if any(key is None for _, key in spare):
                return
        with source.transaction(began=began):
            for _ in range(changes):
                change(self.random, source, spare=spare)

    def snapshot_row(self) -> None:
        table = self.random.choice(tuple(self.source.keys))
        if self.source.rows[table]:
            self.source.incremental(table, self.random.choice(tuple(self.source.rows[table])))

    def poll(self, limit: int) -> None:
        log = self.source.log
        waiting = [name for name in log if self.at[name] < len(log[name])]
        if waiting:
            name = self.random.choice(waiting)
            for label, records in self.source.runs(name, self.at[name], self.at[name] + limit):
                self.engine.receive(name, records, label)
                self.at[name] += len(records)
            if self.engine.wants_cut and self.random.random() < 0.5:
                self.cut()

    def step(self, limit: int | None = None) -> None:
        self.engine.step(limit)
        self.check_watermark()

    def cut(self) -> None:
        """Catch up to all that is in the topics now."""
        self.engine.catch_up({name: len(of) for name, of in self.source.log.items()})
        self.step()

    def new_log(self, *, restored: bool) -> None:
        """The connector is made anew after changes that nobody captured, or on a database that was restored."""
        self.logs += 1
        back = self.random.randint(1, 6) if restored else 0
        if not restored:
            for _ in range(self.random.randint(0, 3)):
                self.commit()
        self.source.anew(f"s{1000 * self.logs}/7/{self.logs if restored else 1}", back=back)
        self.source.elsewhere()

    def approve(self) -> None:
        """Somebody looked at what a sweep would take away, and lets it go."""
        found = held(self.engine.mirror.get("held"))
        if found is not None:
            self.engine.mirror.set("sweep", found[0])
            self.engine.beginnings.sweep_held(mark=self.engine.loaded)

    def take(self, limit: int) -> None:
        self.approve()
        name = self.random.choice(tuple(self.sinks))
        if self.engine.may_flush:
            taken = self.reader.take(self.ids[name], limit, self.epoch)
            busy = {key for other, t, _ in self.taken if other == name for key in (*t.keys, *(r[0] for r in t.refused))}
            assert not busy & {*taken.keys, *(r[0] for r in taken.refused)}, "a key in flight was taken again"
            self.taken.append((name, taken, None))

    def write(self, fates: Callable[[], str]) -> None:
        """One batch in flight reaches its sink."""
        open_ = [i for i, (_, _, outcomes) in enumerate(self.taken) if outcomes is None]
        if open_:
            i = self.random.choice(open_)
            name, taken, _ = self.taken[i]
            self.taken[i] = name, taken, [self._write(name, write, fates()) for write in taken.writes]

    def write_late(self) -> None:
        """A dead owner's batch arrives after all."""
        if self.late:
            name, taken = self.late.pop(self.random.randrange(len(self.late)))
            for write in taken.writes:
                self._write(name, write, "applied")
            self.check_watermark()

    def settle(self) -> None:
        done = [i for i, (_, _, outcomes) in enumerate(self.taken) if outcomes is not None]
        if done:
            _, taken, outcomes = self.taken.pop(self.random.choice(done))
            self.engine.settle(taken, outcomes)
            self.reader.landed(taken)
            self.check_watermark()

    def fan_out(self) -> None:
        self.engine.continue_fanout()
        self.check_watermark()

    def give_up(self) -> None:
        stuck = next(iter(self.engine.gate.waiting()), None)
        if stuck is not None and self.engine.catching_up is None:
            self.given_up = True
            self.engine.give_up(stuck)

    def _write(self, name: str, write: Write, fate: str) -> Outcome:
        outcome = self.sinks[name].write(write, fate)
        if outcome is APPLIED and self.consistency == "transaction" and not self.given_up:
            document = self.sinks[name].get(write.id)
            known = [of.get(write.id) for of in self.oracles()]
            assert document in known, f"half a transaction in {write.id}:\n{document}\nis none of\n{known}"
        return outcome

    # ---- what must hold -----------------------------------------------------------------------------------

    def oracles(self) -> list[Documents]:
        """The documents after each transaction."""
        for n in range(len(self._oracles), len(self.source.states)):
            self._oracles.append(self.oracle(self._told(n)))
        return self._oracles

    def _told(self, n: int) -> Rows:
        """What the engine has to know after n transactions: of a table whose deletes are ignored, all it ever had."""
        kept = {t.name: self.source.ever(t.name, n) for t in self.layout.tables.values() if t.kept}
        return {**self.source.states[n], **kept}

    def check_watermark(self) -> None:
        if self.given_up or self.consistency == "row":
            return
        for name, sink in self.sinks.items():
            if name in self.unswept:
                continue
            mark = self.engine.watermark(self.ids[name]).get("shop")
            if mark is None:
                continue
            at = self._place(mark)
            refused = {self._id(key) for (key,) in self._quarantined(name)}
            later = self.oracles()[at:]
            for id in {id for of in self.oracles() for id in of} - refused:
                document = sink.get(id)
                assert any(document == of.get(id) for of in later), (
                    f"{name}: transaction {at} is claimed, but {id} is {document}, not one of {[o.get(id) for o in later]}"
                )

    def _place(self, mark: dict[str, Any]) -> int:
        """How many transactions the source had made with this one."""
        claimed = mark["txid"], mark["log"]
        return next(i for i, t in enumerate(self.source.transactions, 1) if (str(t.txid), t.label) == claimed)

    def _id(self, key: Any) -> str:
        return group_id(key) if self.layout.aggregate is not None else str(key)

    def _quarantined(self, name: str) -> list[tuple[Any, ...]]:
        return list(self.engine.mirror.db.execute("SELECT k0 FROM quarantine WHERE sink = ?", (self.ids[name],)))

    def read_everything(self) -> None:
        self.source.produce()
        for _ in range(100_000):
            if all(self.at[name] >= len(log) for name, log in self.source.log.items()):
                break
            self.poll(self.random.randint(1, 20))
            if self.random.random() < 0.3:
                self.step()
            if self.engine.wants_cut:
                self.cut()
        self.step()
        if self.engine.wants_cut:
            self.cut()
        self.step()

    def refresh(self) -> None:
        """What the mirror does not know is read again, as a worker has it done."""
        refreshing = self.engine.refreshing
        refreshing.begin_anew()
        while (due := refreshing.next(100)).table:
            there = [key for key in due.places if key in self.source.rows[due.table]]
            refreshing.expect(due.table, there)
            for key in there:
                self.source.incremental(due.table, key)
            self.read_everything()
            refreshing.remove(due.table, {key: place for key, place in due.places.items() if key not in there})

    def settle_everything(self) -> None:
        """Nothing is in flight, everything is read, applied, fanned out and written."""
        while self.taken:
            self.write(lambda: "applied")
            self.settle()
        self.read_everything()
        while self.gives_up and self.engine.gate.waiting():
            self.give_up()
        self.approve()
        self.refresh()
        while self.engine.continue_fanout():
            pass
        assert self.engine.may_flush, "documents are held back although everything is here"
        for sink in self.ids.values():
            self.engine.retry(sink)
        for _ in range(1000):
            before = len(self.taken)
            self.take(1000)
            _, taken, _ = self.taken[-1]
            assert not [r for r in taken.refused if r[1] != "pending"], taken.refused
            self.write(lambda: "applied")
            self.settle()
            assert len(self.taken) == before
            if not any(self.engine.dirty(sink) for sink in self.ids.values()):
                break

    def check_end(self) -> None:
        self.settle_everything()
        if self.loses:
            self.sweep()
            assert not (self.unswept and self.source.transactions)
        engine, expected = self.engine, self.oracle(self._told(len(self.source.states) - 1))
        for name, sink in self.sinks.items():
            assert sink.documents() == expected, f"{name} ended in other documents"
            assert not self._quarantined(name)
        db = engine.mirror.db
        assert not engine.gate.staged and not engine.gate.ends, (engine.gate.staged, engine.gate.ends)
        assert not engine.gate.opens, engine.gate.opens
        assert list(db.execute("SELECT count(*) FROM staged")) == [(0,)]
        assert list(db.execute("SELECT count(*) FROM partial")) == [(0,)]
        assert engine.applier.unknown == 0
        assert engine.mirror.counters().get("unknown", 0) == 0
        if self.source.transactions:
            for sink in self.ids.values():
                assert self._place(engine.watermark(sink)["shop"]) == len(self.source.transactions)
        ends = {name: len(log) for name, log in self.source.log.items() if log}
        offsets = engine.mirror.offsets()
        assert {name: offsets.get(name) for name in ends} == ends


def act(world: World, random: Random) -> None:
    """One thing happens."""
    if world.loses and random.random() < 0.2:
        random.choice((world.keep, world.sweep, world.sweep, world.lose))()
        world.check_watermark()
        return
    weights = (10, 2, 3, 20, 30, 14, 10, 10, 10, 2, 3, 2, 3, 2, 2, 2)
    if world.source.label:
        weights += (1, 1)
    what = random.choices(range(len(weights)), weights)[0]
    fates = ("applied",) * 8 + ("throttled", "rejected")
    if what == 0:
        world.commit(random.randint(0, 4))
    elif what == 1:
        world.snapshot_row()
    elif what == 2:
        world.source.produce(random.randint(0, 2))
        world.source.restart(random.randint(1, 40))
    elif what == 3:
        world.source.produce(random.randint(1, 12))
    elif what == 4:
        world.poll(random.randint(1, 8))
    elif what == 5:
        world.step(random.choice((None, None, 1, 5)))
    elif what == 6:
        world.take(random.choice((1, 2, 100)))
    elif what == 7:
        world.write(lambda: random.choice(fates))
    elif what == 8:
        world.settle()
    elif what == 9:
        world.crash()
    elif what == 10:
        world.fan_out()
    elif what == 11 and (world.by_row or world.engine.wants_cut):
        world.cut()
    elif what == 12:
        if world.engine.wants_cut:
            world.cut()
    elif what == 13:
        world.write_late()
    elif what == 14:
        world.engine.prune()
        world.check_watermark()
    elif what == 15 and world.gives_up:
        world.give_up()
    elif what > 15:
        world.new_log(restored=what == 16)
