"""Staging: what waits for its transaction and is too much for memory goes to the mirror's `staged` table and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import rows
from pipeline.engine.transactions import Gate, Open, Released
from pipeline.events.envelope import UNCHANGED, Event, Source, TransactionBlock, transaction_id

CHUNK: Final = 5000

_encode: Final = msgspec.msgpack.Encoder(enc_hook=lambda _: {"unchanged": True}).encode
_decode: Final = msgspec.msgpack.Decoder(tuple[str, Any, Any, Any, Any, int, str | None, Any]).decode


class Staging:
    """The staged rows, and what a checkpoint stores of transactions that are not released; inside a checkpoint."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.db = mirror, mirror.db
        self.db.execute("CREATE TEMP TABLE IF NOT EXISTS going(txid TEXT PRIMARY KEY) WITHOUT ROWID")
        self.db.execute("CREATE TEMP TABLE IF NOT EXISTS blocked(partition TEXT PRIMARY KEY, position) WITHOUT ROWID")
        self.txids: set[str | None] = {txid for (txid,) in rows(self.db, "SELECT DISTINCT txid FROM staged")}
        self._had_opens = True

    def restore(self, gate: Gate, offsets: dict[str, int], boundary: int) -> None:
        """Give the gate what the last checkpoint knew."""
        opens: dict[str, Open] = {}
        for txid, applied, given_up, expected, marks in rows(
            self.db, "SELECT txid, applied, given_up, expected, marks FROM partial"
        ):
            last, truncates = json.loads(marks)
            durable = last, set(truncates)
            opens[txid] = Open(applied, applied, 0, dict(last), set(truncates), bool(given_up), expected, durable)
        gate.forgotten = int(self.mirror.get("forgotten") or 0)
        gate.restore(offsets, boundary, opens, rows(self.db, "SELECT txid, lsn FROM released ORDER BY rowid"))
        for txid, partition, op, number in rows(
            self.db, "SELECT txid, partition, op, number FROM staged WHERE txid IS NOT NULL ORDER BY position"
        ):
            known = gate.opens.setdefault(txid, Open())
            known.seen += 1
            known.spilled += 1
            known.last[partition] = max(number, known.last.get(partition, 0))
            if op == "t":
                known.truncates.add(number)
            gate.partition(partition).spilled.add(txid)

    def save(self, gate: Gate, released: Released, seq: int) -> None:
        """Store what a restart has to know of transactions."""
        if released.ends:
            self.db.executemany(
                "INSERT INTO released VALUES(?, ?, ?)", [(end.txid, end.lsn, seq) for end in released.ends]
            )
        opens = [(txid, known) for txid, known in gate.opens.items() if known.applied or known.given_up]
        if opens or self._had_opens:
            self.db.execute("DELETE FROM partial")
            self.db.executemany(
                "INSERT INTO partial VALUES(?, ?, ?, ?, ?)", [(txid, *_stored(known)) for txid, known in opens]
            )
        self._had_opens = bool(opens)

    def spill(self, gate: Gate) -> None:
        """Move all that waits out of memory."""
        for name in gate.partitions:
            pairs: list[tuple[str, Event]] = []
            gate.spill(name, lambda event: pairs.append((name, event)))  # noqa: B023 - called at once
            self._put(pairs)
            self.mirror.count("spilled", len(pairs))

    def _put(self, pairs: list[tuple[str, Event]]) -> None:
        self.db.executemany(
            "INSERT INTO staged(partition, offset, txid, number, op, event) VALUES(?, ?, ?, ?, ?, ?)",
            [_line(name, event) for name, event in pairs],
        )
        self.txids.update(transaction_id(event) for _, event in pairs)

    def take(self, released: Released) -> Iterator[list[tuple[str, Event]]]:
        """What is staged of the released transactions, a chunk at a time.

        In the source's order; where rows without a transaction are among them, in the order of arrival. What was
        released from memory comes with it, and is taken out of `released`.
        """
        if released.dropped & self.txids:
            self.db.executemany("DELETE FROM staged WHERE txid = ?", [(txid,) for txid in released.dropped])
            self._look()
        going = self.txids if released.all_staged else self.txids & released.going
        if going:
            # what comes from memory joins it, so that all of a transaction is read in one order
            self._put(released.events)
            released.events = []
            going = self.txids if released.all_staged else self.txids & (released.going | {None})
            arrival = released.all_staged or None in self.txids
            yield from self._in_arrival(going) if arrival else self._in_source_order(going, released)
            self._look()

    def _in_source_order(self, going: set[str | None], released: Released) -> Iterator[list[tuple[str, Event]]]:
        ranked = [end.txid for end in released.ends if end.txid in going]
        chunk: list[tuple[str, Event]] = []
        for txid in (*ranked, *sorted(txid for txid in going.difference(ranked) if txid is not None)):
            for partition, offset, data in self.db.execute(_OF_TRANSACTION, (txid,)):
                # a key that changes is a delete and a create: they stay together
                if len(chunk) >= CHUNK and chunk[-1][1].op != "d":
                    yield chunk
                    chunk = []
                chunk.append((partition, _event(offset, data)))
        yield chunk
        self.db.executemany("DELETE FROM staged WHERE txid = ?", [(txid,) for txid in going])

    def _in_arrival(self, going: set[str | None]) -> Iterator[list[tuple[str, Event]]]:
        self.db.execute("DELETE FROM temp.going; DELETE FROM temp.blocked")
        self.db.executemany("INSERT INTO temp.going VALUES(?)", [(txid,) for txid in going if txid is not None])
        self.db.execute(
            "INSERT INTO temp.blocked SELECT partition, min(position) FROM staged"
            " WHERE txid IS NOT NULL AND txid NOT IN (SELECT txid FROM temp.going) GROUP BY partition"
        )
        last = -1
        while chunk := rows(self.db, _IN_ARRIVAL, (last, CHUNK)):
            last = chunk[-1][0]
            yield [(partition, _event(offset, data)) for _, partition, offset, data in chunk]
            self.db.executemany("DELETE FROM staged WHERE position = ?", [(line[0],) for line in chunk])

    def _look(self) -> None:
        self.txids = {txid for (txid,) in rows(self.db, "SELECT DISTINCT txid FROM staged")}


_OF_TRANSACTION: Final = "SELECT partition, offset, event FROM staged WHERE txid = ? ORDER BY number"
_IN_ARRIVAL: Final = (
    "SELECT s.position, s.partition, s.offset, s.event FROM staged s LEFT JOIN temp.blocked b USING(partition)"
    " WHERE s.position > ? AND (s.txid IN (SELECT txid FROM temp.going)"
    " OR s.txid IS NULL AND (b.position IS NULL OR s.position < b.position)) ORDER BY s.position LIMIT ?"
)


def _stored(known: Open) -> tuple[int, bool, int | None, str]:
    last, truncates = known.durable
    return known.applied, known.given_up, known.expected, json.dumps([last, sorted(truncates)])


def _line(name: str, event: Event) -> tuple[Any, ...]:
    order = event.transaction.total_order if event.transaction else 0
    data = _encode(
        (event.op, event.source, event.after, event.transaction, event.key, event.table, event.error, event.raw)
    )
    return name, event.offset, transaction_id(event), order, event.op, data


def _event(offset: int, data: bytes) -> Event:
    op, source, after, block, key, table, error, raw = _decode(data)
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
    )
