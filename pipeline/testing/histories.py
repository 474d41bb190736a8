"""Histories: random stories told to a scenario, made of the projection's tables, column types and relations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from random import Random
from typing import Any, Final, Literal, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from pipeline.authoring.event_shape import EventShape
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import FieldShape, Kind, Shape
from pipeline.testing.scenario import UNCHANGED, Scenario
from pipeline.testing.tables import SourceTable
from pipeline.testing.wire import WireColumn

KEYS: Final = 4
"""So few different keys a table, so that rows meet: parents are missing, change, come late and go."""
_WORDS: Final = ("", "a", "Tea", "x\"'\\", "ü€🎈", "null", "0", "z" * 40)
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


def generated(projection: Projection[Any], seed: int, *, steps: int = 25) -> Scenario[Any]:
    """A scenario that has been told a random history, the same for the same seed; `story` has it as Python."""
    scenario: Scenario[Any] = Scenario(projection)
    teller = Teller(scenario, Random(seed))  # noqa: S311 - to be repeated
    for _ in range(steps):
        teller.tell()
    return scenario


class Teller:
    """Tells a scenario one random thing after the other."""

    def __init__(self, scenario: Scenario[Any], random: Random) -> None:
        self.scenario, self.random = scenario, random
        self.tables = list(scenario.tables.values())
        self.joins = dict(_joins(scenario.shape, scenario.tables))
        self.choices = dict(_choices(scenario.shape))
        self.tested = dict(_tested(scenario.shape))
        self.rows: dict[str, list[tuple[Any, ...]]] = {table.name: [] for table in self.tables}

    def tell(self) -> None:
        """One transaction of a change or a few."""
        many = self.random.choice((1, 1, 2, 4))
        with self.scenario.transaction() if many > 1 else nullcontext():
            for _ in range(many):
                self._change(self.random.choice(self.tables))

    def _change(self, table: SourceTable) -> None:
        random, there = self.random, self.rows[table.name]
        key = tuple(self._value(table.columns[name]) for name in table.key)
        if key not in there:
            rest = {c.name: self._value(c) for c in self._columns(table)}
            self.scenario.insert(table.name, **dict(zip(table.key, key, strict=True)), **rest)
            there.append(key)
            return
        what = random.random()
        if what < 0.03:
            self.scenario.truncate(table.name)
            there.clear()
        elif what < 0.2:
            self.scenario.delete(table.name, _one(key))
            there.remove(key)
        elif what < 0.3:
            other = tuple(self._value(table.columns[name]) for name in table.key)
            if other not in there:
                self.scenario.rename_key(table.name, _one(key), _one(other))
                there[there.index(key)] = other
        else:
            self.scenario.update(table.name, _one(key), **dict(self._changes(table)))

    def _changes(self, table: SourceTable) -> Iterator[tuple[str, Any]]:
        for column in self._columns(table):
            what = self.random.random()
            if what < 0.2 and column.says_unchanged and not column.silent:
                yield column.name, UNCHANGED
            elif what < 0.6:
                yield column.name, self._value(column)

    def _columns(self, table: SourceTable) -> list[WireColumn]:
        """Those that the projection reads, and one that it does not."""
        used = [table.columns[name] for name in table.used if name not in table.key]
        others = [c for name, c in table.columns.items() if name not in (*table.used, *table.key)]
        return [c for c in (*used, *others[:1]) if not c.generated]

    def _value(self, column: WireColumn) -> Any:
        place = (column.table, column.name)
        if column.nullable and self.random.random() < 0.3:
            return None
        if place in self.tested and self.random.random() < 0.6:
            return self.random.choice(self.tested[place])
        if place in self.choices:
            return self.random.choice(self.choices[place])
        if place in self.joins:
            return _key(self.joins[place], self.random.randrange(KEYS))
        if column.repeated:
            return [self._item(column) for _ in range(self.random.randint(0, 3))]
        return self._item(column)

    def _item(self, column: WireColumn) -> Any:
        random, kind = self.random, column.kind
        n = random.randrange(-3, 100)
        if kind == "text" or kind is None:
            return random.choice(_WORDS)[: 1 if "(" in column.type else 40]
        if kind == "decimal":
            return Decimal(n) if column.type.endswith(",0)") else Decimal(n).scaleb(-2)
        some: dict[Kind, Any] = {
            "int": n,
            "float": n / 8,
            "bool": n % 2 == 0,
            "date": date(2026, 1, 1) + timedelta(n),
            "time": time(n % 24, 30, 0, random.choice((0, 120_000))),
            "interval": timedelta(abs(n), 61),
            "uuid": UUID(int=abs(n)),
            "bytes": bytes([abs(n)]) * (n % 3),
            "json": random.choice(({"a": n}, [n, None], "b", n)),
        }
        if kind == "datetime":
            moment = _EPOCH + timedelta(hours=n, microseconds=random.choice((0, 100_000, 123_456)))
            return moment.replace(tzinfo=None) if column.type.endswith("without time zone") else moment
        return some[kind]


Place = tuple[str, str]
"""Table and column."""


def _joins(shape: Shape, tables: Mapping[str, SourceTable]) -> Iterator[tuple[Place, Kind | None]]:
    """The columns by which rows find each other, keys and both ends of the relations, and the kind that both ends have."""
    for level in shape.walk():
        yield from (((level.table, name), tables[level.table].columns[name].kind) for name in level.key)
    for level in shape.walk():
        for relation in level.relations:
            for here, there in zip(relation.local, relation.remote, strict=True):
                ends = (level.table, here), (relation.shape.table, there)
                kinds = [tables[table].columns[name].kind for table, name in ends]
                yield from ((end, kinds[0] or kinds[1]) for end in ends)


def _tested(shape: Shape) -> Iterator[tuple[Place, tuple[Any, ...]]]:
    """The values that a relation's `where` asks for, and the types of events that a method is on."""
    if isinstance(shape, EventShape) and shape.type.field.column is not None and len(shape.type.path) == 1:
        yield (shape.table, shape.type.field.column), tuple(handler.name for handler in shape.handlers)
    for level in shape.walk():
        for relation in level.relations:
            for name, values in relation.where:
                if known := tuple(value for value in values if value is not None):
                    yield (relation.item.table, name), known


def _choices(shape: Shape) -> Iterator[tuple[Place, tuple[Any, ...]]]:
    """Columns of which the document takes only some values: Literal, Enum, a model of pydantic's."""
    for level in shape.walk():
        for field in level.copied:
            assert field.column is not None
            if found := tuple(_allowed(field)):
                yield (level.table, field.column), found


def _allowed(field: FieldShape) -> Iterator[Any]:
    waiting = [field.annotation]
    while waiting:
        plain = waiting.pop()
        if get_origin(plain) is Literal:
            yield from get_args(plain)
        elif isinstance(plain, type) and issubclass(plain, Enum):
            yield from (member.value for member in plain)
        elif isinstance(plain, type) and issubclass(plain, BaseModel):
            yield from _smallest(plain)
        elif field.kind == "json" and not field.repeated and (get_origin(plain) or plain) in (dict, list):
            yield from ({}, {"a": 1}) if (get_origin(plain) or plain) is dict else ([], [1, 2])
        elif not field.repeated:
            waiting += [a for a in get_args(plain) if a is not type(None)]


def _smallest(model: type[BaseModel]) -> Iterator[Any]:
    """A JSON object that the model takes, where one without optional members does."""
    try:
        yield TypeAdapter(model).validate_python({}).model_dump(mode="json")
    except ValueError:
        return


def _key(kind: Kind | None, n: int) -> Any:
    """The n-th of few values, alike in both columns of a join."""
    some: dict[Kind, Any] = {
        "text": "abcd"[n],
        "uuid": UUID(int=n),
        "decimal": Decimal(n),
        "datetime": _EPOCH + timedelta(n),
        "date": date(2026, 1, 1 + n),
        "bool": n % 2 == 0,
        "bytes": bytes([n]),
    }
    return some.get(kind, n) if kind is not None else n


def _one(key: tuple[Any, ...]) -> Any:
    return key[0] if len(key) == 1 else key
