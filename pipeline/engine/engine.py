"""The engine: ordered changes in, documents out; it knows neither Kafka nor Faust nor a sink."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any, Final, Literal

from pipeline.engine.apply import Applier
from pipeline.engine.columns import Missing, SeenColumns
from pipeline.engine.copied import Copied
from pipeline.engine.dirty import Reader, Settling, Taken
from pipeline.engine.exchange import PASSED_BYTES, Inlet, in_order
from pipeline.engine.folding import Folding
from pipeline.engine.inputs import Inputs, Progress, Record, decoded, decoders
from pipeline.engine.layout import Layout
from pipeline.engine.loading import end_load
from pipeline.engine.marks import Marks
from pipeline.engine.mirror import UNKNOWN, Mirror
from pipeline.engine.open import Begun, begun_in
from pipeline.engine.ownership import Ownership
from pipeline.engine.refresh import Refreshing
from pipeline.engine.snapshots import Snapshot
from pipeline.engine.sourcelog import SourceLogs, bare
from pipeline.engine.sql import value
from pipeline.engine.staging import Staging
from pipeline.engine.sweep import Beginnings
from pipeline.engine.transactions import REMEMBERED, Gate, Released
from pipeline.engine.withholding import Rules
from pipeline.errors import DecodeError
from pipeline.events.envelope import Boundary, Event, decode_boundary
from pipeline.ports import Outcome

FANOUT_CHUNK: Final = 2000


class Engine:
    """Holds the gate and the mirror together; every public method is called from one thread."""

    def __init__(
        self,
        mirror: Mirror,
        inputs: Inputs,
        *,
        consistency: Literal["transaction", "row"] = "transaction",
        staged_bytes: int = 64_000_000,
        sweep_limit: float = 0.2,
        missing_columns: Missing = "stop",
    ) -> None:
        self.mirror, self.inputs = mirror, inputs
        self.layout: Layout = mirror.layout
        self.consistency = consistency if inputs.boundaries and not inputs.others else "row"
        self.staged_limit = staged_bytes
        self._staged_bytes = 0
        self.applier, self.settling = Applier(mirror), Settling(mirror)
        self.refreshing = Refreshing(mirror, self.applier)
        self.logs = SourceLogs(mirror, inputs.connectors, self.applier.read_floors)
        self.staging = Staging(mirror, inputs, self.logs)
        self.beginnings = Beginnings(self.applier, self.logs, sweep_limit, inputs)
        self.columns = SeenColumns(mirror, missing_columns)
        self.marks = Marks(mirror, self.applier.marking, self.logs)
        self.folding = Folding(mirror, self.applier.marking)
        self.ownership = Ownership(self)
        self.decoders = decoders(inputs, self.layout)
        by_row, self._boundaries = self.consistency == "row", inputs.transactions
        counted = set(self._boundaries.values())
        self.gates = {
            of: Gate(inputs.tables_of(of), by_row=by_row, keep_repeats=by_row, counted=of in counted)
            for of in inputs.connectors
        }
        """Of each connector, for the transactions of two have no common order."""
        self.gate = self.gates[inputs.connector]
        self.catching_up: dict[str, int] | None = None
        self.wants_cut = False
        self.snapshots = {of: Snapshot() for of in inputs.connectors}
        self._tombstones = 0
        self._boundary_partitions: dict[str, str] = {}
        self._bad_boundaries: list[tuple[str, int, bytes, str]] = []
        self.durable: dict[str, int] = mirror.offsets()
        """The offsets in the mirror, as of the last checkpoint."""
        self.inlet = Inlet(self, of, self.durable.get(of, 0)) if (of := inputs.exchange) else None
        self._restore()

    # ---- state --------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        self.staging.restore(self.gates, {p: n for p, n in self.durable.items() if p != self.inputs.exchange})
        self.copied = Copied.of(self.mirror.get("copied"))
        self._begun: dict[str, Begun] = {}
        for of, gate in self.gates.items():
            gate.begun = self._begun[of] = begun_in(self.mirror.get(self.inputs.named("begun", of)))
            self.beginnings.log[of] = gate.log
        self.loaded = self.marks.loaded = bool(self.mirror.get("loaded"))
        self.applier.marking.held = self.mirror.get("hold") or None
        found = self.mirror.get("catching_up")
        if found is not None:
            state = json.loads(found)
            self.catching_up, self.wants_cut, self.gate.by_row = state["cut"], True, True
            self.snapshots |= {of: Snapshot(*known) for of, known in state.get("snapshots", {}).items()}

    def next_offset(self, partition: str) -> int:
        """Where to go on reading a partition, `topic/number`."""
        if self.inlet is not None and partition == self.inlet.name:
            return self.inlet.next
        topic = partition.rpartition("/")[0]
        gate = self.gates[self.inputs.connector_of(topic)]
        return gate.boundary_next if topic in self._boundaries else gate.partition(partition).next

    # ---- in -----------------------------------------------------------------------------------------------

    def receive(self, partition: str, records: Sequence[Record], label: str = "") -> None:
        """Records of one partition and one source log (its label), in order: decoded and put to the gate.

        Nothing is durable before `step`.
        """
        if not records:
            return
        self.take_in(partition, records, self.begin(partition, label), [], records[-1][0] + 1)

    def begin(self, partition: str, label: str) -> int:
        """The number of the source log that records of this partition with this label are from."""
        topic = partition.rpartition("/")[0]
        # a label in a foreign topic is that of another project's connector, of which nothing is known
        log = self.logs.see(label, self.inputs.connector_of(topic)) if label and topic not in self.inputs.foreign else 0
        if not self.loaded and self.catching_up is None:
            # the first records ever: what was sent before them, a snapshot perhaps, may still be to come
            self.catching_up, self.gate.by_row, self.wants_cut = {}, True, True
        return log

    def take_in(
        self, partition: str, records: Sequence[Record], log: int, passed: list[Event], next_offset: int
    ) -> None:
        """Records of one source log, and `passed`: events that are counted only, whose rows others have."""
        topic = partition.rpartition("/")[0]
        of = self.inputs.connector_of(topic)
        gate = self.gates[of]
        if topic in self._boundaries:
            for offset, _, data in records:
                if data is not None:
                    boundary = self._boundary(data, partition, offset)
                    if self.copied is not None and self.copied.has_end(boundary, self.logs.known[log]):
                        continue
                    gate.add_boundary(boundary, offset, of, log)
                    self.wants_cut |= self.snapshots[of].streams(log, boundary.ts_ms)
            gate.boundary_next = next_offset
            self._boundary_partitions[of] = partition
            return
        events, tombstones = decoded(self.decoders[topic], records, self.logs.known[log], self.consistency == "row")
        self._tombstones += tombstones
        if self.copied is not None:
            passed = self.copied.left(passed, self.logs.known[log])
            events = (
                self.copied.left_by_row(partition, events, self.logs.known[log])
                if self.consistency == "row" else self.copied.left(events, self.logs.known[log])
            )  # fmt: skip
        if events:
            self.columns.look(events)
        events = in_order(events, passed) if passed else events
        if events:
            self._look_for_snapshot(self.snapshots[of], events)
        self._staged_bytes += sum(len(r[2]) for r in records if r[2] is not None) + PASSED_BYTES * len(passed)
        gate.add(partition, events, next_offset)

    def _boundary(self, data: bytes, partition: str, offset: int) -> Boundary:
        try:
            return decode_boundary(data)
        except DecodeError as error:
            self._bad_boundaries.append((partition, offset, data, str(error)))
            return Boundary(status="?", id="")

    def _look_for_snapshot(self, snapshot: Snapshot, events: Sequence[Event]) -> None:
        """Snapshot rows: catch up until the connector says which is the last, or streams again."""
        ended = snapshot.look(events)
        if ended or snapshot.running:
            self.catching_up, self.gate.by_row = self.catching_up or {}, True
        self.wants_cut |= ended

    # ---- catch-up -----------------------------------------------------------------------------------------

    def catch_up(self, cut: Mapping[str, int]) -> None:
        """Write no document before these offsets are passed; changes are applied by row until then."""
        self.wants_cut = False
        self.catching_up, self.gate.by_row = dict(cut), True

    def _leave_catch_up(self, seq: int, released: Released) -> None:
        cut = self.catching_up
        if cut is None or self.wants_cut or any(snapshot.running for snapshot in self.snapshots.values()):
            return
        if any(self.next_offset(partition) < end for partition, end in cut.items()):
            return
        self.catching_up = None
        self.gate.by_row = self.consistency == "row"
        for of, gate in self.gates.items():
            gate.all_here()
            snapshot = self.snapshots[of]
            snapshot.over = False
            if snapshot.log > gate.log:
                # no END yet: the old rows go before a document is made of them and of the snapshot's
                gate.begin_log(snapshot.log, released)
                self.beginnings.begin(gate.log, seq)
        for gate in self.gates.values():
            self.beginnings.settle(gate.log, seq, mark=self.loaded)
        self.mirror.set("catching_up", None)
        gates = self.gates.values()
        if not self.loaded and any(g.boundary_next or any(at.next for at in g.partitions.values()) for g in gates):
            self._finish_load(seq)

    def _new_log(self, log: int, snapshot: Snapshot, seq: int) -> None:
        """The first END of a new log was released: its snapshot is over, and all of it lies before a cut made now."""
        if not self.beginnings.begin(log, seq):
            return
        if log >= snapshot.log:
            snapshot.log = log
            snapshot.end()
        self.wants_cut = True
        self.catching_up, self.gate.by_row = self.catching_up or {}, True

    def _finish_load(self, seq: int) -> None:
        end_load(self.mirror, self.applier.marking, seq)
        self.loaded = self.marks.loaded = True

    # ---- one checkpoint -----------------------------------------------------------------------------------

    def step(self, limit: int | None = None) -> Progress:
        """Apply what the gate releases, in one checkpoint with the offsets reached."""
        waited = self.gate.staged
        released = self.gate.release(limit)
        for gate in (gate for gate in self.gates.values() if gate is not self.gate):
            released.add(gate.release(limit))
        if waited:
            self._staged_bytes = self._staged_bytes * self.gate.staged // waited
        idle = not (released.events or released.ends or released.repeated or self._tombstones or self._bad_boundaries)
        if idle and not self._spill_needed() and self.catching_up is None:
            return Progress()
        return self._checkpoint(released)

    def overdue(self, now: float, after: float) -> str | None:
        """The transaction that holds up others and did not complete in `after` seconds; None where none does."""
        return next((txid for gate in self.gates.values() if (txid := gate.overdue(now, after)) is not None), None)

    def give_up(self, txid: str) -> Progress:
        """Release an incomplete transaction as it is; counted and shown."""
        return self._checkpoint(self.gates[self.logs.connector_of(txid)].give_up(txid))

    def _checkpoint(self, released: Released) -> Progress:
        progress = Progress()
        with self.mirror.checkpoint() as seq:
            self._apply(released, seq, progress)
            if released.torn:
                # its END counts a part of it only: what else there is of it lies before a cut made now
                self.wants_cut, self.catching_up, self.gate.by_row = True, self.catching_up or {}, True
            for of, gate in self.gates.items():
                if gate.log > self.beginnings.log[of]:
                    self._new_log(gate.log, self.snapshots[of], seq)
            progress.newest_ms = max(progress.newest_ms, *(end.ts_ms for end in released.ends), 0)
            for end in {end.connector: end for end in released.ends}.values():
                self.marks.add(seq, end)
            progress.transactions = len(released.ends)
            self.mirror.count("incomplete", released.incomplete)
            self.mirror.count("repeated", released.repeated)
            self.mirror.count("tombstones", self._tombstones)
            for partition, offset, data, error in self._bad_boundaries:
                self.mirror.add_dead_letter(partition, offset, (None, data), error, None)
            if self._spill_needed():
                self.logs.keep()
                self.staging.spill(self.gate)
            self._leave_catch_up(seq, released)
            self.folding.fold(seq)
            progress.offsets = self._save(released, seq)
        self.durable = progress.offsets
        self.marks.reached.append((self.mirror.seq, progress.offsets))
        self._bad_boundaries.clear()
        self._tombstones = 0
        if not self.gate.staged:
            self._staged_bytes = 0
        return progress

    def _save(self, released: Released, seq: int) -> dict[str, int]:
        offsets = {name: at.checkpoint for gate in self.gates.values() for name, at in gate.partitions.items()}
        for of, name in self._boundary_partitions.items():
            gate = self.gates[of]
            offsets[name] = gate.ends[0].offset if gate.ends else gate.boundary_next
        if self.inlet is not None:
            offsets[self.inlet.name] = self.inlet.checkpoint(offsets)
        self.mirror.set_offsets(offsets)
        self.columns.save()
        self.staging.save(self.gates, released, seq)
        for of, gate in self.gates.items():
            if gate.begun != self._begun[of]:
                self._begun[of] = gate.begun
                self.mirror.set(self.inputs.named("begun", of), json.dumps(gate.begun))
        if self.catching_up is not None:
            known = {of: astuple(snapshot) for of, snapshot in self.snapshots.items()}
            self.mirror.set("catching_up", json.dumps({"cut": self.catching_up, "snapshots": known}))
        self._save_hold(seq)
        return offsets

    def _save_hold(self, seq: int) -> None:
        marking = self.applier.marking
        if (marking.held is None) != self.may_flush:
            marking.held = None if self.may_flush else seq
            self.mirror.set("hold", marking.held)

    def _apply(self, released: Released, seq: int, progress: Progress) -> None:
        """What was staged first, for it came first; then what comes from memory."""
        for chunk in self.staging.take(released):
            self._apply_events(chunk, seq, progress)
        if released.events:
            self._apply_events(released.events, seq, progress)

    def _apply_events(self, pairs: Sequence[tuple[str, Event]], seq: int, progress: Progress) -> None:
        events: list[Event] = []
        for partition, event in pairs:
            if event.op == "!":
                assert event.raw is not None
                txid = None if event.transaction is None else bare(event.transaction.id)
                self.mirror.add_dead_letter(partition, event.offset, event.raw, event.error or "", txid)
                if self.refreshing.awaited:
                    self.refreshing.undecodable(event, self.decoders[partition.rpartition("/")[0]].read_key)
            elif event.op != "m":
                events.append(event)
        if not events:
            return
        logs = {event.log for event in events}
        for log in sorted(logs):
            # within a partition an older log comes first
            self.applier.log, self.applier.since = self.logs.ordinal(log), self.logs.begun(log)
            if not log:
                self.logs.unlabelled()
            own = events if len(logs) == 1 else [e for e in events if e.log == log]
            self.applier.apply(own, seq, mark=self.loaded)
        if self.applier.fresh_unknown:
            self.refreshing.ask_for_unknown()
        if self.refreshing.awaited:
            self.refreshing.answered(events, seq)
        progress.applied += len(events)
        progress.newest_ms = max(progress.newest_ms, *(e.source.ts_ms for e in events))

    def _spill_needed(self) -> bool:
        return self._staged_bytes > self.staged_limit and self.gate.staged > 0

    # ---- out ----------------------------------------------------------------------------------------------

    @property
    def may_flush(self) -> bool:
        """No document may be written while catching up, nor from a mirror that holds part of a transaction or change."""
        whole = self.consistency == "row" or not self.gate.straddling
        return self.catching_up is None and whole and not self.folding.unfolded

    def settle(self, taken: Taken, outcomes: Sequence[Outcome]) -> None:
        with self.mirror.checkpoint():
            self.settling.settle(taken, outcomes)

    def continue_fanout(self) -> bool:
        """One chunk of the oldest fan-out, or of what an aggregate has to look at; False where there is none."""
        if self.applier.marking.oldest() is None and not self.folding.pending:
            return False
        with self.mirror.checkpoint() as seq:
            self.applier.marking.continue_fanout(seq, FANOUT_CHUNK)
            self.folding.fold(seq)
            self._save_hold(seq)
        return True

    def retry(self, sink: int) -> int:
        """Mark what is quarantined dirty again; how many."""
        with self.mirror.checkpoint() as seq:
            return self.settling.retry(sink, seq)

    def dirty(self, sink: int) -> int:
        return int(value(self.mirror.db, "SELECT count(*) FROM dirty WHERE sink = ?", (sink,)) or 0)

    def watermark(self, sink: int) -> dict[str, dict[str, Any]]:
        """Per connector the last END before which everything is applied and acknowledged by this sink."""
        return self.marks.watermark(sink)

    def acknowledged(self, sink: int) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
        """The input offsets of which everything is written to this sink, and the watermark; monotone."""
        return self.marks.acknowledged(sink), self.watermark(sink)

    def prune(self) -> None:
        """Forget marks below each connector's published one, and old tombstones."""
        with self.mirror.checkpoint():
            self.marks.prune()
            self.staging.forget_released(self.gates, REMEMBERED)
            self.ownership.tombstones.prune()
            self.refreshing.find_unknown()
            self.refreshing.prune()

    def reader(self, rules: Rules | None = None) -> Reader:
        return Reader(self.mirror.path, self.layout, rules)


__all__ = ["UNKNOWN", "Engine", "Inputs", "Progress", "Record"]
