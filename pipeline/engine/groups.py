"""Groups: the tables an aggregate is kept in, and the documents read from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import apsw
import msgspec
from msgspec import Raw

from pipeline.authoring.aggregate_shape import GroupShape, MeasureShape
from pipeline.authoring.event_shape import EventShape
from pipeline.engine.event_fold import EventFold
from pipeline.engine.layout import Layout
from pipeline.engine.measures import State, Sum, columns_of, decode_state, slot_of, slots_of

ANY = "-9e999"
"""Below every value but null: an index finds `>= ANY`, and would walk through the nulls for `IS NOT NULL`."""

GROUPS: Final = ("touched", "contributions", "grouped", "distincts", "failed")
"""The tables that `group_tables` makes."""

_fragments = msgspec.json.Decoder(list[Raw]).decode


def group_tables(layout: Layout) -> Iterator[str]:
    """The statements that make an aggregate's tables; none where the documents themselves are written.

    `touched`: documents to be looked at again. `contributions`: what each gives to its group. `grouped`: what is known
    of a group. `distincts`: how often it has a value. `failed`: documents that can't be counted, and whose group that is.
    """
    if layout.aggregate is None:
        return
    keys, slots = ", ".join(layout.root_key), slots_of(layout.aggregate)
    values = "".join(f", {name}" for name in columns_of(slots))
    yield (
        f"CREATE TABLE IF NOT EXISTS touched({keys}, seq INTEGER NOT NULL, since INTEGER NOT NULL, low INTEGER NOT NULL,"
        f" PRIMARY KEY({keys})) WITHOUT ROWID"
    )
    yield "CREATE INDEX IF NOT EXISTS touched_by_age ON touched(since)"
    yield (
        f"CREATE TABLE IF NOT EXISTS contributions({keys}, g TEXT NOT NULL{values}, PRIMARY KEY({keys})) WITHOUT ROWID"
    )
    for i, slot in enumerate(slots):
        if slot.indexed:
            yield f"CREATE INDEX IF NOT EXISTS contributions_{i} ON contributions(g, o{i})"
    yield "CREATE TABLE IF NOT EXISTS grouped(g TEXT PRIMARY KEY, n INTEGER NOT NULL, state TEXT NOT NULL) WITHOUT ROWID"
    yield (
        "CREATE TABLE IF NOT EXISTS distincts(slot INTEGER NOT NULL, g TEXT NOT NULL, v, n INTEGER NOT NULL,"
        " PRIMARY KEY(slot, g, v)) WITHOUT ROWID"
    )
    yield (
        f"CREATE TABLE IF NOT EXISTS failed({keys}, g TEXT NOT NULL, kind TEXT NOT NULL, error TEXT NOT NULL,"
        f" PRIMARY KEY({keys}, g)) WITHOUT ROWID"
    )
    yield "CREATE INDEX IF NOT EXISTS failed_by_group ON failed(g)"


@dataclass(slots=True)
class GroupDocument:
    """A group as it would be written now: `document` is None where it is empty; `refused` says why it can't be told."""

    key: str
    document: str | None
    refused: tuple[str, str] | None = None
    """(kind, error), as quarantine has them."""


class GroupReader:
    """Reads the documents of the groups in `temp.batch`."""

    def __init__(self, db: apsw.Connection, layout: Layout) -> None:
        assert layout.aggregate is not None
        self.db, aggregate = db, layout.aggregate
        slots, order = slots_of(aggregate), ", ".join(f"c.{k}" for k in layout.root_key)
        backwards = ", ".join(f"c.{k} DESC" for k in layout.root_key)
        looked_up: list[str] = []
        parts: dict[str, Callable[[list[Raw], State, tuple[Any, ...]], str]] = {}
        for i, group in enumerate(aggregate.groups):
            parts[group.name] = _group(i, group)
        for measure in aggregate.measures:
            slot = slot_of(measure)
            number = slots.index(slot) if slot is not None else -1
            if slot is None or not slot.indexed:
                parts[measure.name] = _kept(measure, number)
                continue
            parts[measure.name] = _found(measure, len(looked_up))
            looked_up.append(_lookup(measure, number, order, backwards))
        self._fold = EventFold(aggregate) if isinstance(aggregate, EventShape) else None
        members = () if self._fold else aggregate.members
        self._parts = [(json.dumps(m.name) + ":", parts[m.name]) for m in members]
        self._sql = (
            "SELECT d.k0, g.state, (SELECT f.kind || char(31) || f.error FROM failed f WHERE f.g = d.k0 LIMIT 1)"
            f"{''.join(', ' + one for one in looked_up)} FROM temp.batch d LEFT JOIN grouped g ON g.g = d.k0"
        )

    def read(self) -> Iterator[GroupDocument]:
        for key, state, failed, *found in self.db.execute(self._sql):
            if failed is not None:
                kind, _, error = failed.partition("\x1f")
                yield GroupDocument(key, None, (kind, error))
            elif state is None:
                yield GroupDocument(key, None)
            elif self._fold is not None:
                yield self._folded(self._fold, key, *found)
            else:
                fragments, known = _fragments(key), decode_state(state)
                body = ",".join(name + part(fragments, known, tuple(found)) for name, part in self._parts)
                yield GroupDocument(key, "{" + body + "}")

    @staticmethod
    def _folded(fold: EventFold, key: str, events: str) -> GroupDocument:
        try:
            return GroupDocument(key, fold.document(key, events))
        except Exception as error:  # the author's code: this document is quarantined, all others go on
            return GroupDocument(key, None, ("failed", f"{type(error).__name__}: {error}"))


Part = Callable[[list[Raw], State, tuple[Any, ...]], str]


def _group(number: int, _: GroupShape) -> Part:
    return lambda fragments, state, found: bytes(fragments[number]).decode()


def _kept(measure: MeasureShape, number: int) -> Part:
    """A measure that is read from the group's state."""
    if measure.how == "count":
        return lambda fragments, state, found: str(state.n)
    if measure.how == "count_distinct":
        return lambda fragments, state, found: str(state.distinct.get(number, 0))
    assert measure.value is not None
    kind, places = measure.value.kind, measure.places
    none = "null" if measure.nullable else {"int": "0", "decimal": '"0"'}.get(kind, "0.0")

    def tell(fragments: list[Raw], state: State, found: tuple[Any, ...]) -> str:
        known = state.sums.get(number) or Sum()
        if not known.n:
            return none
        return known.text(kind) if measure.how == "total" else known.mean(kind, places)

    return tell


def _found(measure: MeasureShape, place: int) -> Part:
    """A measure that is looked up in the contributions' index."""
    return lambda fragments, state, found: "null" if found[place] is None else str(found[place])


def _lookup(measure: MeasureShape, number: int, order: str, backwards: str) -> str:
    of = f"contributions c INDEXED BY contributions_{number} WHERE c.g = d.k0 AND c.o{number} >= {ANY}"
    up, down = f"c.o{number}, {order}", f"c.o{number} DESC, {backwards}"
    if measure.how != "collect":
        return f"(SELECT c.v{number} FROM {of} ORDER BY {up if measure.how == 'minimum' else down} LIMIT 1)"
    sequence = down if measure.descending else up
    return (
        f"(SELECT '[' || coalesce(group_concat(v, ','), '') || ']' FROM (SELECT c.v{number} AS v FROM {of}"
        f" ORDER BY {sequence} LIMIT {measure.limit}))"
    )
