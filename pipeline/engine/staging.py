"""Staging: what waits for its transaction and is too much for memory goes to the mirror's `staged` table and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from pipeline.engine.inputs import Inputs
from pipeline.engine.layout import Table
from pipeline.engine.mirror import Mirror
from pipeline.engine.sourcelog import SourceLogs, log_of
from pipeline.engine.sql import rows, value
from pipeline.engine.transactions import Gate, Open, Released
from pipeline.events.envelope import UNCHANGED, Event, Source, TransactionBlock, commit_order, transaction_id

CHUNK: Final = 5000
ALONE: Final = "-"
"""The staged `op` of an event without a transaction."""

_encode: Final = msgspec.msgpack.Encoder(enc_hook=lambda _: {"unchanged": True}).encode
_decode: Final = msgspec.msgpack.Decoder(tuple[Any, ...]).decode


class Staging:
    """The staged rows, and what a checkpoint stores of transactions that are not released; inside a checkpoint."""

    def __init__(self, mirror: Mirror, inputs: Inputs, logs: SourceLogs) -> None:
        self.mirror, self.db, self.inputs, self.logs = mirror, mirror.db, inputs, logs
        self.txids: set[str] = {txid for (txid,) in rows(self.db, "SELECT DISTINCT txid FROM staged")}
        self._had_opens = True
        self._logs: dict[str, int] = {}
        """Each connector's log, as stored."""
        self._last: dict[str, tuple[str, int]] = {}
        """Each partition's last staged place: a row without a transaction goes where the event before it goes."""

    def restore(self, gates: Mapping[str, Gate], offsets: Mapping[str, int]) -> None:
        """Give each connector's gate what the last checkpoint knew."""
        opens: dict[str, dict[str, Open]] = {of: {} for of in gates}
        recent: dict[str, list[tuple[str, int]]] = {of: [] for of in gates}
        for txid, applied, given_up, expected, marks in rows(
            self.db, "SELECT txid, applied, given_up, expected, marks FROM partial"
        ):
            last, truncates = json.loads(marks)
            durable = last, set(truncates)
            opens[self.logs.connector_of(txid)][txid] = Open(
                seen=applied,
                applied=applied,
                last=dict(last),
                truncates=set(truncates),
                given_up=bool(given_up),
                expected=expected,
                durable=durable,
                log=log_of(txid),
            )
        for txid, lsn in rows(self.db, "SELECT txid, lsn FROM released ORDER BY rowid"):
            recent[self.logs.connector_of(txid)].append((txid, lsn))
        for of, gate in gates.items():
            named, boundaries = self.inputs.named, self.inputs.transactions
            gate.log = self._logs[of] = int(self.mirror.get(named("log", of)) or 0)
            gate.forgotten = int(self.mirror.get(named("forgotten", of)) or 0)
            topics = {name: name.rpartition("/")[0] for name in offsets}
            own = {name: offsets[name] for name, topic in topics.items() if self.inputs.connector_of(topic) == of}
            boundary = max((own.pop(name) for name in list(own) if topics[name] in boundaries), default=0)
            gate.restore(own, boundary, opens[of], recent[of])
        gate = gates[self.inputs.connector]  # of several nothing is staged: all is applied by row
        staged = self.db.execute("SELECT txid, partition, op, number, event FROM staged ORDER BY position")
        for txid, partition, op, number, data in staged:
            self._last[partition] = txid, number
            if op == ALONE:
                continue
            known = gate.opens.get(txid)
            if known is None:
                source = _event(0, data).source
                known = gate.opens[txid] = Open(commit=commit_order(source) or source.lsn or 0, log=log_of(txid))
            known.seen += 1
            known.spilled += 1
            known.last[partition] = max(number, known.last.get(partition, 0))
            if op == "t":
                known.truncates.add(number)
            gate.partition(partition).spilled.add(txid)

    def save(self, gates: Mapping[str, Gate], released: Released, seq: int) -> None:
        """Store what a restart has to know of transactions."""
        for of, gate in gates.items():
            if gate.log != self._logs[of]:
                self.db.execute("DELETE FROM released WHERE txid GLOB ?", (_released_of(gates, self._logs[of]),))
                self._logs[of] = gate.log
                self.mirror.set(self.inputs.named("log", of), gate.log)
                self.mirror.set(self.inputs.named("forgotten", of), 0)
        if released.ends:
            lines = [(end.txid, end.lsn, seq) for end in released.ends if end.log == gates[end.connector].log]
            self.db.executemany("INSERT INTO released VALUES(?, ?, ?)", lines)
        every = (pair for gate in gates.values() for pair in gate.opens.items())
        opens = [(txid, known) for txid, known in every if known.applied or known.given_up]
        if opens or self._had_opens:
            self.db.execute("DELETE FROM partial")
            self.db.executemany(
                "INSERT INTO partial VALUES(?, ?, ?, ?, ?)", [(txid, *_stored(known)) for txid, known in opens]
            )
        self._had_opens = bool(opens)

    def forget_released(self, gates: Mapping[str, Gate], remembered: int) -> None:
        """Only the newest released transactions are remembered by id; the others by their commit order."""
        for of, gate in gates.items():
            own, name = _released_of(gates, gate.log), self.inputs.named("forgotten", of)
            newest_first = "SELECT rowid FROM released WHERE txid GLOB ? ORDER BY rowid DESC LIMIT 1 OFFSET ?"
            last = value(self.db, newest_first, (own, remembered))
            if last is None:
                continue
            newest = int(value(self.db, "SELECT max(lsn) FROM released WHERE rowid <= ? AND txid GLOB ?", (last, own)))
            self.mirror.set(name, max(newest, int(self.mirror.get(name) or 0)))
            self.db.execute("DELETE FROM released WHERE rowid <= ? AND txid GLOB ?", (last, own))

    def spill(self, gate: Gate) -> None:
        """Move all that waits out of memory."""
        for name in gate.partitions:
            pairs: list[tuple[str, Event]] = []
            gate.spill(name, lambda event: pairs.append((name, event)))  # noqa: B023 - called at once
            self._put(pairs)
            self.mirror.count("spilled", len(pairs))

    def _put(self, pairs: list[tuple[str, Event]], first: str = "") -> None:
        """Stage events; one without a transaction and nothing before it comes before the transaction `first`."""
        lines = [self._line(name, event, first) for name, event in pairs]
        self.db.executemany(
            "INSERT INTO staged(partition, offset, txid, number, op, event) VALUES(?, ?, ?, ?, ?, ?)", lines
        )
        self.txids.update(line[2] for line in lines)

    def _line(self, name: str, event: Event, first: str) -> tuple[Any, ...]:
        op, txid = event.op, transaction_id(event)
        if event.transaction is not None and txid is not None:
            self._last[name] = txid, event.transaction.total_order
        else:
            op = ALONE
            self._last.setdefault(name, (first, -1))
        data = _encode(
            (event.op, event.source, event.after, event.transaction, event.key, event.table, event.error, event.raw,
             event.log, event.moved)
        )  # fmt: skip
        return name, event.offset, *self._last[name], op, data

    def take(self, released: Released) -> Iterator[list[tuple[str, Event]]]:
        """What is staged of the released transactions, a chunk at a time.

        It comes in the source's order; all that is staged, transactions that are not whole too, in the order of its
        arrival. What was released from memory comes with it, and is taken out of `released`.
        """
        if released.dropped & self.txids:
            self._gone(released.dropped)
        if released.all_staged:
            yield from self._chunks(self.db.execute("SELECT partition, offset, event FROM staged ORDER BY position"))
            self._gone(self.txids)
        elif released.going & self.txids:
            going = [end.txid for end in released.ends]
            going += sorted(released.going.difference(going))
            self._put(released.events, going[0])
            released.events = []
            yield from self._chunks(line for txid in going for line in self.db.execute(_OF_TRANSACTION, (txid,)))
            self._gone(set(going))

    def _gone(self, txids: set[str]) -> None:
        self.db.executemany("DELETE FROM staged WHERE txid = ?", [(txid,) for txid in txids])
        self.txids = self.txids - txids
        self._last = {name: place for name, place in self._last.items() if place[0] in self.txids}

    def _chunks(self, lines: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[str, Event]]]:
        chunk: list[tuple[str, Event]] = []
        deleted = False
        for partition, offset, data in lines:
            event = _event(offset, data)
            alone = event.transaction is None
            # a key that changes is a delete and a create, which may need it: they stay together
            if len(chunk) >= CHUNK and not (deleted if alone else event.partial and event.op == "c"):
                yield chunk
                chunk = []
            if not alone:
                deleted = event.op == "d"
            chunk.append((partition, event))
        if chunk:
            yield chunk


_OF_TRANSACTION: Final = "SELECT partition, offset, event FROM staged WHERE txid = ? ORDER BY number, position"


def _released_of(gates: Mapping[str, Gate], log: int) -> str:
    """The pattern of the ids of one connector's released transactions, which are of its log."""
    return "*" if len(gates) == 1 else f"{log}/*"


def _stored(known: Open) -> tuple[int, bool, int | None, str]:
    last, truncates = known.durable
    return known.applied, known.given_up, known.expected, json.dumps([last, sorted(truncates)])


def staged_key(data: bytes, table: Table) -> tuple[Any, ...] | None:
    """The key of a staged event of this table; None where it is another's, or has none."""
    event = _event(0, data)
    if event.table != table.number or (event.key is None and event.after is None):
        return None
    return event.key if event.after is None else event.after[: len(table.key)]


def _event(offset: int, data: bytes) -> Event:
    op, source, after, block, key, table, error, raw, log, *moved = _decode(data)  # older programs wrote no `moved`
    partial = after is not None and any(isinstance(item, dict) for item in after)
    return Event(
        op=op,
        source=msgspec.convert(source, Source),
        after=None if after is None else tuple(UNCHANGED if isinstance(item, dict) else item for item in after),
        transaction=msgspec.convert(block, type=TransactionBlock | None),
        key=None if key is None else tuple(key),
        offset=offset,
        table=table,
        error=error,
        raw=None if raw is None else tuple(raw),
        partial=partial,
        log=log,
        moved=moved == [True],
    )
