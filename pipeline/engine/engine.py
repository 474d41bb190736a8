"""The engine: ordered changes in, documents out; it knows neither Kafka nor Faust nor a sink."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import msgspec

from pipeline.engine.apply import Applier, position
from pipeline.engine.dirty import Reader, Settling, Taken
from pipeline.engine.layout import Layout
from pipeline.engine.mirror import UNKNOWN, Mirror
from pipeline.engine.sql import rows, value
from pipeline.engine.transactions import Gate, Released
from pipeline.errors import DecodeError
from pipeline.events.envelope import (
    UNCHANGED,
    Boundary,
    Event,
    Source,
    TableDecoder,
    TransactionBlock,
    dead_letter,
    decode_boundary,
    transaction_id,
)
from pipeline.ports import Outcome

Record = tuple[int, bytes | None, bytes | None]
"""Offset, key and value of one Kafka record."""

FANOUT_CHUNK: Final = 2000
SNAPSHOT: Final = frozenset({"true", "first", "first_in_data_collection", "last_in_data_collection", "last", True})


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the engine is fed: `topics` maps each data topic to its source table."""

    topics: Mapping[str, str]
    boundaries: str | None
    """The transaction topic; None where there is none (then `consistency` must be `row`)."""
    connector: str = ""


@dataclass(slots=True)
class Progress:
    """What one step did."""

    applied: int = 0
    transactions: int = 0
    newest_ms: int = 0
    """Source time of the newest event applied, in ms since 1970."""
    offsets: dict[str, int] = field(default_factory=dict)


class Engine:
    """Holds the gate and the mirror together; every public method is called from one thread."""

    def __init__(
        self,
        mirror: Mirror,
        inputs: Inputs,
        *,
        consistency: Literal["transaction", "row"] = "transaction",
        staged_bytes: int = 64_000_000,
    ) -> None:
        self.mirror, self.inputs = mirror, inputs
        self.layout: Layout = mirror.layout
        self.consistency = consistency if inputs.boundaries else "row"
        self.staged_limit = staged_bytes
        self._staged_bytes = 0
        self.applier, self.settling = Applier(mirror), Settling(mirror)
        self.decoders = {
            topic: TableDecoder(table, t.number, t.columns, t.key)
            for topic, table in inputs.topics.items()
            if (t := self.layout.tables[table]) is not None
        }
        self.gate = Gate(self.layout.tables, by_row=self.consistency == "row")
        self.catching_up: dict[str, int] | None = None
        self.wants_cut = False
        self._snapshot = False
        self._snapshot_ms = 0
        self._had_partial = True
        self._boundary_partition = ""
        self._bad_boundaries: list[tuple[str, int, bytes, str]] = []
        self.durable: dict[str, int] = mirror.offsets()
        """The offsets in the mirror, as of the last checkpoint."""
        self._history: deque[tuple[int, dict[str, int]]] = deque(maxlen=1000)
        """Offsets by sequence, so that a sink's record can say which it has acknowledged."""
        self._restore()

    # ---- state --------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        stored = self.mirror.offsets()
        boundary = next((p for p in stored if p.rpartition("/")[0] == self.inputs.boundaries), None)
        offsets = {p: n for p, n in stored.items() if p != boundary}
        partial: dict[str, int] = dict(rows(self.mirror.db, "SELECT txid, applied FROM partial"))
        self.gate.restore(offsets, stored.get(boundary or "", 0), partial, int(self.mirror.get("released_lsn") or 0))
        for txid, n in rows(self.mirror.db, "SELECT txid, count(*) FROM staged WHERE txid IS NOT NULL GROUP BY txid"):
            self.gate.counts[txid] = self.gate.counts.get(txid, 0) + n
        for partition, txid, order in rows(
            self.mirror.db,
            "SELECT partition, txid, max(json_extract(CAST(key AS TEXT), '$')) FROM staged WHERE txid IS NOT NULL GROUP BY 1, 2",
        ):
            self.gate.partition(partition).open[txid] = int(order)
        cut = self.mirror.get("catching_up")
        if cut is not None:
            self.catching_up, self.wants_cut, self.gate.by_row = json.loads(cut), True, True
        self.loaded = bool(self.mirror.get("loaded"))
        self._spilled = bool(value(self.mirror.db, "SELECT 1 FROM staged LIMIT 1"))

    def start_offset(self, partition: str) -> int:
        """Where to read a partition from, `topic/number`."""
        return self.mirror.offsets().get(partition, 0)

    # ---- in -----------------------------------------------------------------------------------------------

    def receive(self, partition: str, records: Sequence[Record]) -> None:
        """Records of one partition, in order: decoded and put to the gate. Nothing is durable before `step`."""
        if not records:
            return
        topic = partition.rpartition("/")[0]
        if topic == self.inputs.boundaries:
            for offset, _, data in records:
                if data is not None:
                    boundary = self._boundary(data, partition, offset)
                    self.gate.add_boundary(boundary, offset, self.inputs.connector)
                    if self._snapshot and boundary.ts_ms > self._snapshot_ms:
                        self._snapshot, self.wants_cut = False, True  # the source streams again
            self.gate.boundary_next = records[-1][0] + 1
            self._boundary_partition = partition
            return
        events = self._decoded(self.decoders[topic], records)
        self._staged_bytes += sum(len(r[2]) for r in records if r[2] is not None)
        self.gate.add(partition, events, records[-1][0] + 1)

    def _boundary(self, data: bytes, partition: str, offset: int) -> Boundary:
        try:
            return decode_boundary(data)
        except DecodeError as error:
            self._bad_boundaries.append((partition, offset, data, str(error)))
            return Boundary(status="?", id="")

    def _decoded(self, decoder: TableDecoder, records: Sequence[Record]) -> list[Event]:
        decode = decoder.decode
        events = []
        for offset, key, data in records:
            try:
                event = decode(key, data)
                event.offset = offset
            except DecodeError as error:
                event = dead_letter(decoder.number, offset, key, data, error)
            events.append(event)
        last = events[-1].source.snapshot
        first = events[0].source.snapshot
        if first in SNAPSHOT or last in SNAPSHOT:
            self._see_snapshot(events)
        elif self._snapshot:
            self._snapshot, self.wants_cut = False, True
        return events

    def _see_snapshot(self, events: Iterable[Event]) -> None:
        """Snapshot rows: catch up until the connector says which is the last."""
        if self.catching_up is None:
            self.catching_up, self.gate.by_row = {}, True
        for event in events:
            flag = event.source.snapshot
            if flag in SNAPSHOT:
                self._snapshot, self._snapshot_ms = flag != "last", event.source.ts_ms
                self.wants_cut = self.wants_cut or flag == "last"

    # ---- catch-up -----------------------------------------------------------------------------------------

    def catch_up(self, cut: Mapping[str, int]) -> None:
        """Write no document before these offsets are passed; changes are applied by row until then."""
        self.wants_cut = False
        self.catching_up, self.gate.by_row = dict(cut), True

    def _leave_catch_up(self, seq: int) -> None:
        cut = self.catching_up
        if cut is None or self._snapshot or self.wants_cut:
            return
        for partition, end in cut.items():
            at = (
                self.gate.boundary_next
                if partition.rpartition("/")[0] == self.inputs.boundaries
                else self.gate.partition(partition).next
            )
            if at < end:
                return
        self.catching_up = None
        self.gate.by_row = self.consistency == "row"
        self.mirror.set("catching_up", None)
        if not self.loaded and value(self.mirror.db, f'SELECT 1 FROM "{self.layout.root.name}" LIMIT 1') is not None:
            self._finish_load(seq)

    def _finish_load(self, seq: int) -> None:
        self.mirror.create_indexes()
        self.applier.marking.mark_every_root(seq)
        self.mirror.set("loaded", 1)
        self.loaded = True

    # ---- one checkpoint -----------------------------------------------------------------------------------

    def step(self, limit: int | None = None) -> Progress:
        """Apply what the gate releases, in one checkpoint with the offsets reached."""
        released = self.gate.release(limit)
        idle = not (released.events or released.ends or released.repeated)
        if idle and not self._spill_needed() and self.catching_up is None:
            return Progress()
        return self._checkpoint(released)

    def give_up(self, txid: str) -> Progress:
        """Release an incomplete transaction as it is; counted and shown."""
        return self._checkpoint(self.gate.give_up(txid))

    def _checkpoint(self, released: Released) -> Progress:
        progress = Progress()
        with self.mirror.checkpoint() as seq:
            if released.events or self._spilled:
                self._apply(released, seq, progress)
            for end in released.ends:
                progress.newest_ms = max(progress.newest_ms, end.ts_ms)
            if released.ends:
                last = released.ends[-1]
                self.mirror.db.execute(
                    "INSERT OR REPLACE INTO marks VALUES(?, ?, ?, ?, ?)",
                    (seq, last.connector, last.lsn, last.txid, last.ts_ms),
                )
                self.mirror.set("released_lsn", self.gate.released_lsn)
                progress.transactions = len(released.ends)
            self.mirror.count("incomplete", released.incomplete)
            self.mirror.count("repeated", released.repeated)
            for partition, offset, data, error in self._bad_boundaries:
                self.mirror.add_dead_letter(partition, offset, (None, data), error, None)
            if self._spill_needed():
                self._spill()
            self._leave_catch_up(seq)
            progress.offsets = self._save()
        self.durable = progress.offsets
        self._history.append((self.mirror.seq, progress.offsets))
        self._bad_boundaries.clear()
        if not self.gate.staged:
            self._staged_bytes = 0
        return progress

    def _save(self) -> dict[str, int]:
        offsets = {name: at.checkpoint for name, at in self.gate.partitions.items()}
        if self._boundary_partition:
            ends = self.gate.ends
            offsets[self._boundary_partition] = ends[0].offset if ends else self.gate.boundary_next
        self.mirror.set_offsets(offsets)
        db = self.mirror.db
        if self.gate.applied or self._had_partial:
            db.execute("DELETE FROM partial")
            db.executemany("INSERT INTO partial VALUES(?, ?)", list(self.gate.applied.items()))
        self._had_partial = bool(self.gate.applied)
        if self.catching_up is not None:
            self.mirror.set("catching_up", json.dumps(self.catching_up))
        return offsets

    def _apply(self, released: Released, seq: int, progress: Progress) -> None:
        events: list[Event] = []
        truncates = False
        for partition, event in released.events:
            if event.op == "!":
                assert event.raw is not None
                self.mirror.add_dead_letter(
                    partition, event.offset, event.raw, event.error or "", transaction_id(event)
                )
            elif event.op != "m":
                events.append(event)
                truncates = truncates or event.op == "t"
        if self._spilled:
            events = self._unspill(released, seq) + events
        if truncates and not self.gate.by_row:
            events.sort(key=lambda e: position(e, self.applier.log))
        if not events:
            return
        snapshot = self.catching_up is not None or self._snapshot
        mark = self.loaded or not snapshot
        if mark and not self.loaded:
            self.mirror.create_indexes()
            self.mirror.set("loaded", 1)
            self.loaded = True
        self.applier.apply(events, seq, mark=mark)
        if any(e.partial for e in events):
            self.mirror.count("unknown", sum(e.partial for e in events))
        progress.applied = len(events)
        progress.newest_ms = max(e.source.ts_ms for e in events)

    # ---- what is too much to hold in memory ---------------------------------------------------------------

    def _spill_needed(self) -> bool:
        return self._staged_bytes > self.staged_limit and self.gate.staged > 0

    def _spill(self) -> None:
        encode = msgspec.msgpack.Encoder(enc_hook=lambda _: {"unchanged": True}).encode
        for name in self.gate.partitions:
            lines: list[tuple[Any, ...]] = []
            self.gate.spill(name, lambda e: lines.append(self._line(name, e, encode)))  # noqa: B023 - called at once
            self.mirror.db.executemany(
                "INSERT INTO staged(partition, offset, txid, key, value) VALUES(?, ?, ?, ?, ?)", lines
            )
            self._spilled = self._spilled or bool(lines)
            self.mirror.count("spilled", len(lines))
        self._staged_bytes = 0

    @staticmethod
    def _line(name: str, event: Event, encode: Any) -> tuple[Any, ...]:
        order = event.transaction.total_order if event.transaction else 0
        data = encode(
            (event.op, event.source, event.after, event.transaction, event.key, event.table, event.error, event.raw)
        )
        return name, event.offset, transaction_id(event), str(order).encode(), data

    def _unspill(self, released: Released, seq: int) -> list[Event]:
        """Apply what was spilled of the released transactions, a chunk at a time."""
        db = self.mirror.db
        txids = [(end.txid,) for end in released.ends]
        db.execute("CREATE TEMP TABLE IF NOT EXISTS going(txid TEXT PRIMARY KEY)")
        db.execute("DELETE FROM temp.going")
        db.executemany("INSERT OR IGNORE INTO temp.going VALUES(?)", txids)
        going = (
            "SELECT position, partition, offset, value FROM staged s WHERE position > ? AND (txid IN (SELECT txid FROM temp.going)"
            " OR txid IS NULL AND NOT EXISTS(SELECT 1 FROM staged b WHERE b.partition = s.partition AND b.position < s.position"
            " AND b.txid IS NOT NULL AND b.txid NOT IN (SELECT txid FROM temp.going)))"
            " ORDER BY position LIMIT 5000"
        )
        last = -1
        while chunk := rows(db, going, (last,)):
            last = chunk[-1][0]
            events = [self._unline(partition, offset, data) for _, partition, offset, data in chunk]
            kept = [e for e in events if e.op not in ("!", "m")]
            for (_, partition, offset, _), e in zip(chunk, events, strict=True):
                if e.op == "!" and e.raw is not None:
                    self.mirror.add_dead_letter(partition, offset, e.raw, e.error or "", transaction_id(e))
            self.applier.apply(kept, seq, mark=self.loaded)
            db.executemany("DELETE FROM staged WHERE position = ?", [(c[0],) for c in chunk])
        self._spilled = bool(value(db, "SELECT 1 FROM staged LIMIT 1"))
        return []

    @staticmethod
    def _unline(partition: str, offset: int, data: bytes) -> Event:
        op, source, after, block, key, table, error, raw = msgspec.msgpack.decode(
            data, type=tuple[str, Any, Any, Any, Any, int, str | None, Any]
        )
        source = msgspec.convert(source, Source)
        block = msgspec.convert(block, type=TransactionBlock | None)
        partial = after is not None and any(isinstance(v, dict) for v in after)
        row = None if after is None else tuple(UNCHANGED if isinstance(v, dict) else v for v in after)
        return Event(
            op=op,
            source=source,
            after=row,
            transaction=block,
            key=None if key is None else tuple(key),
            offset=offset,
            table=table,
            error=error,
            raw=None if raw is None else tuple(raw),
            partial=partial,
        )

    # ---- out ----------------------------------------------------------------------------------------------

    @property
    def may_flush(self) -> bool:
        """No document may be written while catching up, nor from a mirror that holds part of a transaction."""
        return self.catching_up is None and (self.consistency == "row" or not self.gate.straddling)

    def settle(self, taken: Taken, outcomes: Sequence[Outcome]) -> None:
        with self.mirror.checkpoint():
            self.settling.settle(taken, outcomes)

    def continue_fanout(self) -> bool:
        """One chunk of the oldest fan-out; False where there is none."""
        if self.applier.marking.oldest() is None:
            return False
        with self.mirror.checkpoint() as seq:
            return self.applier.marking.continue_fanout(seq, FANOUT_CHUNK)

    def dirty(self, sink: int) -> int:
        return int(value(self.mirror.db, "SELECT count(*) FROM dirty WHERE sink = ?", (sink,)) or 0)

    def watermark(self, sink: int) -> dict[str, dict[str, Any]]:
        """Per connector the last END before which everything is applied and acknowledged by this sink."""
        bound = self._oldest_unwritten(sink)
        found = rows(
            self.mirror.db,
            "SELECT connector, max(seq), lsn, txid, ts_ms FROM marks WHERE seq < ? GROUP BY connector",
            (bound if bound is not None else 1 << 62,),
        )
        return {c: {"lsn": lsn, "txid": txid, "ts_ms": ts} for c, _, lsn, txid, ts in found}

    def acknowledged(self, sink: int) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
        """The input offsets of which everything is written to this sink, and the watermark; monotone."""
        bound = self._oldest_unwritten(sink)
        past = [offsets for seq, offsets in self._history if bound is None or seq < bound]
        return (past[-1] if past else {}), self.watermark(sink)

    def _oldest_unwritten(self, sink: int) -> int | None:
        """The oldest change that this sink has not acknowledged; an unfinished fan-out counts."""
        db = self.mirror.db
        found = [value(db, "SELECT min(since) FROM dirty WHERE sink = ? AND low = ?", (sink, low)) for low in (0, 1)]
        found.append(self.applier.marking.oldest())
        return min((n for n in found if n is not None), default=None)

    def prune(self) -> None:
        """Forget marks below each connector's published one, and old tombstones."""
        with self.mirror.checkpoint():
            oldest = min(
                (s for s in map(self._oldest_unwritten, self.mirror.sinks().values()) if s is not None),
                default=self.mirror.seq,
            )
            self.mirror.db.execute(
                "DELETE FROM marks WHERE seq < (SELECT max(seq) FROM marks m WHERE m.connector = marks.connector AND m.seq < ?)",
                (oldest,),
            )
            week_ago = time.time() - 7 * 86400
            for table in self.layout.tables.values():
                self.mirror.db.execute(f'DELETE FROM "{table.name}/deleted" WHERE _at < ?', (week_ago,))

    def reader(self) -> Reader:
        return Reader(self.mirror.path, self.layout)


__all__ = ["UNKNOWN", "Engine", "Inputs", "Progress", "Record"]
