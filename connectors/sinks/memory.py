"""The memory sink: what the other sinks promise, in dictionaries, for tests and scenarios."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from connectors.sinks.documents import ID_BYTES, parsed
from pipeline.authoring.shape import Shape
from pipeline.errors import NotAllowed, SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, SinkRecord, Stored, Throttled, Write, always

PAGE = 500


@dataclass(slots=True)
class Entry:
    """The newest write of one id; a deleted one keeps its revision."""

    revision: int
    document: dict[str, Any] | None
    epoch: int


@dataclass(slots=True)
class MemoryStore:
    """The server: several sinks over one store are several workers on one database."""

    versions: dict[str, dict[str, Entry]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    records: dict[str, SinkRecord] = field(default_factory=dict)
    loading: set[str] = field(default_factory=set)

    def visible(self, alias: str) -> dict[str, dict[str, Any]]:
        """The documents that readers of the alias see."""
        entries = self.versions.get(self.aliases.get(alias, ""), {})
        return {id: entry.document for id, entry in entries.items() if entry.document is not None}


class MemorySink:
    """Writes the documents of one projection version to a store.

    To make it fail set `away` (a reason), `throttle` or `refuse` (asked for each write; a reason, or None). `log` has
    every write that came and its outcome.
    """

    atomic = False

    def __init__(self, *, store: MemoryStore, alias: str, projection: str, shape: Shape | None = None) -> None:
        self._store, self._alias, self._version, self._shape = store, alias, projection, shape
        self.away: str | None = None
        self.throttle: Callable[[Write], str | None] = lambda write: None
        self.refuse: Callable[[Write], str | None] = lambda write: None
        self.log: list[tuple[Write, Outcome]] = []

    @property
    def name(self) -> str:
        return f"memory:{self._version}"

    async def prepare(self) -> None:
        self._reach()
        self._store.versions.setdefault(self._version, {})

    async def claim(self, owner: str, at_least: int) -> SinkRecord:
        self._entries()
        record = self._store.records.setdefault(self._version, SinkRecord())
        record.epoch, record.owner = max(record.epoch, at_least) + 1, owner
        return deepcopy(record)

    async def record(self) -> SinkRecord | None:
        self._reach()
        return deepcopy(self._store.records.get(self._version))

    async def save(self, record: SinkRecord) -> None:
        self._entries()
        stored = self._store.records.get(self._version)
        if stored is None or (stored.epoch, stored.owner) != (record.epoch, record.owner):
            raise record.fenced_by(stored, self.name)
        self._store.records[self._version] = deepcopy(record)

    async def write(
        self, writes: Sequence[Write], epoch: int, allowed: Callable[[], bool] = always
    ) -> Sequence[Outcome]:
        entries = self._entries()
        if writes and not allowed():
            raise NotAllowed
        outcomes = [self._write(entries, write, epoch) for write in writes]
        self.log.extend(zip(writes, outcomes, strict=True))
        return outcomes

    async def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        entries = self._entries()
        return {
            id: Stored(entry.revision, deepcopy(entry.document))
            for id in ids
            if (entry := entries.get(id)) is not None and entry.document is not None
        }

    async def ended(self, ids: Sequence[str]) -> Collection[str]:
        return ()

    async def scan(self, *, documents: bool = True) -> AsyncIterator[Mapping[str, Stored]]:
        ids = [id for id, entry in self._entries().items() if entry.document is not None]
        for start in range(0, len(ids), PAGE):
            found = await self.read(ids[start : start + PAGE])
            yield found if documents else {id: Stored(stored.revision, {}) for id, stored in found.items()}

    async def loading(self, on: bool) -> None:
        self._entries()
        if on and self._store.aliases.get(self._alias) == self._version:
            raise SinkError(f"{self.name}: readers see it, so it can't be loaded unseen: rebuild into a new version.")
        (self._store.loading.add if on else self._store.loading.discard)(self._version)

    async def switch(self) -> None:
        self._entries()
        self._store.aliases[self._alias] = self._version

    async def drop(self) -> None:
        self._reach()
        for known in (self._store.versions, self._store.records):
            known.pop(self._version, None)
        self._store.loading.discard(self._version)
        if self._store.aliases.get(self._alias) == self._version:
            del self._store.aliases[self._alias]

    async def refresh(self) -> None:
        self._entries()

    async def count(self) -> int:
        return sum(entry.document is not None for entry in self._entries().values())

    async def close(self) -> None:
        """Nothing is open."""

    def _reach(self) -> None:
        if self.away is not None:
            raise SinkUnavailable(f"{self.name}: the store can't be reached ({self.away}); try again.")

    def _entries(self) -> dict[str, Entry]:
        self._reach()
        try:
            return self._store.versions[self._version]
        except KeyError:
            raise TargetMissing(f"{self.name}: the store has no such version: run `cdc apply`.") from None

    def _write(self, entries: dict[str, Entry], write: Write, epoch: int) -> Outcome:
        if (reason := self.throttle(write)) is not None:
            return Throttled(reason)
        if (reason := self.refuse(write)) is not None:
            return Rejected(reason)
        if not 0 < len(write.id.encode("utf-8", "replace")) <= ID_BYTES:
            return Rejected(f"The id has to be of 1 to {ID_BYTES} bytes.")
        try:
            document = None if write.document is None else parsed(write.document, self._shape)
        except ValueError as error:
            return Rejected(f"The document can't be stored: {error}.")
        stored = entries.get(write.id)
        if stored is not None and stored.revision >= write.revision:
            return STALE
        entries[write.id] = Entry(write.revision, document, epoch)
        return APPLIED
