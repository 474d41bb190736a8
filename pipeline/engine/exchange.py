"""The exchange: a projection's changes sent on to the partition that owns their documents, and taken in there.

A poll becomes one frame for each partition: the rows that it needs, and of all others that they were, so that the gate
of every partition knows when a transaction is whole. Why it is safe: docs/decisions/0015-exchange-mode.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from pipeline.engine.inputs import SNAPSHOT, Inputs, Record, decoders
from pipeline.engine.layout import Layout
from pipeline.engine.owners import Owners
from pipeline.engine.routes import ALL, ByColumns, ByKey
from pipeline.engine.sourcelog import in_log
from pipeline.errors import CheckpointError, LogTruncated
from pipeline.events.envelope import Event, Source, TableDecoder, TransactionBlock, commit_order
from pipeline.events.sourcelog import is_gtid, position_of

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine

FORMAT: Final = 1
FRAME_BYTES: Final = 1 << 19
"""A frame ends with the record that takes its rows past this."""
FRAME_ROOM: Final = 1 << 20
"""What a frame may have beside its last row: the rows before it, and what says that others were."""
PASSED_BYTES: Final = 100
"""What an event whose row another partition has takes in memory, about."""
TRUE: Final = frozenset({"true", True})


class Passed(Struct, array_like=True, gc=False):
    """Rows of one transaction that another partition owns: their offsets and orders, by turns."""

    txid: str
    commit: int
    """Not after the transaction's commit, and above all before it; of MariaDB's its id says that."""
    ts_ms: int
    places: list[int]


class Frame(Struct, array_like=True, gc=False):
    """What one partition gets of the records `start` to `end` (not with it) of a source's partition and log."""

    format: int
    source: str
    """`topic/number`."""
    start: int
    end: int
    first: bool
    """The sender begins here: all before it was acknowledged to somebody."""
    label: str
    """Of the source log."""
    records: list[tuple[int, bytes | None, bytes | None]]
    passed: list[Passed] = []
    marks: list[tuple[int, str | bool, int]] = []
    """Rows of a snapshot that say where it stands: offset, flag and source time (ms)."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Frame).decode


class Router:
    """The exchange's sending half; holds nothing but what the layout says."""

    def __init__(self, layout: Layout, inputs: Inputs, partitions: int) -> None:
        self.partitions = partitions
        owners = Owners(layout, partitions)
        self._routes: dict[str, ByKey | ByColumns] = {}
        for topic, decoder in decoders(inputs, layout).items():
            own = owners.places[decoder.table]
            if own is not None and isinstance(decoder, TableDecoder):
                kind = ByKey if owners.by_key(decoder.table) else ByColumns
                self._routes[topic] = kind(decoder, own, owners)

    def shares(self, topic: str, record: Record) -> list[Record | None]:
        """What each partition needs of a record with a value; None: nothing but that it was there."""
        if (route := self._routes.get(topic)) is None:
            return [record] * self.partitions
        _, owner, others = route(record)
        return [record if owner in (number, ALL) else others for number in range(self.partitions)]

    def frames(
        self, source: str, runs: Iterable[tuple[str, Sequence[Record]]], start: int, *, first: bool
    ) -> Iterator[list[bytes]]:
        """The frames of consecutive records, by source log, of one partition: each time one for every partition."""
        route = self._routes.get(source.rpartition("/")[0])
        for label, run in runs:
            for records in _chunks(run):
                end = records[-1][0] + 1
                frames = [Frame(FORMAT, source, start, end, first, label, [], [], []) for _ in range(self.partitions)]
                if route is None:
                    whole = list(records)
                    for frame in frames:
                        frame.records = whole
                else:
                    _share_out(route, records, frames)
                yield [_encode(frame) for frame in frames]
                start, first = end, False


def _share_out(route: ByKey | ByColumns, records: Sequence[Record], frames: Sequence[Frame]) -> None:
    last = records[-1][0]
    for record in records:
        offset, _, value = record
        if value is None:
            continue  # a Kafka tombstone says nothing that the delete before it did not
        event, owner, others = route(record)
        if owner == ALL:
            for frame in frames:
                frame.records.append(record)
            continue
        block, source = event.transaction, event.source
        for number, frame in enumerate(frames):
            if number == owner:
                frame.records.append(record)
            elif others is not None:
                frame.records.append(others)
            elif block is not None:
                _pass(frame, offset, block, source)
            elif source.snapshot in SNAPSHOT and (source.snapshot not in TRUE or offset in (last, records[0][0])):
                frame.marks.append((offset, source.snapshot or "", source.ts_ms))


def _chunks(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    start = size = 0
    for i, (_, key, value) in enumerate(records):
        size += len(key or b"") + len(value or b"")
        if size > FRAME_BYTES:
            yield records[start : i + 1]
            start, size = i + 1, 0
    if start < len(records):
        yield records[start:]


def _pass(frame: Frame, offset: int, block: TransactionBlock, source: Source) -> None:
    txid = block.id.partition(":")[0]
    passed = frame.passed
    if not passed or passed[-1].txid != txid:
        passed.append(Passed(txid, commit_order(source) or source.lsn or 0, source.ts_ms, []))
    passed[-1].places += (offset, block.total_order)


class Inlet:
    """The exchange's receiving half: one partition's frames into its engine.

    A source's partition goes on where the last frame taken ended, whoever sends: what it has had it drops, to the
    record, and what begins further on than that is of a sender that a send failed, whose successor begins before it.
    """

    def __init__(self, engine: Engine, name: str, next_offset: int) -> None:
        self._engine, self.name, self.next = engine, name, next_offset
        self._open: deque[tuple[int, str, int]] = deque()
        """Frames with something that is not in the mirror: their offset, the source's partition, where they end."""
        self.repeated = 0
        """Frames that were sent again."""

    def receive(self, records: Sequence[Record]) -> None:
        """Records of this partition of the exchange topic, in order. Nothing is durable before the engine's `step`."""
        for offset, _, data in records:
            frame = _decode(data or b"")
            if frame.format != FORMAT:
                raise CheckpointError(f"{self.name} has frames of format {frame.format}, this program {FORMAT}.")
            self._take(offset, frame)
        if records:
            self.next = records[-1][0] + 1

    def _take(self, offset: int, frame: Frame) -> None:
        at = self._engine.next_offset(frame.source)
        if frame.end <= at:
            self.repeated += 1
            return
        if frame.start > at:
            if frame.first:
                raise LogTruncated(
                    f"{self.name} goes on at {frame.start} of {frame.source}, and {at} comes next: changes are missing, for"
                    " Kafka did not have them any more. Rebuild it (cdc rebuild)."
                )
            return
        records = frame.records if frame.start == at else [r for r in frame.records if r[0] >= at]
        log = self._engine.begin(frame.source, frame.label)
        passed = [event for event in _events(frame, log) if event.offset >= at]
        self._engine.take_in(frame.source, records, log, passed, frame.end)
        self._open.append((offset, frame.source, frame.end))

    def checkpoint(self, offsets: Mapping[str, int]) -> int:
        """The offset that a restart has to read from, where `offsets` are those of the source's partitions."""
        while self._open and offsets.get(self._open[0][1], 0) >= self._open[0][2]:
            self._open.popleft()
        return self._open[0][0] if self._open else self.next


def in_order(events: Iterable[Event], passed: Iterable[Event]) -> list[Event]:
    """Both, as the source's partition has them."""
    return sorted([*events, *passed], key=attrgetter("offset"))


def _events(frame: Frame, log: int) -> Iterator[Event]:
    """Rows of others, as events of nothing, of the same transactions."""
    for passed in frame.passed:
        gtid = passed.txid if is_gtid(passed.txid) else None
        commit = passed.commit if gtid is None else position_of(gtid)
        source = Source("false", txId=passed.txid, lsn=commit, ts_ms=passed.ts_ms, gtid=gtid)
        txid, places = in_log(passed.txid, log), iter(passed.places)
        for offset, order in zip(places, places, strict=True):
            yield Event("m", source, transaction=TransactionBlock(txid, order), offset=offset, log=log)
    for offset, snapshot, ts_ms in frame.marks:
        yield Event("m", Source(snapshot, ts_ms=ts_ms), offset=offset, log=log)
