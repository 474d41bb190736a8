"""A model of a source database and its Debezium connector: row changes in, the messages of its topics out."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from random import Random
from typing import Any, Final

from pipeline.events.envelope import UNCHANGED
from pipeline.testing.wire import placeholder

Key = tuple[Any, ...]
Row = dict[str, Any]
Rows = dict[str, dict[Key, Row]]
Record = tuple[int, bytes | None, bytes | None]

LATER: Final = 16
"""How far apart the log positions of two changes are."""


@dataclass(slots=True)
class Message:
    """One message that Debezium sends; `again` says that a restarted connector sends it again."""

    topic: str
    key: bytes | None
    value: bytes | None
    again: bool = True
    label: str = ""


@dataclass(slots=True)
class Change:
    """One row change inside a transaction, its values as Debezium writes them."""

    table: str
    op: str
    key: Key | None
    after: Row | None
    lsn: int
    whole: Row | None = None
    """The row after it, with what the event leaves out."""
    before: Row | None = None


@dataclass(slots=True)
class Transaction:
    """A transaction of the source: what it changes, and the state it leaves."""

    txid: int
    changes: list[Change] = field(default_factory=list)
    lsn: int = 0
    label: str = ""


class SourceModel:
    """Tables, transactions and a connector. `states[n]` is what the tables held after n transactions.

    `keys` has the primary key of each table. Nothing reaches a topic before `produce`.
    """

    def __init__(
        self,
        keys: Mapping[str, Sequence[str]],
        *,
        name: str = "shop",
        partitions: int = 1,
        seed: int = 0,
        label: str = "",
    ) -> None:
        self.keys = {table: tuple(key) for table, key in keys.items()}
        self.name, self.partition_count, self.random = name, partitions, Random(seed)  # noqa: S311 - a reproducible model
        self.rows: Rows = {table: {} for table in keys}
        self.states: list[Rows] = [self._copy()]
        self.transactions: list[Transaction] = []
        self.messages: list[Message] = []
        self.sent = 0
        """How many of `messages` the connector has sent; a restart goes back."""
        self.resumable = 0
        """The first message after the snapshot: a restart does not go back beyond it."""
        self.labels: dict[str, list[str]] = {}
        """The label of each record: which source log it comes from."""
        self.label = label
        self.full: frozenset[str] = frozenset()
        """Tables with REPLICA IDENTITY FULL: updates and deletes say what the row was."""
        self.unchanged: Callable[[str, str, Any], Any] = lambda table, column, value: placeholder(value)
        """How Debezium says that this column's long value was left alone."""
        self.log: dict[str, list[Record]] = {}
        self._known: set[int] = set()
        self._lsn, self._txid, self._last_end, self._clock = 1_000, 700, 0, 1_000
        self._open: Transaction | None = None
        self._create_topics()

    def _create_topics(self) -> None:
        self.log, self.labels = {self.boundaries + "/0": []}, {self.boundaries + "/0": []}
        for table in self.keys:
            for number in range(self.partition_count):
                self.log[f"{self.topic(table)}/{number}"] = []
                self.labels[f"{self.topic(table)}/{number}"] = []

    def replayed(self, *, partitions: int, seed: int) -> SourceModel:
        """The same history before another connector, which has sent nothing of it yet."""
        other = SourceModel(self.keys, name=self.name, partitions=partitions, seed=seed)
        other.rows, other.states, other.transactions = self._copy(), self.states, self.transactions
        other.messages, other.resumable = self.messages, self.resumable
        return other

    def continue_after(self, positions: tuple[int, int, int, int]) -> None:
        """The rows and messages there are were not told: the next transaction comes after these positions.

        The newest position in the log, transaction, END, and source time in ms.
        """
        lsn, txid, end, clock = positions
        self._lsn, self._txid, self._clock = max(self._lsn, lsn), max(self._txid, txid), max(self._clock, clock)
        self._last_end = end
        self.states = [self._copy()]

    # ---- names --------------------------------------------------------------------------------------------

    def topic(self, table: str) -> str:
        return f"{self.name}.{table}"

    @property
    def boundaries(self) -> str:
        return f"{self.name}.transaction"

    @property
    def topics(self) -> dict[str, str]:
        """Each data topic's table."""
        return {self.topic(table): table for table in self.keys}

    def key_of(self, table: str, row: Mapping[str, Any]) -> Key:
        return tuple(row[name] for name in self.keys[table])

    def ever(self, table: str, transactions: int | None = None) -> dict[Key, Row]:
        """All rows that the table has had since its snapshot (after so many transactions), deleted ones as they last were."""
        found = dict(self.states[0][table])
        for transaction, state in zip(self.transactions[:transactions], self.states[1:], strict=False):
            changes = [c for c in transaction.changes if c.table == table and c.whole is not None]
            found |= {self.key_of(table, c.whole): c.whole for c in changes if c.whole is not None}
            found |= state[table]
        return found

    def _copy(self, rows: Rows | None = None) -> Rows:
        of_all = self.rows if rows is None else rows
        return {table: {key: dict(row) for key, row in of.items()} for table, of in of_all.items()}

    # ---- changes ------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, began: int | None = None) -> Iterator[Transaction]:
        """One transaction; committed at the end. `began` is a log position before others' that it was written at."""
        if self._open is not None:
            yield self._open
            return
        self._txid += 1
        transaction = self._open = Transaction(self._txid)
        now = self._lsn
        if began is not None:
            self._lsn = began
        try:
            yield transaction
        except BaseException:  # rolled back: nothing of it is ever sent
            self.rows, self._lsn = self._copy(self.states[-1]), max(self._lsn, now)
            raise
        finally:
            self._open = None
        self._lsn = max(self._lsn, now) + LATER
        transaction.lsn, transaction.label = self._lsn, self.label
        self._commit(transaction)

    def here(self) -> int:
        """The log's position now."""
        self._lsn += 1000
        return self._lsn - 900

    def _change(
        self, table: str, op: str, key: Key | None, after: Row | None, before: Row | None = None, *, same: bool = False
    ) -> None:
        with self.transaction() as transaction:
            self._lsn += 0 if same else LATER
            whole = None if after is None else dict(self.rows[table][self.key_of(table, after)])
            transaction.changes.append(Change(table, op, key, after, self._lsn, whole, before))

    def insert(self, table: str, row: Row) -> None:
        """Insert a row, its values as Debezium writes them."""
        key = self.key_of(table, row)
        assert key not in self.rows[table], f"{table} already has the key {key}"
        self.rows[table][key] = dict(row)
        self._change(table, "c", key, dict(row))

    def update(self, table: str, key: Key, **changes: Any) -> None:
        """Update a row; UNCHANGED leaves a column out of the event. A new key is a delete and a create."""
        sent = {**self.rows[table][key], **{n: v for n, v in changes.items() if v is not UNCHANGED}}
        row, before = dict(sent), self.rows[table][key]
        sent.update({n: self.unchanged(table, n, row[n]) for n, v in changes.items() if v is UNCHANGED})
        fresh = self.key_of(table, row)
        if fresh == key:
            self.rows[table][key] = row
            self._change(table, "u", key, sent, before)
            return
        assert fresh not in self.rows[table], f"{table} already has the key {fresh}"
        with self.transaction():
            del self.rows[table][key]
            self.rows[table][fresh] = row
            self._change(table, "d", key, None, before)
            self._change(table, "c", fresh, sent, same=True)

    def delete(self, table: str, key: Key) -> None:
        self._change(table, "d", key, None, self.rows[table].pop(key))

    def truncate(self, table: str) -> None:
        self.rows[table].clear()
        self._change(table, "t", None, None)

    # ---- what the connector sends -------------------------------------------------------------------------

    def snapshot(self) -> None:
        """The connector's first snapshot: every row there is, before anything is streamed."""
        assert not self.sent, "the connector streams already"
        self.messages.clear()
        self._read_all()
        self.states, self.transactions = [self._copy()], []

    def anew(self, label: str, *, back: int = 0) -> None:
        """The connector and its slot are gone, with what was not sent; a new one of that name begins with a snapshot.

        `back`: the database was restored first, to what it was so many transactions ago; positions and ids go back.
        """
        if back:
            at = max(0, len(self.transactions) - back)
            self.rows = {table: {key: dict(row) for key, row in of.items()} for table, of in self.states[at].items()}
            past = self.transactions[at - 1] if at else Transaction(700, lsn=1_000)
            self._lsn, self._txid = past.lsn, past.txid
            self.transactions.append(Transaction(self._txid, lsn=self._lsn, label="restored"))
            self.states.append(self._copy())
        del self.messages[self.sent :]
        self._known = {i for i in self._known if i < self.sent}
        self.label = label
        self._read_all()

    def _read_all(self) -> None:
        rows = [(table, key, row) for table, of in self.rows.items() for key, row in of.items()]
        self._lsn += LATER
        self._clock += 1
        for i, (table, key, row) in enumerate(rows):
            flag = "last" if i == len(rows) - 1 else "first" if i == 0 else "true"
            self._read(table, key, row, flag)
        self.resumable, self._last_end = len(self.messages), 0

    def incremental(self, table: str, key: Key) -> None:
        """A row of an incremental snapshot, as it is now; a restarted connector reads it anew."""
        self._lsn += LATER
        self._clock += 1
        self._read(table, key, self.rows[table][key], "incremental")

    def _read(self, table: str, key: Key, row: Row, flag: str) -> None:
        source = self._source(self._lsn, flag, None, 0)
        value = {"before": None, "after": row, "source": source, "transaction": None, "op": "r"}
        self._send(self.topic(table), self._key(table, key), _json(value), again=False)

    def _send(self, topic: str, key: bytes | None, value: bytes | None, *, again: bool = True) -> None:
        self.messages.append(Message(topic, key, value, again, self.label))

    def elsewhere(self) -> None:
        """A transaction that touched none of our tables: all we see of it is its END."""
        with self.transaction():
            pass

    def _commit(self, transaction: Transaction) -> None:
        self.transactions.append(transaction)
        self.states.append(self._copy())
        txid, counts = transaction.txid, dict[str, int]()
        self._clock += 1
        self._boundary({"status": "BEGIN", "id": f"{txid}:{transaction.lsn - 1}", "ts_ms": self._clock})
        for order, change in enumerate(transaction.changes, 1):
            counts[change.table] = counts.get(change.table, 0) + 1
            block = {"id": f"{txid}:{change.lsn}", "total_order": order, "data_collection_order": counts[change.table]}
            value = {
                "before": change.before if change.table in self.full else None,
                "after": change.after,
                "source": self._source(change.lsn, "false", txid, self._last_end),
                "transaction": block,
                "op": change.op,
            }
            key = None if change.key is None else self._key(change.table, change.key)
            self._send(self.topic(change.table), key, _json(value))
            if change.op == "d":
                self._send(self.topic(change.table), key, None)
        collections = [{"data_collection": table, "event_count": n} for table, n in counts.items()]
        collections = collections or [{"data_collection": "other.table", "event_count": 1}]
        self._boundary(
            {
                "status": "END",
                "id": f"{txid}:{transaction.lsn}",
                "event_count": max(1, len(transaction.changes)),
                "data_collections": collections,
                "ts_ms": self._clock,
            }
        )
        self._last_end = transaction.lsn

    def _source(self, lsn: int, snapshot: str, txid: int | None, last: int) -> dict[str, Any]:
        before = f'"{last}"' if last else "null"
        return {
            "snapshot": snapshot,
            "sequence": f'[{before},"{lsn}"]',
            "txId": txid,
            "lsn": lsn,
            "ts_ms": self._clock,
        }

    def _key(self, table: str, key: Key) -> bytes:
        return _json(dict(zip(self.keys[table], key, strict=True)))

    def _boundary(self, message: dict[str, Any]) -> None:
        key = _json({"id": message["id"]})
        self._send(self.boundaries, key, _json(message))

    # ---- the topics ---------------------------------------------------------------------------------------

    def produce(self, n: int | None = None) -> int:
        """Send the next n messages (all); how many were sent."""
        end = len(self.messages) if n is None else min(len(self.messages), self.sent + n)
        for i in range(self.sent, end):
            message = self.messages[i]
            if message.again or i not in self._known:
                self._known.add(i)
                partition = f"{message.topic}/{self._partition(message)}"
                self.log[partition].append((len(self.log[partition]), message.key, message.value))
                self.labels[partition].append(message.label)
        sent, self.sent = end - self.sent, end
        return sent

    def runs(self, partition: str, start: int, end: int) -> Iterator[tuple[str, list[Record]]]:
        """A partition's records between two offsets, those with one label together."""
        chosen = zip(self.labels[partition][start:end], self.log[partition][start:end], strict=True)
        for label, run in groupby(chosen, itemgetter(0)):
            yield label, [record for _, record in run]

    def restart(self, back: int) -> None:
        """The connector restarts and sends its last `back` messages again; never its snapshot."""
        self.sent = min(self.sent, max(self.resumable, self.sent - back))

    def _partition(self, message: Message) -> int:
        if message.topic == self.boundaries:
            return 0
        if message.key is None:
            return self.random.randrange(self.partition_count)
        return zlib.crc32(message.key) % self.partition_count


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
