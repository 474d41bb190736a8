"""Recordings: Debezium's records as they were in Kafka, one JSON object a line, as the history of a modelled source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.engine.layout import Layout
from pipeline.errors import ScenarioError
from pipeline.testing.source import Message, Row, SourceModel


@dataclass(frozen=True, slots=True)
class Record:
    """One line: `{"topic": …, "partition": …, "offset": …, "key": text or null, "value": text or null}`."""

    topic: str
    partition: int
    key: str | None
    value: str | None

    @property
    def envelope(self) -> dict[str, Any] | None:
        return None if self.value is None else _payload(self.value)


def recorded_source(path: Path, layout: Layout) -> SourceModel:
    """A source whose connector sends what was recorded of the layout's tables; what follows is told as to any other."""
    records = list(_read(path))
    prefix = _prefix(path, records, layout)
    topics = {f"{prefix}.{name}": name for name in layout.tables}
    boundaries = f"{prefix}.transaction"
    chosen = [record for record in records if record.topic in (*topics, boundaries)]
    model = SourceModel({name: table.key for name, table in layout.tables.items()}, name=prefix)
    rows = _Rows(model, layout)
    for record in _in_source_order(chosen, boundaries):
        envelope = record.envelope
        snapshot = envelope is not None and envelope.get("op") == "r"
        model.messages.append(
            Message(record.topic, _bytes(record.key), _bytes(record.value), not snapshot, model.label)
        )
        if envelope is not None and record.topic in topics:
            rows.apply(topics[record.topic], record, envelope)
    model.resumable = next((i for i, m in enumerate(model.messages) if m.again), len(model.messages))
    model.continue_after(_positions(chosen, boundaries))
    return model


def has_transactions(path: Path) -> bool:
    """Whether the connector sent transaction metadata."""
    return any(record.topic.endswith(".transaction") for record in _read(path))


def _read(path: Path) -> Iterator[Record]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            found = json.loads(line)
            yield Record(found["topic"], found["partition"], found["key"], found["value"])
        except (ValueError, KeyError, TypeError) as error:
            raise ScenarioError(
                f"{path}:{number} is no record ({error}): each line is a JSON object with topic, partition, offset, key"
                " and value, the last two as text or null."
            ) from None


def _prefix(path: Path, records: Iterable[Record], layout: Layout) -> str:
    topics = sorted({record.topic for record in records})
    for topic in topics:
        for name in layout.tables:
            if topic.endswith("." + name):
                return topic.removesuffix("." + name)
    raise ScenarioError(
        f"{path} has no record of {', '.join(layout.tables)}; its topics are {', '.join(topics) or 'none'}."
    )


def _payload(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found["payload"] if "payload" in found and "schema" in found else found


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


def _txid(id: str) -> str:
    return id.partition(":")[0]


def _in_source_order(records: list[Record], boundaries: str) -> list[Record]:
    """As the connector sent them: snapshot rows, then transactions in commit order; repeats are left out."""
    ends = {_txid(e["id"]): int(e["id"].partition(":")[2]) for e in _boundaries(records, boundaries, "END")}
    placed: list[tuple[tuple[float, float, int], Record]] = []
    seen: set[tuple[str, str, Any]] = set()
    last: dict[tuple[str, int], tuple[float, float, int] | None] = {}
    for number, record in enumerate(records):
        at, envelope = (record.topic, record.partition), record.envelope
        if envelope is None:  # a tombstone follows its delete
            place = last.get(at)
        elif (envelope.get("source") or {}).get("snapshot") == "incremental":
            place = last.get(at, (-1, 0, 0))
        else:
            place = _place(envelope, ends, number)
            block = envelope.get("transaction") or {}
            mark = envelope.get("status") or block.get("total_order")
            id = (record.topic, _txid(block.get("id") or envelope.get("id", "")), mark)
            if mark is not None and id in seen:
                place = None
            seen.add(id)
            last[at] = place
        if place is not None:
            placed.append(((*place[:2], number), record))
    return [record for _, record in sorted(placed, key=lambda pair: pair[0])]


def _place(envelope: Mapping[str, Any], ends: Mapping[str, int], number: int) -> tuple[float, float, int]:
    status, block = envelope.get("status"), envelope.get("transaction")
    if status is not None:
        txid = _txid(envelope["id"])
        return ends.get(txid, float("inf")), -1 if status == "BEGIN" else float("inf"), number
    if block is None:
        # without metadata the log's position says the order; a snapshot's rows come first
        return (-1 if envelope.get("op") == "r" else envelope["source"].get("lsn") or 0), number, number
    # a transaction whose END was not recorded comes last; where none was, the log's position says the order
    rank = ends.get(_txid(block["id"]), float("inf") if ends else envelope["source"].get("lsn") or 0)
    return rank, block["total_order"], number


def _boundaries(records: Iterable[Record], topic: str, status: str) -> Iterator[dict[str, Any]]:
    for record in records:
        envelope = record.envelope if record.topic == topic else None
        if envelope is not None and envelope.get("status") == status:
            yield envelope


def _positions(records: Iterable[Record], boundaries: str) -> tuple[int, int, int, int]:
    """The newest position in the log, transaction, END and time."""
    sources = [e["source"] for r in records if r.topic != boundaries and (e := r.envelope) is not None]
    ends = [int(e["id"].partition(":")[2]) for e in _boundaries(records, boundaries, "END")]
    return (
        max([*ends, *(s.get("lsn") or 0 for s in sources)], default=0),
        max((int(s.get("txId") or 0) for s in sources), default=0),
        max(ends, default=0),
        max((int(s.get("ts_ms") or 0) for s in sources), default=0),
    )


@dataclass(slots=True)
class _Rows:
    """The source's rows, event by event."""

    model: SourceModel
    layout: Layout
    moved: tuple[int | None, Row] = field(default_factory=lambda: (None, {}))
    """The row deleted last, and where in the log: a create there is the same row under another key."""

    def apply(self, table: str, record: Record, envelope: Mapping[str, Any]) -> None:
        own, rows = self.layout.tables[table], self.model.rows[table]
        op, after, lsn = envelope["op"], envelope.get("after"), envelope["source"].get("lsn")
        if op == "t":
            rows.clear()
        elif op == "d":
            gone = _payload(record.key or "{}")
            self.moved = lsn, rows.pop(tuple(gone[name] for name in own.key), {})
        elif after is not None:
            key = tuple(after[name] for name in own.key)
            known = rows.get(key) or (self.moved[1] if lsn == self.moved[0] else {})
            unchanged = {name: [json.loads(token) for token in wire.unchanged] for name, wire in own.wires.items()}
            fresh = {name: value for name, value in after.items() if value not in unchanged.get(name, ())}
            rows[key] = {**known, **fresh}
