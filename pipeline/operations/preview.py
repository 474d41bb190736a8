"""Preview: documents of a projection from the source's live rows, before anything of it runs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, SecretStr

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import Layout, lay_out
from pipeline.engine.measures import group_key
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import rows as sql_rows
from pipeline.errors import OperationError

Row = dict[str, Any]
SAMPLE = 1000
"""Rows that the groups of an aggregate are shown of."""


class RowReader(Protocol):
    """Reads rows of the source, their values as in events."""

    def first(self, table: Table, columns: Sequence[str], limit: int) -> list[Row]:
        """The first rows by primary key."""
        ...

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[Row]:
        """The rows whose columns `match` have one of the values."""
        ...


class Previewed(BaseModel):
    """One document as it would be; or why there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: tuple[Any, ...]
    document: dict[str, Any] | None = None
    reason: str = ""


@dataclass(slots=True)
class _Fetched:
    """The rows behind some root keys, each once."""

    catalog: Catalog
    layout: Layout
    rows: dict[str, dict[tuple[Any, ...], Row]] = field(default_factory=dict)

    def columns(self, table: str) -> list[str]:
        return list(self.layout.tables[table].columns)

    def add(self, table: str, found: Iterable[Row]) -> None:
        key = self.layout.tables[table].key
        known = self.rows.setdefault(table, {})
        for row in found:
            known.setdefault(tuple(row[name] for name in key), row)


def preview(
    projection: Projection[Any],
    catalog: Catalog,
    rows: RowReader,
    *,
    keys: Sequence[str] = (),
    limit: int = 3,
    salt: SecretStr | None = None,
) -> list[Previewed]:
    """The documents of these root keys (`10`, or `10,1` where the key has two columns), or of the first rows.

    Of an aggregate the groups, by their values, as far as the first `SAMPLE` rows fill them.
    """
    shape = shape_of(projection.shape)
    if isinstance(shape, AggregateShape):
        return _groups(shape, _Fetched(catalog, lay_out(shape, catalog, salt)), rows, keys, limit)
    fetched = _Fetched(catalog, lay_out(shape, catalog, salt))
    wanted = [_split(text, shape) for text in keys]
    table = catalog.table(shape.table)
    if wanted:
        roots = rows.matching(table, fetched.columns(shape.table), shape.key, wanted)
    else:
        roots = rows.first(table, fetched.columns(shape.table), limit)
    fetched.add(shape.table, roots)
    _below(fetched, shape, roots, rows)
    found = [tuple(row[name] for name in fetched.layout.root.key) for row in roots]
    there = {tuple(str(row[name]) for name in shape.key) for row in roots}
    missing = [Previewed(key=key, reason=f"{shape.table} has no such row") for key in wanted if key not in there]
    return [*_assembled(fetched, found), *missing]


def _groups(
    shape: AggregateShape, fetched: _Fetched, rows: RowReader, keys: Sequence[str], limit: int
) -> list[Previewed]:
    """Groups of the first rows: all that belong to a group are known only when every row was read."""
    roots = rows.first(fetched.catalog.table(shape.table), fetched.columns(shape.table), SAMPLE)
    fetched.add(shape.table, roots)
    _below(fetched, shape.of, roots, rows)
    with _filled(fetched) as engine:
        engine.catch_up({})
        engine.step()  # the load is over: what it brought is counted
        while engine.continue_fanout():
            pass
        wanted = [(group_key(shape, key.split(",") if len(shape.groups) > 1 else [key]),) for key in keys]
        wanted = wanted or sql_rows(engine.mirror.db, "SELECT g FROM grouped ORDER BY g LIMIT ?", (limit,))
        wanted += sql_rows(engine.mirror.db, "SELECT DISTINCT g FROM failed WHERE g NOT IN (SELECT g FROM grouped)")
        failed = dict(sql_rows(engine.mirror.db, "SELECT g, error FROM failed"))
        reader = engine.reader()
        try:
            found = reader.documents(wanted)
        finally:
            reader.close()
    none = f"none of the first {SAMPLE:,} rows of {shape.table} is in this group"
    return [
        Previewed(key=key, document=json.loads(text)) if text else Previewed(key=key, reason=failed.get(key[0], none))
        for key, text in found.items()
    ]


def _below(fetched: _Fetched, shape: Shape, parents: Sequence[Row], rows: RowReader) -> None:
    """Follow each relation from the rows above to those below it."""
    for relation in shape.relations:
        table = fetched.catalog.table(relation.shape.table)
        values = {tuple(row[name] for name in relation.local) for row in parents}
        values = {value for value in values if None not in value}
        if not values:
            continue
        columns = fetched.columns(table.name)
        found = rows.matching(table, columns, relation.remote, sorted(values, key=str))
        fetched.add(table.name, found)
        _below(fetched, relation.shape, found, rows)


def _assembled(fetched: _Fetched, keys: Sequence[tuple[Any, ...]]) -> list[Previewed]:
    """Fill a mirror as a worker would, and read the documents from it."""
    with _filled(fetched) as engine:
        reader = engine.reader()
        try:
            return [_one(reader.documents, key) for key in keys]
        finally:
            reader.close()


@contextmanager
def _filled(fetched: _Fetched) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="cdc-preview-") as folder:
        mirror = Mirror(str(Path(folder) / "mirror.db"), fetched.layout, owner="preview")
        engine = Engine(mirror, Inputs({name: name for name in fetched.layout.tables}, None), consistency="row")
        for table, found in fetched.rows.items():
            engine.receive(f"{table}/0", [(n, None, _event(row)) for n, row in enumerate(found.values())])
        engine.step()
        try:
            yield engine
        finally:
            mirror.close()


def _one(documents: Any, key: tuple[Any, ...]) -> Previewed:
    try:
        text = documents([key]).get(key)
    except Exception as error:  # the author's code: a worker would quarantine this document
        return Previewed(key=key, reason=f"{type(error).__name__}: {error}")
    if text is None:
        return Previewed(key=key, reason="keep() says no")
    return Previewed(key=key, document=json.loads(text))


def _event(row: Row) -> bytes:
    return json.dumps({"op": "c", "source": {"ts_ms": 0}, "after": row}, ensure_ascii=False).encode()


def _split(text: str, shape: Shape) -> tuple[str, ...]:
    parts = tuple(text.split(",")) if len(shape.key) > 1 else (text,)
    if len(parts) != len(shape.key):
        raise OperationError(f"{text!r} is no key of {shape.table}: give {','.join(shape.key)}, as in 10,1.")
    return parts
