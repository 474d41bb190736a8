"""The groups that there should be: an aggregate, or a fold of events, computed anew over the rows of one snapshot.

What a group's rows give is kept in a file until all are read, so memory holds one group at a time.
"""

from __future__ import annotations

import json
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Protocol

import apsw
from pydantic import SecretStr

from pipeline.authoring.aggregate_shape import AggregateShape, Value
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.column_types import wire_of
from pipeline.authoring.event_shape import EventShape, decoder_of
from pipeline.authoring.measured import measured
from pipeline.engine.measures import group_id, group_text
from pipeline.engine.sql import connect, rows, transaction
from pipeline.errors import OperationError
from pipeline.events.values import converter
from pipeline.operations.canonical import canonical
from pipeline.operations.expected import Expectation, Unbuildable
from pipeline.operations.wait import Position

Key = tuple[str, ...]
Gone = Callable[[str, frozenset[tuple[Any, ...]]], bool]
"""Whether the mirror has events of this group, given its key, whose rows are not among these keys."""
BATCH: Final = 1000


class Rows(Protocol):
    """One state of the source, by its rows."""

    @property
    def position(self) -> Position: ...

    def keys(self, batch: int) -> Iterator[list[tuple[Key, list[Any]]]]: ...

    def documents(self, keys: Sequence[Key]) -> list[tuple[Key, list[Any], dict[str, Any]]]: ...


class RowSource(Protocol):
    """The database, asked for the rows of whole documents."""

    def snapshot(self) -> AbstractContextManager[Rows]: ...


class GroupExpectation:
    """What a group's document must be; raises OperationError where that can't be told.

    `gone` tells of event documents whose events outlive their rows which groups the source can't tell any more.
    """

    width: Final = 1
    """A group has one key, whatever it is told by."""

    def __init__(
        self,
        shape: AggregateShape,
        catalog: Catalog,
        unreadable: frozenset[str] = frozenset(),
        gone: Gone | None = None,
        salt: SecretStr | None = None,
    ) -> None:
        self.shape, self.gone = shape, gone
        self.rows = Expectation(shape.of, catalog, unreadable, salt)
        if self.rows.not_compared:
            raise OperationError(
                f"{shape.name} can't be verified: it may use {', '.join(self.rows.not_compared)} of {shape.of.name}, whose"
                " column has a type that verify can't read as events have it."
            )
        if isinstance(shape, EventShape) and not shape.forgets and gone is None:
            raise OperationError(
                f"{shape.name} counts events whose rows are deleted (deleted='kept'), and which those are only its mirror"
                " knows: verify it on the worker's machine."
            )
        self._catalog = catalog
        self.unread = 0
        """Documents on which the author's code fails, so that nobody knows their group."""

    @property
    def not_compared(self) -> list[str]:
        return [f"{self.unread} documents of {self.shape.of.name} that its code fails on"] if self.unread else []

    def document(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """The group's document in canonical values, as the snapshot has made it; raises Unbuildable."""
        if "error" in raw:
            raise Unbuildable(raw["error"])
        found: dict[str, Any] | None = raw["document"]
        return found

    def key_of(self, id: str) -> str | None:
        """The key, the list of its values as JSON, of the group that has this id; None where none can have it."""
        if id[:1] == "[":
            return id if group_id_of(id) == id else None
        whole = len(self.shape.groups) == 1 and self.shape.groups[0].value.kind in ("int", "bool")
        for key in ([f"[{id}]"] if whole else []) + [json.dumps([id], ensure_ascii=False)]:
            if group_id_of(key) == id:
                return key
        return None

    def stored(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A sink's document in canonical values, with what it has too many."""
        known = {m.name: m for m in self.shape.fields}
        return {
            name: canonical(value, known[name].kind, repeated=known[name].repeated) if name in known else value
            for name, value in document.items()
        }

    # ---- one row's part ------------------------------------------------------------------------------------

    def part(self, raw: Mapping[str, Any]) -> tuple[str, Any, str] | None:
        """The group that a row is in, what it gives there, and why it gives nothing; None where it is in no group."""
        raw = self.rows.masked(raw)
        try:
            made = self.rows.made(raw)
            if made is None:
                return None
            values = [(self._value(made, raw, group.value), group) for group in self.shape.groups]
            group = group_text(values)
        except Exception:  # the author's code
            self.unread += 1
            return None
        try:
            return group, (tuple(plain(value) for value, _ in values), self._given(made, raw)), ""
        except Exception as error:  # the author's code: the group is in quarantine
            return group, None, f"{type(error).__name__}: {error}"

    def _given(self, made: Any, raw: Mapping[str, Any]) -> Any:
        shape = self.shape
        if not isinstance(shape, EventShape):
            return [
                (self._value(made, raw, m.value) if m.value else None, self._value(made, raw, m.by) if m.by else None)
                for m in shape.measures
            ]
        payload = reduce(lambda at, name: at[name], shape.payload.path, raw)
        return plain(self._value(made, raw, shape.order)), plain(self._value(made, raw, shape.type)), payload

    def _value(self, made: Any, raw: Mapping[str, Any], value: Value) -> Any:
        """A value of the author's object; a text that is copied, as documents have it."""
        if value.kind in ("text", "datetime", "time") and value.field.column is not None:
            found: Any = reduce(lambda at, name: None if at is None else at[name], value.path, raw)
            level = reduce(
                lambda at, name: next(r.item for r in at.relations if r.name == name), value.path[:-1], self.shape.of
            )
            convert = converter(wire_of(self._catalog.table(level.table).column(value.field.column)))
            return convert(found) if convert is not None and isinstance(found, str) else found
        return plain(reduce(lambda at, name: None if at is None else getattr(at, name), value.path, made))

    # ---- one group's document ------------------------------------------------------------------------------

    def group(self, parts: Sequence[tuple[tuple[Any, ...], Any]]) -> dict[str, Any] | None:
        """The document of a group: of each row the key, and what `part` gave; raises Unbuildable."""
        groups = dict(zip(self.shape.key, parts[0][1][0], strict=True))
        if isinstance(self.shape, EventShape):
            return self._folded(self.shape, groups, [(*given, key) for key, (_, given) in parts])
        found = groups | {
            measure.name: measured(measure, [(*given[i], key) for key, (_, given) in parts])
            for i, measure in enumerate(self.shape.measures)
        }
        return {m.name: canonical(found[m.name], m.kind, repeated=m.repeated) for m in self.shape.fields}

    def _folded(
        self, shape: EventShape, groups: Mapping[str, Any], events: list[tuple[Any, ...]]
    ) -> dict[str, Any] | None:
        handlers = {handler.name: handler for handler in shape.handlers}
        told = [
            (handlers[name], payload)
            for _, name, payload, _ in sorted(events, key=itemgetter(0, 3))
            if name in handlers
        ]
        if not told:
            return None
        try:
            found: Any = shape.aggregate.model_validate(groups)
            for handler, payload in told:
                found = getattr(found, handler.method)(decoder_of(handler.event)(payload))
            if not found.keep():
                return None
        except Exception as error:  # the author's code, or a payload that does not fit
            raise Unbuildable(f"{type(error).__name__}: {error}") from None
        return {m.name: canonical(getattr(found, m.name), m.kind, repeated=m.repeated) for m in shape.fields}


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True, slots=True)
class GroupSource:
    """The database, asked for whole groups: each time all its rows are read, at most `rate` a second (0: no bound)."""

    of: RowSource
    expectation: GroupExpectation
    has: Callable[[str], bool]
    """Whether the group with this id is in the part that is compared."""
    rate: float = 0.0
    progress: Callable[[int], None] = lambda done: None

    @contextmanager
    def snapshot(self) -> Iterator[Groups]:
        with self.of.snapshot() as held, tempfile.TemporaryDirectory(prefix="cdc-verify-") as folder:
            db = connect(str(Path(folder) / "groups.db"))
            try:
                yield Groups(self, held, db)
            finally:
                db.close()


@dataclass(slots=True)
class Groups:
    """The groups of one moment; one thread at a time. A group's key is the list of its values as JSON."""

    source: GroupSource
    held: Rows
    db: apsw.Connection
    whole: bool = False
    """All groups that are compared are in the file."""

    def __post_init__(self) -> None:
        self.db.execute(
            "CREATE TABLE parts(id TEXT NOT NULL, g TEXT NOT NULL, part BLOB NOT NULL);"
            "CREATE INDEX parts_by_id ON parts(id)"
        )

    @property
    def position(self) -> Position:
        return self.held.position

    def keys(self, batch: int) -> Iterator[list[tuple[Key, list[Any]]]]:
        """All groups: their keys, and their ids."""
        if not self.whole:
            self._read(None)
            self.whole = True
        after = ""
        while found := rows(
            self.db, "SELECT id, min(g) FROM parts WHERE id > ? GROUP BY id ORDER BY id LIMIT ?", (after, batch)
        ):
            after = found[-1][0]
            yield [((g,), [id]) for id, g in found]

    def documents(self, keys: Sequence[Key]) -> list[tuple[Key, list[Any], dict[str, Any]]]:
        """Key, id and document of the groups that there are; a key may be the id itself, where no more is known."""
        ids = {key[0]: _ids(key[0]) for key in keys}
        if not self.whole:
            self._read({id for known in ids.values() for id in known})
        found: list[tuple[Key, list[Any], dict[str, Any]]] = []
        for name, known in ids.items():
            there = rows(self.db, "SELECT id, min(g) FROM parts WHERE id IN (?, ?) GROUP BY id", (known[0], known[-1]))
            for id, g in there:
                found.append(((g,), [id], self._raw(id, g)))
            if not there and self._gone(self.source.expectation.key_of(name) or ""):
                found.append(((name,), [known[-1]], {"error": GONE}))
        return found

    def members(self, keys: Iterable[str]) -> set[tuple[Any, ...]]:
        """The keys, as events have them, of the rows that are in the groups with these keys."""
        self._read({id for key in keys if (id := group_id_of(key)) is not None})
        self.whole = False
        return {pickle.loads(part)[0] for (part,) in self.db.execute("SELECT part FROM parts")}  # noqa: S301 - our own file

    def _raw(self, id: str, g: str) -> dict[str, Any]:
        parts = [pickle.loads(part) for (part,) in self.db.execute("SELECT part FROM parts WHERE id = ?", (id,))]  # noqa: S301 - our own file
        if self._gone(g, frozenset(key for key, _, _ in parts)):
            return {"error": GONE}
        error = next((error for _, _, error in parts if error), "")
        if error:
            return {"error": error}
        try:
            return {"document": self.source.expectation.group([(key, part) for key, part, _ in parts])}
        except Unbuildable as unbuildable:
            return {"error": str(unbuildable)}

    def _gone(self, g: str, keys: frozenset[tuple[Any, ...]] = frozenset()) -> bool:
        gone = self.source.expectation.gone
        return gone is not None and gone(g, keys)

    def _read(self, ids: set[str] | None) -> None:
        """All rows of the source, and into the file what they give to these groups, or to all that are compared."""
        expectation, done, began = self.source.expectation, 0, time.monotonic()
        expectation.unread = 0
        self.db.execute("DELETE FROM parts")
        for batch in self.held.keys(BATCH):
            parts = []
            for _, wire, raw in self.held.documents([key for key, _ in batch]):
                part = expectation.part(raw)
                id = group_id(part[0]) if part is not None else ""
                if part is not None and (self.source.has(id) if ids is None else id in ids):
                    parts.append((id, part[0], pickle.dumps((tuple(wire), *part[1:]))))
            with transaction(self.db):
                self.db.executemany("INSERT INTO parts VALUES(?, ?, ?)", parts)
            done += len(batch)
            self.source.progress(done)
            if self.source.rate:
                time.sleep(max(0.0, began + done / self.source.rate - time.monotonic()))


GONE: Final = "rows of its events are gone from the source"


def _ids(name: str) -> tuple[str, ...]:
    """What may be the id of the group that is told by its key, or by its id."""
    return (name, (group_id_of(name) if name[:1] == "[" else None) or name)


def group_id_of(key: str) -> str | None:
    """The id of the group with this key; None where it is none."""
    try:
        return group_id(key)
    except ValueError:
        return None
