"""A read model as the app serves it: which version readers see, how far it is, and reads that are at least that far."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from connectors.sinks import open_reader
from connectors.sources import kinds, logs
from connectors.sources.debezium import ConnectorDefinition
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Kind, Shape, shape_of
from pipeline.engine.assemble import document_id
from pipeline.engine.measures import group_id, group_key
from pipeline.errors import CdcError, OperationError, SettingsError, TargetMissing
from pipeline.events.sourcelog import lsn_text, parsed
from pipeline.operations.layouts import layout_of
from pipeline.operations.wait import Token, of_connector, passed_by, wait
from pipeline.ports import Reader, SinkRecord
from pipeline.runtime.wiring import connectors_of
from pipeline.settings import Settings
from pipeline.web.problems import Problem, bad

log: Final = logging.getLogger("cdc.web")
FRESH: Final = 0.05
"""Seconds that a checkpoint record is taken for the newest: an older one says less, and what it says stays true."""
SEARCHABLE: Final = 1.0
"""Seconds from one refresh for searches to the next, while there are searches."""
LOG_KNOWN: Final = 5.0
"""Seconds until Connect is asked again which log of the source it reads."""
BEAT: Final = 0.02
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Seen:
    """A version, and the mark of each connector up to which all changes are in what is read of it from now on."""

    version: str
    marks: Mapping[str, dict[str, Any]]
    at: float
    """When it was asked for."""
    several: bool = False
    """The read model is of several connectors, so that each mark is told with its name."""

    def headers(self) -> dict[str, str]:
        found = {"X-Read-Model-Version": self.version}
        if self.marks:
            moment = datetime.fromtimestamp(min(int(mark["ts_ms"]) for mark in self.marks.values()) / 1000, UTC)
            found["X-Read-Model-As-Of"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            found["X-Read-Model-Watermark"] = self.watermark
        return found

    @property
    def watermark(self) -> str:
        """It is a token too: whoever reads with it sees no less."""
        told = {of: _told(mark) for of, mark in self.marks.items()}
        return ",".join(f"{of}:{place}" if self.several else place for of, place in told.items()) or "none"


def _told(mark: Mapping[str, Any]) -> str:
    identity = parsed(str(mark.get("log", ""))).identity
    return f"lsn:{lsn_text(int(mark['lsn']))}" + (f"@{identity}" if identity.strip("/") else "")


@dataclass
class ReadModel:
    """One projection, read in the first of its targets that has a reader."""

    settings: Settings
    projection: Projection[Any]
    shape: Shape
    reader: Reader
    definitions: Mapping[str, ConnectorDefinition]
    """Its connectors, by name."""
    key: tuple[tuple[str, Kind | None], ...]
    """The names of the key's parts, and their kinds where they are known."""
    _now: dict[str | None, Seen] = field(default_factory=dict)
    _searched: dict[str | None, Seen] = field(default_factory=dict)
    _logs: dict[str, tuple[float, str | None]] = field(default_factory=dict)
    _waiting: int = 0
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.projection.name

    # ---- keys -----------------------------------------------------------------------------------------------

    def id_of(self, parts: Sequence[Any]) -> str:
        """The id of the document with this key, its parts as texts or as JSON has them; raises Problem."""
        names = [name for name, _ in self.key]
        if len(parts) != len(names):
            raise bad("bad-key", f"The key of {self.name} is {', '.join(names)}: {len(parts)} values are given.")
        values = [_part(part, name, kind) for part, (name, kind) in zip(parts, self.key, strict=True)]
        try:
            if isinstance(self.shape, AggregateShape):
                return group_id(group_key(self.shape, values))
        except OperationError as error:
            raise bad("bad-key", str(error)) from None
        return document_id(tuple(values))

    # ---- how far it is --------------------------------------------------------------------------------------

    async def now(self, age: float = FRESH, version: str | None = None) -> Seen:
        """What readers see, or this version, asked for at most `age` seconds ago."""
        wanted = time.monotonic() - age
        # a lock lets those who wait through by one a turn of the loop, so nobody queues for what is there
        if (last := self._now.get(version)) is not None and last.at >= wanted:
            return last
        async with self._lock(f"now {version}"):
            if (last := self._now.get(version)) is None or last.at < wanted:
                began = time.monotonic()
                name = version or await self.reader.seen()
                record = await self.reader.record(name)
                known = record.watermark if record is not None else {}
                marks = {of: known[of] for of in self.definitions if of in known}
                self._now[version] = last = Seen(name, marks, began, len(self.definitions) > 1)
            return last

    async def searchable(self, wanted: Callable[[Seen], bool], version: str | None = None) -> Seen:
        """What searches find: as of a refresh a second ago or less that `wanted` takes, else of one now."""
        async with self._lock(f"searched {version}"):
            last = self._searched.get(version)
            if last is None or time.monotonic() - last.at > SEARCHABLE or not wanted(last):
                seen = await self.now(version=version)
                await self.reader.refresh(seen.version)
                self._searched[version] = last = seen
            return last

    async def after(
        self, tokens: Sequence[Token], patience: float, version: str | None = None
    ) -> Callable[[Seen], bool]:
        """Waits until the read model is past the tokens; what it returns says whether a version is. Raises Problem 504."""
        until = time.monotonic() + patience
        past = [await self._after(token, max(0.0, until - time.monotonic()), version) for token in tokens]
        return lambda seen: all(one(seen) for one in past)

    async def _after(self, token: Token, patience: float, version: str | None) -> Callable[[Seen], bool]:
        try:
            token = of_connector(token, list(self.definitions), self.name)
        except OperationError as error:
            raise bad("bad-token", str(error)) from None
        own = await self._source_log(token.connector)
        identity = parsed(own or "").identity
        if token.identity and identity and token.identity != identity:
            raise Problem(
                409, "another-log",
                f"The token is of the source log {token.identity}, and the source is now {identity}: it was restored or"
                " replaced meanwhile. Read without the token.",
            )  # fmt: skip
        place = token.lsn if token.lsn is not None else await self._committed(token)
        watched = _Watched(self, version)
        self._waiting += 1
        try:
            # many who wait ask less often, each
            beat = BEAT * max(1, self._waiting / 100)
            found = await wait(watched, token.connector, place, patience=patience, log=own, beat=beat)
        finally:
            self._waiting -= 1
        if not found.reached:
            last = watched.last.watermark if watched.last is not None else "none"
            raise Problem(
                504, "not-there-yet",
                f"In {found.seconds:g} s {self.name} came as far as {last}, and not to lsn:{lsn_text(place)}: try again.",
                watermark=last, headers=watched.last.headers() if watched.last is not None else None,
            )  # fmt: skip
        return lambda seen: passed_by(seen.marks.get(token.connector), place, own)

    async def read(
        self, tokens: Sequence[Token], patience: float, work: Callable[[str], Awaitable[ResultT]], *, search: bool,
        version: str | None = None,
    ) -> tuple[Seen, ResultT]:  # fmt: skip
        """Work on the version that readers see, or on this one, at least as far as the tokens; once more where it goes meanwhile."""
        for last in (False, True):
            try:
                wanted = await self.after(tokens, patience, version)
                seen = await (self.searchable(wanted, version) if search else self.now(version=version))
                if not wanted(seen):  # readers see another version since
                    raise TargetMissing
                return seen, await work(seen.version)
            except TargetMissing:
                self._now.clear()
                self._searched.clear()
                if last:
                    raise
        raise AssertionError

    async def close(self) -> None:
        await self.reader.close()

    async def _committed(self, token: Token) -> int:
        """A place in the source's log behind the transaction; raises SourceError where it has not committed."""
        try:
            dsn = self.definitions[token.connector].dsn_in(self.settings)
        except SettingsError:
            raise bad("no-source", "This API can't ask the source for a transaction: take an lsn: token.") from None
        return await asyncio.to_thread(kinds.position, dsn, token.txid)

    async def _source_log(self, connector: str) -> str | None:
        """The label of the log that the connector reads; None where Connect does not say, so positions alone count."""
        async with self._lock(f"log {connector}"):
            known = self._logs.get(connector)
            if known is None or time.monotonic() - known[0] > LOG_KNOWN:
                try:
                    kafka = self.definitions[connector].kafka
                    label = await logs.running(self.settings.connect_address(kafka), connector)
                except CdcError:
                    label = None
                self._logs[connector] = known = time.monotonic(), label
            return known[1]

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())


@dataclass
class _Watched:
    """The model as `wait` asks it; `last` is what it was told."""

    model: ReadModel
    version: str | None
    last: Seen | None = None

    @property
    def name(self) -> str:
        return self.model.name

    async def record(self) -> SinkRecord:
        self.last = await self.model.now(BEAT, self.version)
        return SinkRecord(watermark=dict(self.last.marks))

    async def refresh(self) -> None:
        """What is searched is refreshed later."""


def open_models(settings: Settings, projections: Sequence[Projection[Any]]) -> dict[str, ReadModel]:
    """Those of the projections that a reader knows, by name; they connect with their first request."""
    found: dict[str, ReadModel] = {}
    for projection in projections:
        shape = shape_of(projection.shape)
        try:
            readers = (open_reader(target, shape, settings) for target in projection.to)
            reader = next((one for one in readers if one is not None), None)
            if reader is not None:
                definitions, key = connectors_of(settings, projection), _key(settings, projection, shape)
                found[projection.name] = ReadModel(settings, projection, shape, reader, definitions, key)
        except CdcError as error:  # one that can't be read is no reason to serve no other
            log.warning("%s is not served: %s", projection.name, error)
    return found


def _key(settings: Settings, projection: Projection[Any], shape: Shape) -> tuple[tuple[str, Kind | None], ...]:
    if isinstance(shape, AggregateShape):
        return tuple((group.name, group.value.kind) for group in shape.groups)
    root = layout_of(settings, projection).root
    return tuple((name, root.columns[name]) for name in root.key)


def _part(part: Any, name: str, kind: Kind | None) -> Any:
    if isinstance(part, bool) or not isinstance(part, (str, int)):
        raise bad("bad-key", f"{name}: a part of a key is a text or a number.", field=name)
    text = str(part)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad("bad-key", f"{name} is no text.", field=name) from None
    if kind == "int":
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise bad("bad-key", f"{name}: {text[:100]!r} is no whole number.", field=name)
        return int(text)
    return text
