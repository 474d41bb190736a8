"""Erase: a row that its owner has deleted in the source is looked for everywhere, removed, and looked for again."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import apsw
from pydantic import BaseModel

from pipeline.authoring.projection import Projection
from pipeline.engine.assemble import document_id
from pipeline.engine.dirty import Reader
from pipeline.engine.layout import Layout, Occurrence
from pipeline.engine.marking import climb
from pipeline.engine.measures import group_id
from pipeline.engine.owners import Owners
from pipeline.engine.sql import connect, listed, quoted, rows, transaction, value
from pipeline.engine.staging import staged_key
from pipeline.errors import CdcError, MalformedEnvelope, OperationError
from pipeline.events.envelope import TableDecoder
from pipeline.operations.layouts import layout_of
from pipeline.operations.passing import Ends, passed
from pipeline.operations.refresh import refresh
from pipeline.operations.states import states
from pipeline.operations.status import mirror_file
from pipeline.ports import Sink
from pipeline.settings import Settings

Key = tuple[Any, ...]
BATCH: Final = 500
POLL: Final = 0.5


class Place(BaseModel):
    """One kind of place where the row is, or was: how often before, and how often after."""

    kind: Literal["row", "document", "dead letter", "staged event", "state snapshot", "topic"]
    where: str
    """A projection's build, a sink, or a topic."""
    before: int | None
    after: int | None = None
    """None: not looked at again, in a dry run or of a topic."""
    note: str = ""

    @property
    def gone(self) -> bool:
        return not self.after


class EraseReport(BaseModel):
    """Every place, and what became of it."""

    table: str
    key: list[Any]
    done: bool
    places: list[Place]

    @property
    def left(self) -> list[Place]:
        return [place for place in self.places if not place.gone]


async def erase(
    settings: Settings,
    builds: Sequence[Projection[Any]],
    table: str,
    key: Sequence[str],
    *,
    sinks: Callable[[Projection[Any]], Sequence[Sink]],
    connector: str,
    position: Callable[[], Awaitable[int]],
    ends: Ends,
    topics: Mapping[str, datetime | None],
    topic: str,
    patience: float,
    dry: bool,
    rereads: bool = True,
) -> EraseReport:
    """Remove a row that the source has no more from all these builds, through their running workers.

    `key`: its columns as texts. `topics`: those that have its old values, and when the last of them goes (None: never).
    `rereads`: the source can be asked for the row once more, so that a mirror that missed its delete is healed.
    Of several workers only one whose partitions' mirrors are all here can be erased from.
    Raises OperationError, before anything is changed, where a worker does not run or does not get there in time.
    """
    found = [await _look(settings, build, part, table, key, sinks) for build in builds for part in build.parts]
    if not dry:
        await _passed(settings, builds, connector, await position(), topic, ends, patience)
        for one in found:
            await asyncio.to_thread(one.remove, settings, patience if rereads else None)
        await _passed(settings, builds, connector, await position(), topic, ends, patience)
        for one in found:
            await one.look_again(sinks, patience)
    places = [place for one in found for place in one.places()]
    parts = [part for build in builds for part in build.parts]
    places += _others(settings, parts, table, key, dry)
    places += await asyncio.to_thread(_saved, settings, parts, dry)
    places += [Place(kind="topic", where=name, before=None, note=_kept(until)) for name, until in topics.items()]
    return EraseReport(table=table, key=list(key), done=not dry, places=places)


OTHER: Final = "of no build that runs: delete the file, or give it its projection"


def _kept(until: datetime | None) -> str:
    return "Kafka keeps it for ever: set retention.ms" if until is None else f"Kafka deletes it by {until:%F %T} UTC"


async def _passed(
    settings: Settings,
    builds: Sequence[Projection[Any]],
    connector: str,
    lsn: int,
    topic: str,
    ends: Ends,
    patience: float,
) -> None:
    """Until every build has written all that the source has said: its delete too."""
    said = await asyncio.gather(*(passed(settings, b, connector, lsn, topic, ends, patience) for b in builds))
    ill = next(((b, reason) for b, reason in zip(builds, said, strict=True) if reason), None)
    if ill is not None:
        raise OperationError(f"{ill[0].id} can't be erased from: {ill[1]}.")


def _others(settings: Settings, known: Sequence[str], table: str, key: Sequence[str], dry: bool) -> Iterator[Place]:
    """Mirrors of projections that are no more, or of older versions."""
    for path in sorted(mirror_file(settings, "x").parent.glob("*.db")):
        if path.stem in known:
            continue
        db = connect(str(path), readonly=True)
        try:
            columns = [
                name
                for name, pk in db.execute("SELECT name, pk FROM pragma_table_info(?) WHERE pk ORDER BY pk", (table,))
            ]
            if len(columns) == len(key):
                same = " AND ".join(f"CAST({quoted(name)} AS TEXT) = ?" for name in columns)
                n = int(value(db, f"SELECT count(*) FROM {quoted(table)} WHERE {same}", tuple(key)) or 0)
                if n:
                    yield Place(kind="row", where=str(path), before=n, after=None if dry else n, note=OTHER)
        finally:
            db.close()


def _saved(settings: Settings, builds: Sequence[str], dry: bool) -> list[Place]:
    """State snapshots have what their mirrors had: one is taken now, and all before it go."""
    places: list[Place] = []
    if (known := states(settings)) is None:
        return places
    for build in known.builds():
        before = {state.name for state in known.of(build)}
        if build in builds and before:
            if not dry:
                known.take(build)
                known.prune(build, 1)
            after = None if dry else sum(state.name in before for state in known.of(build))
            places.append(Place(kind="state snapshot", where=build, before=len(before), after=after))
        elif before and not mirror_file(settings, build).exists():
            note = f"has no mirror here: may have it; cdc state drop {build}"
            places.append(Place(kind="state snapshot", where=build, before=None, note=note))
    return places


# ---- one build ----------------------------------------------------------------------------------------------


class _Found:
    """What one build, or a partition of it, has of the row: in its mirror, and the documents that show it."""

    def __init__(self, settings: Settings, build: Projection[Any], part: str, table: str, key: Sequence[str]) -> None:
        self.build, self.part, self.layout = build, part, layout_of(settings, build)
        self.path, self.table = mirror_file(settings, part), self.layout.tables[table]
        self.key: Key = tuple(
            int(part) if self.table.columns[name] == "int" else part
            for name, part in zip(self.table.key, key, strict=True)
        )
        self.quarantined = self.unfolded = 0
        self.before = self.mirror()
        self.after: dict[str, int] | None = None
        self.documents: list[Key] = self._documents()
        self.sinks: dict[str, tuple[int, int | None, str]] = {}

    # ---- looking ----------------------------------------------------------------------------------------------

    def mirror(self) -> dict[str, int]:
        """Rows, dead letters and staged events with this key."""
        if not self.path.exists():
            return {"row": 0, "dead letter": 0, "staged event": 0}
        db = connect(str(self.path), readonly=True)
        try:
            same = " AND ".join(f"{quoted(name)} = ?" for name in self.table.key)
            row = int(value(db, f"SELECT count(*) FROM {quoted(self.table.name)} WHERE {same}", self.key) or 0)
            self.quarantined = int(value(db, "SELECT count(*) FROM quarantine") or 0)
            if self.layout.aggregate is not None:
                self.unfolded = int(value(db, "SELECT count(*) FROM touched") or 0)
            staged = sum(staged_key(data, self.table) == self.key for (data,) in db.execute("SELECT event FROM staged"))
            return {"row": row, "dead letter": len(self._letters(db)), "staged event": staged}
        finally:
            db.close()

    def _letters(self, db: apsw.Connection) -> list[int]:
        read = TableDecoder(self.table.name, self.table.number, self.table.wires, self.table.key).read_key
        found = []
        for n, topic, data in rows(db, "SELECT id, topic, key FROM dead_letters"):
            if topic.endswith("." + self.table.name):
                try:
                    if read(data) == self.key:
                        found.append(n)
                except MalformedEnvelope:
                    continue
        return found

    def _documents(self) -> list[Key]:
        """The keys (a group's, of an aggregate) of the documents that show the row, as the mirror has it now."""
        if not self.path.exists():
            return []
        db = connect(str(self.path), readonly=True)
        try:
            roots: dict[Key, None] = {self.key: None} if self.table.name == self.layout.root.name else {}
            for occurrence in self.table.occurrences:
                roots.update(dict.fromkeys(rows(db, _shown_by(self.layout, occurrence), self.key)))
            if self.layout.aggregate is None:
                owners, number = Owners(self.layout, self.build.workers), self.build.parts.index(self.part)
                return [root for root in roots if owners.of_key(root) == number]
            same = " AND ".join(f"{k} = ?" for k in self.layout.root_key)
            groups = (rows(db, f"SELECT g FROM contributions WHERE {same}", root) for root in roots)
            return list(dict.fromkeys(g for found in groups for g in found))
        finally:
            db.close()

    def id(self, key: Key) -> str:
        return document_id(key) if self.layout.aggregate is None else group_id(key[0])

    async def look_in(self, sink: Sink) -> None:
        """How many of the documents the sink has."""
        n = 0
        for start in range(0, len(self.documents), BATCH):
            n += len(await sink.read([self.id(key) for key in self.documents[start : start + BATCH]]))
        self.sinks[sink.name] = n, None, ""

    # ---- removing ---------------------------------------------------------------------------------------------

    def remove(self, settings: Settings, patience: float | None) -> None:
        """By the worker, from the mirror and the documents; what no worker touches, here."""
        if patience is not None:
            refresh(settings, self.build, {self.table.name: [self.key]}, part=self.part, patience=patience)
        db = connect(str(self.path))
        try:
            with transaction(db):
                db.executemany("DELETE FROM dead_letters WHERE id = ?", [(n,) for n in self._letters(db)])
                if self.table.kept:
                    self._forget(db)
        finally:
            db.close()

    def _forget(self, db: apsw.Connection) -> None:
        """An event that outlives its row: only here is it told to go, and its group is folded without it."""
        same, keys = " AND ".join(f"{quoted(name)} = ?" for name in self.table.key), ", ".join(self.layout.root_key)
        db.execute(f"DELETE FROM {quoted(self.table.name)} WHERE {same}", self.key)
        seq = "(SELECT value FROM meta WHERE name = 'seq')"
        marks = ", ".join("?" * len(self.key))
        db.execute(
            f"INSERT OR REPLACE INTO touched({keys}, seq, since, low) VALUES({marks}, {seq}, {seq}, 0)", self.key
        )

    # ---- looking again ----------------------------------------------------------------------------------------

    async def look_again(self, sinks: Callable[[Projection[Any]], Sequence[Sink]], patience: float) -> None:
        """The mirror has no such row, and each document is what the mirror makes of the others."""
        until = time.monotonic() + patience
        while True:
            self.after = await asyncio.to_thread(self.mirror)
            for sink in sinks(self.build):
                try:
                    wrong = await self._wrong(sink)
                    note = f"not as the mirror has it: {', '.join(wrong[:3])}" if wrong else ""
                    self.sinks[sink.name] = self.sinks[sink.name][0], len(wrong), note
                finally:
                    await sink.close()
            left = [*self.after.values(), *(n for _, n, _ in self.sinks.values())]
            if not any(left) or time.monotonic() > until:
                return
            await asyncio.sleep(POLL)

    async def _wrong(self, sink: Sink) -> list[str]:
        """Documents in the sink that are not those which the mirror, without the row, gives."""
        if self.unfolded:  # both the mirror and the sink still have the groups as they were
            return [self.id(key) for key in self.documents]
        wrong: list[str] = []
        reader = Reader(str(self.path), self.layout)
        try:
            for start in range(0, len(self.documents), BATCH):
                batch = self.documents[start : start + BATCH]
                stored = await sink.read([self.id(key) for key in batch])
                for key in batch:
                    there = stored.get(self.id(key))
                    if there is not None and not _same(reader, key, there.document):
                        wrong.append(self.id(key))
        finally:
            reader.close()
        return wrong

    def places(self) -> list[Place]:
        after: dict[str, int | None] = {**(self.after or dict.fromkeys(self.before))}
        kinds: tuple[Literal["row", "dead letter", "staged event"], ...] = ("row", "dead letter", "staged event")
        own = [
            Place(kind=kind, where=self.part, before=self.before[kind], after=after[kind])
            for kind in kinds
            if kind == "row" or self.before[kind] or after[kind]
        ]
        if self.quarantined:
            note = f"{self.quarantined} documents keep an older state, which may show it: cdc quarantine list"
            own.append(Place(kind="document", where=f"{self.part}: quarantine", before=None, note=note))
        return own + [
            Place(kind="document", where=f"{self.part} in {name}", before=n, after=left, note=note)
            for name, (n, left, note) in self.sinks.items()
        ]


def _same(reader: Reader, key: Key, stored: Mapping[str, Any]) -> bool:
    try:
        text = reader.documents([key])[key]
    except Exception:  # the author's code: the document is in quarantine, and the sink has its last state
        return False
    return text is not None and json.loads(text) == dict(stored)


def _shown_by(layout: Layout, occurrence: Occurrence) -> str:
    """SQL that finds the root keys of the documents which show a row, given its key, at this place."""
    key = layout.tables[occurrence.table].key
    joins, root = climb(occurrence.steps, "c")
    same = " AND ".join(f"c.{quoted(name)} = ?" for name in key)
    return (
        f"SELECT DISTINCT {listed(layout.root.key, root + '.')} FROM {quoted(occurrence.table)} c{joins} WHERE {same}"
    )


async def _look(
    settings: Settings,
    build: Projection[Any],
    part: str,
    table: str,
    key: Sequence[str],
    sinks: Callable[[Projection[Any]], Sequence[Sink]],
) -> _Found:
    found = await asyncio.to_thread(_Found, settings, build, part, table, key)
    for sink in sinks(build):
        try:
            await found.look_in(sink)
        except CdcError as error:
            raise OperationError(f"{build.id} can't be looked through: {error}") from None
        finally:
            await sink.close()
    return found
