"""Verify: every document against what the source says, at a known position, on a path that the engine has no part in."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import apsw

from pipeline.engine.sql import connect, rows, transaction, value
from pipeline.errors import OperationError
from pipeline.operations.expected import (
    Unbuildable,
    differences,
    digest,
    document_id,
    key_of,
)
from pipeline.operations.verified import Difference, Share, SinkVerified
from pipeline.operations.wait import Position, places, wait
from pipeline.ports import Sink

Key = tuple[str, ...]
Progress = Callable[[str, int, int], None]
"""Told of each step: what is done now, how many are, and of how many (0: not known)."""

BATCH: Final = 1000
ROUNDS: Final = 60
"""How often a document that goes on changing is compared again before it is called undecided."""
FIELDS: Final = 20
"""Differing fields shown of one document."""


class Snapshot(Protocol):
    """One state of the source; used by one thread at a time."""

    @property
    def position(self) -> Position:
        """The place in the source's log before which everything is seen, and nothing after."""
        ...

    def keys(self, batch: int) -> Iterator[list[tuple[Key, list[Any]]]]:
        """All root keys: as text, and as events have them."""
        ...

    def documents(self, keys: Sequence[Key]) -> list[tuple[Key, list[Any], dict[str, Any]]]:
        """Key, key as in events, and the rows of the document; keys that are not there are left out."""
        ...


class Expected(Protocol):
    """What documents must be."""

    @property
    def width(self) -> int:
        """How many columns a key has."""
        ...

    def document(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """The document in canonical values, None where there is to be none; raises Unbuildable."""
        ...

    def stored(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A sink's document in canonical values, with what it has too many."""
        ...


class Source(Protocol):
    """The database, asked for whole documents."""

    def snapshot(self) -> AbstractContextManager[Snapshot]: ...


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify. `rate`: documents a second read from the source, 0 for as fast as it gives them.

    `connector`: that of the documents' own table.
    """

    connector: str
    share: Share = field(default_factory=Share)
    rate: float = 0.0
    patience: float = 60.0
    """Seconds until a watermark that does not pass the source's position is an error."""
    show: int = 20
    """Differences shown."""
    logs: Mapping[str, str | None] = field(default_factory=dict)
    """The label of the log that each connector reads; None where that is not known."""


Repair = Callable[[Sink, Sequence[tuple[str, Key | None]]], Awaitable[None]]
"""Heals the mirror where it can, and marks these documents (id, and key where known) to be written again."""


async def verify(
    source: Source,
    expectation: Expected,
    sink: Sink,
    options: Options,
    *,
    repairs: Sequence[Repair] = (),
    progress: Progress = lambda step, done, total: None,
) -> SinkVerified:
    """Compare one sink with the source, and try each repair on what the ones before it left wrong.

    Raises OperationError where the watermark stands still, SourceError, SinkError.
    """
    with tempfile.TemporaryDirectory(prefix="cdc-verify-") as folder:
        run = _Run(source, expectation, sink, options, progress, connect(str(Path(folder) / "verify.db")))
        try:
            return await run.run(repairs)
        finally:
            run.db.close()


@dataclass(slots=True)
class _Run:
    """One comparison. Ids, keys and hashes are in a file, so that memory does not grow with the documents."""

    source: Source
    expectation: Expected
    sink: Sink
    options: Options
    progress: Progress
    db: apsw.Connection
    position: Position = 0
    total: int = 0
    checked: int = 0
    again: int = 0
    ended: int = 0
    began: float = field(default_factory=time.monotonic)

    async def run(self, repairs: Sequence[Repair]) -> SinkVerified:
        self.db.execute(
            "CREATE TABLE expected(id TEXT PRIMARY KEY, key TEXT NOT NULL, hash BLOB, seen INTEGER NOT NULL) WITHOUT ROWID;"
            "CREATE TABLE suspect(id TEXT PRIMARY KEY, key TEXT, revision INTEGER, kind TEXT) WITHOUT ROWID"
        )
        self.total = await self.sink.count() // self.options.share.of
        with await asyncio.to_thread(_entered, self.source.snapshot()) as held:
            self.position = held.snapshot.position
            await self._expect(held.snapshot)
        await self._wait(self.position)
        await self._scan()
        await self._settle()
        before = self._count("kind IS NOT NULL")
        for repair in repairs:
            if self._count("kind IS NOT NULL"):
                await self._repair(repair)
        return await self._report(before - self._count("kind IS NOT NULL"))

    # ---- what should be there -----------------------------------------------------------------------------

    async def _expect(self, snapshot: Snapshot) -> None:
        batches, done, began = snapshot.keys(BATCH), 0, time.monotonic()
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            done += await asyncio.to_thread(self._store, snapshot, batch)
            self.progress("reading the source", done, self.total)
            if self.options.rate:
                await asyncio.sleep(max(0.0, began + done / self.options.rate - time.monotonic()))

    def _store(self, snapshot: Snapshot, batch: list[tuple[Key, list[Any]]]) -> int:
        chosen = [key for key, wire in batch if self.options.share.has(document_id(wire))]
        found: list[tuple[str, str, bytes | None]] = []
        for key, wire, raw in snapshot.documents(chosen):
            try:
                document = self.expectation.document(raw)
                if document is not None:
                    found.append((document_id(wire), json.dumps(key), digest(document)))
            except Unbuildable:
                found.append((document_id(wire), json.dumps(key), None))
        with transaction(self.db):
            self.db.executemany("INSERT INTO expected VALUES(?, ?, ?, 0)", found)
        return len(chosen)

    async def _wait(self, position: Position) -> None:
        self.progress("waiting for the watermark", 0, 0)
        wanted = places(self.options.connector, position)
        for connector, place in wanted.items():
            log = self.options.logs.get(connector)
            waited = await wait(self.sink, connector, place, patience=self.options.patience, log=log)
            if not waited.reached:
                at = "nowhere yet" if waited.watermark is None else f"at {waited.watermark}"
                of = f" of {connector}" if len(wanted) > 1 else ""
                raise OperationError(
                    f"{self.sink.name}: the watermark{of} stands {at}, and the source was read at {place}; it did not pass"
                    f" that in {self.options.patience:.0f} s: see `cdc status`, and give more time with --timeout."
                )

    # ---- what is there ------------------------------------------------------------------------------------

    async def _scan(self) -> None:
        """One pass over the sink: what is not as expected becomes a suspect, and so does what was not seen."""
        await self.sink.refresh()
        share = self.options.share
        done = 0
        async for page in self.sink.scan(documents=share.of == 1):
            chosen = {id: stored for id, stored in page.items() if share.has(id)}
            if share.of > 1:
                chosen = dict(await self.sink.read(list(chosen)))
            await asyncio.to_thread(self._compare, chosen)
            done += len(chosen)
            self.progress("comparing", done, self.total)
        self.db.execute(
            "INSERT INTO suspect SELECT id, key, NULL, NULL FROM expected WHERE NOT seen AND hash IS NOT NULL"
        )
        self.checked = int(value(self.db, "SELECT count(*) FROM expected") or 0)

    def _compare(self, page: Mapping[str, Any]) -> None:
        width, hashes = self._width(), self._hashes(list(page))
        suspects: list[tuple[str, str | None, int]] = []
        for id, stored in page.items():
            known = hashes.get(id)
            if known is None:
                key = key_of(id, width)
                suspects.append((id, json.dumps(key) if key is not None else None, stored.revision))
            elif known[1] is not None and known[1] != digest(self.expectation.stored(stored.document)):
                suspects.append((id, known[0], stored.revision))
        with transaction(self.db):
            self.db.executemany("UPDATE expected SET seen = 1 WHERE id = ?", [(id,) for id in hashes])
            self.db.executemany("INSERT OR REPLACE INTO suspect VALUES(?, ?, ?, NULL)", suspects)

    def _hashes(self, ids: Sequence[str]) -> dict[str, tuple[str, bytes | None]]:
        found = rows(
            self.db,
            "SELECT id, key, hash FROM expected WHERE id IN (SELECT value FROM json_each(?))",
            (json.dumps(ids),),
        )
        return {id: (key, hash) for id, key, hash in found}

    def _width(self) -> int:
        key = value(self.db, "SELECT key FROM expected LIMIT 1")
        return len(json.loads(key)) if key is not None else self.expectation.width

    # ---- is it really wrong? ------------------------------------------------------------------------------

    async def _settle(self) -> None:
        """Compare suspects again at later positions, until each is equal, or differs with an unchanged revision."""
        for _ in range(ROUNDS):
            left = self._count("kind IS NULL")
            if not left:
                return
            self.again += left
            with await asyncio.to_thread(_entered, self.source.snapshot()) as held:
                await asyncio.to_thread(self._resolve, held.snapshot)
                await self._wait(held.snapshot.position)
                await self._round(held.snapshot)
                self.position = held.snapshot.position

    def _resolve(self, snapshot: Snapshot) -> None:
        """The keys of documents whose id does not tell it: it is too long, so that it was hashed."""
        hashed = "SELECT id FROM suspect WHERE key IS NULL AND kind IS NULL AND id GLOB 'sha256:*'"
        unknown = {id for (id,) in self.db.execute(hashed)}
        if not unknown:
            return
        for batch in snapshot.keys(BATCH):
            found = [(json.dumps(key), id) for key, wire in batch if (id := document_id(wire)) in unknown]
            self.db.executemany("UPDATE suspect SET key = ? WHERE id = ?", found)

    async def _round(self, snapshot: Snapshot) -> None:
        after, done, left = "", 0, self._count("kind IS NULL")
        while batch := rows(
            self.db,
            "SELECT id, key, revision FROM suspect WHERE kind IS NULL AND id > ? ORDER BY id LIMIT ?",
            (after, BATCH),
        ):
            after = batch[-1][0]
            ended = await self.sink.ended([id for id, _, _ in batch])
            self.ended += len(ended)
            self.db.executemany("DELETE FROM suspect WHERE id = ?", [(id,) for id in ended])
            batch = [suspect for suspect in batch if suspect[0] not in ended]
            found = await asyncio.to_thread(self._documents, snapshot, [key for _, key, _ in batch if key is not None])
            stored = await self.sink.read([id for id, _, _ in batch])
            for id, _, revision in batch:
                self._judge(id, revision, found.get(id), stored.get(id))
            done += len(batch)
            self.progress("comparing again", done, left)

    def _documents(self, snapshot: Snapshot, keys: Sequence[str]) -> dict[str, dict[str, Any] | Unbuildable | None]:
        found: dict[str, dict[str, Any] | Unbuildable | None] = {}
        for _, wire, raw in snapshot.documents([tuple(json.loads(key)) for key in keys]):
            try:
                found[document_id(wire)] = self.expectation.document(raw)
            except Unbuildable as error:
                found[document_id(wire)] = error
        return found

    def _judge(self, id: str, seen: int | None, wanted: Any, stored: Any) -> None:
        there = None if stored is None else self.expectation.stored(stored.document)
        revision = 0 if stored is None else stored.revision
        if isinstance(wanted, Unbuildable) or digest(wanted) == digest(there):
            self.db.execute("DELETE FROM suspect WHERE id = ?", (id,))
        elif seen == revision:
            kind = "missing" if there is None else "extra" if wanted is None else "different"
            self.db.execute("UPDATE suspect SET kind = ? WHERE id = ?", (kind, id))
            self._keep(id, kind, wanted, there)
        else:
            self.db.execute("UPDATE suspect SET revision = ? WHERE id = ?", (revision, id))

    _shown: dict[str, Difference] = field(default_factory=dict)

    def _keep(self, id: str, kind: Any, wanted: Any, there: Any) -> None:
        if id in self._shown or len(self._shown) < self.options.show:
            fields = list(differences(wanted, there))[:FIELDS] if kind == "different" else []
            self._shown[id] = Difference(id=id, kind=kind, fields=tuple(fields))

    # ---- the end ------------------------------------------------------------------------------------------

    async def _repair(self, repair: Repair) -> None:
        after = ""
        while batch := rows(
            self.db, "SELECT id, key FROM suspect WHERE kind IS NOT NULL AND id > ? ORDER BY id LIMIT ?", (after, BATCH)
        ):
            after = batch[-1][0]
            await repair(self.sink, [(id, tuple(json.loads(key)) if key else None) for id, key in batch])
        self.db.execute("UPDATE suspect SET kind = NULL, revision = NULL WHERE kind IS NOT NULL")
        await self._settle()

    async def _report(self, repaired: int) -> SinkVerified:
        count = {kind: self._count(f"kind = '{kind}'") for kind in ("missing", "extra", "different")}
        still = "SELECT 1 FROM suspect WHERE id = ? AND kind IS NOT NULL"
        return SinkVerified(
            sink=self.sink.name, position=self.position, checked=self.checked, **count,
            undecided=self._count("kind IS NULL"), repaired=repaired, compared_again=self.again, ended=self.ended,
            unbuildable=int(value(self.db, "SELECT count(*) FROM expected WHERE hash IS NULL") or 0),
            differences=tuple(d for id, d in sorted(self._shown.items()) if value(self.db, still, (id,))),
            seconds=round(time.monotonic() - self.began, 3),
        )  # fmt: skip

    def _count(self, where: str) -> int:
        return int(value(self.db, f"SELECT count(*) FROM suspect WHERE {where}") or 0)


@dataclass(slots=True)
class _Held:
    """A snapshot that another thread opened; closed at the end of the `with`."""

    context: AbstractContextManager[Snapshot]
    snapshot: Snapshot

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *error: Any) -> None:
        self.context.__exit__(*error)


def _entered(context: AbstractContextManager[Snapshot]) -> _Held:
    return _Held(context, context.__enter__())
