"""A scenario: a story of row changes told to the real engine, and the documents that come of it; no Kafka, no waiting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar, cast

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.aggregates import Aggregate
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.documents import Document
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.assemble import document_id
from pipeline.engine.engine import Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.measures import group_id, group_key
from pipeline.engine.story import rows_behind
from pipeline.errors import ScenarioError
from pipeline.events.envelope import UNCHANGED
from pipeline.testing.deliveries import Delivery, InOrder, wrong
from pipeline.testing.expected import derived_differences, difference, instance, nested, stored_values
from pipeline.testing.groups import counted, read_group, wrong_group
from pipeline.testing.recording import has_transactions, recorded_source
from pipeline.testing.seen import Received, Story
from pipeline.testing.source import Key, Record, SourceModel
from pipeline.testing.tables import SourceTable, SourceTables, catalog_beside, source_tables
from pipeline.testing.worker import Consistency, Setup, Worker

ShapeT = TypeVar("ShapeT", bound=Document | Aggregate)


class Scenario(Generic[ShapeT]):
    """One projection on the real engine, its source a model of Debezium, its sinks in memory.

    Values are plain Python (`Decimal`, `datetime`, `UUID`, `bytes`, `dict`) and are sent as Debezium sends them. The
    columns' types are those of `catalog`, or of the `catalog.lock.json` beside the projection, or of the shape.
    Each change is a transaction of its own, unless it is made inside `transaction()`.
    """

    def __init__(self, projection: Projection[ShapeT], *, catalog: Catalog | None = None) -> None:
        shape = shape_of(cast("Any", projection.shape))
        known = catalog or catalog_beside(projection)
        layout = lay_out(shape, known)
        self._projection, self._layout = projection, layout
        self.shape = shape
        self._tables: SourceTables = source_tables(projection.name, layout, known)
        self.tables = self._tables.tables
        self.story: list[str] = []
        """All that was told, as Python."""
        self._names: dict[str, tuple[Key, Any]] = {}
        """Every root key by its document's id, as events and as the author write it."""
        self._open = False
        self._begin(SourceModel({name: table.key for name, table in self.tables.items()}), "transaction")

    @classmethod
    def from_recording(
        cls, projection: Projection[ShapeT], path: str | Path, *, catalog: Catalog | None = None
    ) -> Scenario[ShapeT]:
        """What a real connector sent, a Kafka record a line; more may be told after it.

        A line is `{"topic": …, "partition": …, "offset": …, "key": text or null, "value": text or null}`. Without the
        transaction topic changes are applied one by one.
        """
        scenario = cls(projection, catalog=catalog)
        source = recorded_source(Path(path), scenario._layout)
        scenario._begin(source, "transaction" if has_transactions(Path(path)) else "row")
        scenario.story.append(f"Scenario.from_recording({projection.name}, {str(path)!r})")
        for key in source.rows[scenario.shape.table]:
            scenario._name(scenario._root, key, key)
        while source.sent < len(source.messages):
            source.produce(1)
            scenario._worker.drain()
        return scenario

    def _begin(self, source: SourceModel, consistency: Consistency) -> None:
        source.unchanged = lambda table, name, value: self._tables[table].columns[name].unchanged(value)
        boundaries = source.boundaries if consistency == "transaction" else None
        inputs = Inputs(source.topics, boundaries, source.name)
        self._source = source
        self._setup = Setup(self._projection, self.shape, self._layout, inputs, consistency)
        self._worker = Worker(self._setup, self._log())

    def _log(self) -> dict[str, list[Record]]:
        """What the worker reads: without transactions, not their topic either."""
        topics = {*self._source.topics, self._setup.inputs.boundaries}
        return {name: records for name, records in self._source.log.items() if name.rpartition("/")[0] in topics}

    # ---- what happens in the source -----------------------------------------------------------------------

    def insert(self, table: str, **columns: Any) -> None:
        """A new row. What is not given is null; a column that may not be null has to be given."""
        own = self._tables[table]
        row = own.row(columns)
        key = tuple(row[name] for name in own.key)
        self._no_row(own, key)
        self._name(own, key, tuple(columns[name] for name in own.key))
        with self._committed("insert", table, **columns):
            self._source.insert(table, row)

    def update(self, table: str, key: Any, **columns: Any) -> None:
        """New values of some columns; `UNCHANGED` for a long one says that the source did not send it (TOAST)."""
        own = self._tables[table]
        known, changes = self._row(own, key), own.changes(columns)
        fresh = tuple(changes.get(name, part) for name, part in zip(own.key, known, strict=True))
        if fresh != known:
            self._no_row(own, fresh)
            parts = key if isinstance(key, tuple | list) else (key,)
            self._name(own, fresh, tuple(columns.get(n, part) for n, part in zip(own.key, parts, strict=True)))
        with self._committed("update", table, key, **columns):
            self._source.update(table, known, **changes)

    def rename_key(self, table: str, key: Any, new_key: Any) -> None:
        """The row gets another primary key: Debezium sends a delete and a create."""
        own = self._tables[table]
        own.key_of(new_key)
        parts = new_key if isinstance(new_key, tuple | list) else (new_key,)
        self.update(table, key, **dict(zip(own.key, parts, strict=True)))

    def delete(self, table: str, key: Any) -> None:
        """The row is gone; rows that point to it stay, as if there were no foreign key."""
        own = self._tables[table]
        known = self._row(own, key)
        with self._committed("delete", table, key):
            self._source.delete(table, known)

    def truncate(self, table: str) -> None:
        """All rows of the table are gone."""
        self._tables[table]
        with self._committed("truncate", table):
            self._source.truncate(table)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is one transaction: seen as a whole at its end, or never if an exception ends it."""
        if self._open:
            raise ScenarioError("A transaction is open already: a source knows of none inside another.")
        self.story.append("with shop.transaction():")
        self._open = True
        try:
            with self._source.transaction():
                yield
        finally:
            self._open = False
        self._follow()

    def crash_after(self, steps: int) -> None:
        """The worker dies after so many more steps, and starts again from its mirror.

        A transaction is three steps: its checkpoint, the writing of its documents, and the settling of their outcomes.
        """
        self._worker.dies_in = steps

    # ---- what readers see ---------------------------------------------------------------------------------

    def document(self, *key: Any) -> ShapeT:
        """The document of a root key (`10`, or `10, 1`) as the sinks hold it; ScenarioError where there is none."""
        found = self.get(*key)
        if found is None:
            raise ScenarioError(self._why_none(key))
        return found

    def get(self, *key: Any) -> ShapeT | None:
        """The document of a root key, or None."""
        self._nothing_open()
        id = self._id(key)
        self._could_be_built(id)
        stored = self._stored().get(id)
        return None if stored is None else self._read(id, stored)

    def documents(self) -> dict[Any, ShapeT]:
        """All documents by key; a key of several columns is a tuple."""
        self._nothing_open()
        found = [(id, self._read(id, stored)) for id, stored in self._stored().items()]
        return {self._key(id, document): document for id, document in found}

    def pending(self) -> dict[Any, str]:
        """By key the documents that wait for a row or a value which the source has not sent, or that failed; and why."""
        waiting = self._worker.waiting_ids().items()
        return {self._names[id][1] if id in self._names else id: f"{kind}: {why}" for id, (kind, why) in waiting}

    def writes(self) -> dict[str, list[Received]]:
        """All that each sink received, in order; a sink is named as in `elasticsearch:orders`."""
        return {
            name: [Received(w.id, None if w.document is None else json.loads(w.document)) for w, _ in sink.log]
            for name, sink in self._worker.sinks.items()
        }

    def explain(self, *key: Any) -> Story:
        """The rows behind a document, what each sink holds, and what it waits for; `print` it."""
        id, worker = self._id(key), self._worker
        waits = worker.waiting_ids().get(id)
        return Story(
            id,
            tuple(
                row for root in self._behind(key) for row in rows_behind(worker.engine.mirror.db, self._layout, root)
            ),
            {name: worker.stored(name).get(id) for name in worker.sinks},
            ": ".join(waits) if waits else None,
        )

    # ---- what has to hold ---------------------------------------------------------------------------------

    def assert_converges(self, deliveries: int = 200, *, seed: int = 0) -> None:
        """The same changes, brought in every way that the transport allows, have to end in the same documents.

        Each delivery has its own seed, from `seed` on: tables in several partitions that are read in any order, ENDs of
        transactions before and after their events, connectors that restart and repeat, workers that die at any step,
        sinks that are away, late writes of dead workers. No document may show half a transaction on the way. First
        the documents are compared with what pydantic makes of the source's rows.
        """
        self._nothing_open()
        right = self._in_order()
        for number in range(seed, seed + deliveries):
            delivery = Delivery(self._setup, self._source, Random(number))  # noqa: S311 - to be repeated
            worker = delivery.run()
            said = wrong(worker, right)
            worker.close()
            if said:
                raise AssertionError(
                    f"{self._projection.name}: {said}.\nThis was seed {number}: {'; '.join(delivery.story)}.\n"
                    f"To repeat it alone: assert_converges(1, seed={number}). What had been told:\n"
                    + "\n".join(f"    {line}" for line in self.story)
                )

    def _in_order(self) -> InOrder:
        worker, name = self._worker, next(iter(self._worker.sinks))
        waiting, stored = worker.waiting_ids(), worker.stored(name)
        if self._aggregate is not None:
            self._check_groups(self._aggregate, waiting, stored)
        else:
            self._check_documents(name, waiting, stored)
        versions: dict[str, list[Any]] = {}
        for write, _ in worker.sinks[name].log:
            if write.document is not None:
                versions.setdefault(write.id, []).append(json.loads(write.document))
        kept = {id: document for id, document in stored.items() if id not in waiting}
        return InOrder(kept, waiting, versions if self._setup.consistency == "transaction" else None)

    def _check_groups(
        self, shape: AggregateShape, waiting: Mapping[str, Any], stored: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Every group counted anew from the source's rows."""
        right = dict(counted(self._layout, self._source))
        for id in sorted((stored.keys() | right.keys()) - waiting.keys()):
            assert id in stored, f"{self._projection.name}: the sink lacks the group {id}."
            assert id in right, f"{self._projection.name}: the sink has a group {id}, of which the source has no rows."
            said = wrong_group(id, shape, stored[id], right[id])
            assert not said, f"{self._projection.name}: {said}."

    def _check_documents(
        self, name: str, waiting: Mapping[str, tuple[str, str]], stored: Mapping[str, Mapping[str, Any]]
    ) -> None:
        root, rows = self.shape, self._source.states[-1]
        for key, row in rows[root.table].items():
            id = document_id(key)
            values = nested(self._layout, row, rows)
            if id in waiting:
                self._has_to_wait(id, *waiting[id], values)
                continue
            document = instance(root, values)
            there = stored.get(id)
            if not document.keep():
                assert there is None, f"{self._projection.name}: keep() takes document {id} out, and {name} has it."
                continue
            assert there is not None, f"{self._projection.name}: {name} lacks document {id}."
            own = instance(root, stored_values(root, there, values))
            held, right = (found.model_dump(exclude_computed_fields=True) for found in (own, document))
            said = difference(held, right, id, (" in the sink", " by the source's rows"))
            said = said or next(derived_differences(root, document, there, id), None)
            assert not said, f"{self._projection.name}: {said}."
        failed = [why for kind, why in waiting.values() if kind == "failed"]
        built = len(rows[root.table]) > len(failed) or not failed
        assert built, f"{self._projection.name}: no document could be built: {failed and failed[0]}"
        extra = stored.keys() - {document_id(key) for key in rows[root.table]} - waiting.keys()
        assert not extra, (
            f"{self._projection.name}: {name} has {', '.join(sorted(extra))}, and the source no such rows."
        )

    def _has_to_wait(self, id: str, kind: str, why: str, values: Mapping[str, Any]) -> None:
        """A document that waits is one that the source's rows can't give either."""
        try:
            instance(self.shape, values)
        except ScenarioError:
            return
        assert kind != "pending", f"{self._projection.name}: document {id} {why}, and the source has sent all of it."

    # ---- inside -------------------------------------------------------------------------------------------

    @property
    def _aggregate(self) -> AggregateShape | None:
        return self._layout.aggregate

    def _id(self, key: tuple[Any, ...]) -> str:
        """The id of what is written under a key as an author writes it."""
        if self._aggregate is not None:
            return group_id(group_key(self._aggregate, key))
        return document_id(self._root.key_of(_one(key)))

    def _key(self, id: str, document: ShapeT) -> Any:
        """The key of a document as an author writes it."""
        if self._aggregate is None:
            return self._names[id][1]
        return _one(tuple(getattr(document, name) for name in self._aggregate.key))

    def _behind(self, key: tuple[Any, ...]) -> list[Key]:
        """The root keys behind what is written under a key."""
        if self._aggregate is None:
            return [self._root.key_of(_one(key))]
        names, group = ", ".join(self._layout.root_key), group_key(self._aggregate, key)
        db = self._worker.engine.mirror.db
        return list(db.execute(f"SELECT {names} FROM contributions WHERE g = ? ORDER BY {names} LIMIT 20", (group,)))

    @property
    def _root(self) -> SourceTable:
        return self._tables[self.shape.table]

    @contextmanager
    def _committed(self, *what: Any, **columns: Any) -> Iterator[None]:
        verb, *place = what
        said = ", ".join([*map(repr, place), *(f"{name}={value!r}" for name, value in columns.items())])
        self.story.append(f"{'    ' * self._open}shop.{verb}({said})")
        yield
        if not self._open:
            self._follow()

    def _follow(self) -> None:
        """What the source committed is delivered, applied and written."""
        self._source.produce()
        self._worker.drain()

    def _name(self, table: SourceTable, key: Key, said: tuple[Any, ...]) -> None:
        if table.name == self.shape.table:
            self._names[document_id(key)] = key, said[0] if len(said) == 1 else said

    def _row(self, table: SourceTable, key: Any) -> Key:
        known = table.key_of(key)
        if known not in self._source.rows[table.name]:
            there = [k[0] if len(k) == 1 else k for k in self._source.rows[table.name]]
            shown = ", ".join(map(str, there[:8])) + (", …" if len(there) > 8 else "")
            raise ScenarioError(f"{table.name} has no row {key!r}; there {f'are {shown}' if there else 'is none'}.")
        return known

    def _no_row(self, table: SourceTable, key: Key) -> None:
        if key in self._source.rows[table.name]:
            shown = key[0] if len(key) == 1 else key
            raise ScenarioError(f"{table.name} has a row {shown!r} already: update it, or delete it first.")

    def _nothing_open(self) -> None:
        if self._open:
            raise ScenarioError("A transaction is open: its changes are seen at its end, so look after the `with`.")

    def _stored(self) -> dict[str, dict[str, Any]]:
        return self._worker.stored(next(iter(self._worker.sinks)))

    def _could_be_built(self, id: str) -> None:
        waits = self._worker.waiting_ids().get(id)
        if waits is not None and waits[0] != "pending":
            raise ScenarioError(f"{self._projection.name}: document {id} could not be built: {waits[1]}.")

    def _read(self, id: str, stored: Mapping[str, Any]) -> ShapeT:
        """The author's class over what the sink holds; hidden fields, which it does not, come from the rows."""
        if self._aggregate is not None:
            return cast("ShapeT", read_group(self._aggregate, stored))
        rows = self._source.states[-1]
        row = rows[self.shape.table].get(self._names[id][0])
        source = None if row is None else nested(self._layout, row, rows)
        found = instance(self.shape, stored_values(self.shape, stored, source))
        said = next(derived_differences(self.shape, found, stored, id), None)
        assert said is None, f"{self._projection.name}: {said}: is the function pure?"
        return cast("ShapeT", found)

    def _why_none(self, said: tuple[Any, ...]) -> str:
        name, id = self._projection.name, self._id(said)
        if self._aggregate is not None:
            return f"{name} has no group {id}; there {_listed(sorted(self._stored()))}."
        key = self._root.key_of(_one(said))
        shown = key[0] if len(key) == 1 else key
        waits = self._worker.waiting_ids().get(id)
        if waits is not None:
            return f"{name} has no document {shown} yet: it {waits[1]}."
        if key in self._source.states[-1][self.shape.table]:
            return f"{name} has no document {shown}: keep() says no."
        return f"{name} has no document {shown}; there {_listed([str(self._names[i][1]) for i in self._stored()])}."


def _listed(there: list[str]) -> str:
    return f"are {', '.join(there[:8])}{', …' if len(there) > 8 else ''}" if there else "is none"


def _one(key: tuple[Any, ...]) -> Any:
    return key[0] if len(key) == 1 else key


__all__ = ["UNCHANGED", "Received", "Scenario", "Story"]
