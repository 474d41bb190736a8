"""Repair: documents marked to be written again, and the rows behind them read again where that is not enough."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import apsw

from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.engine.owners import Owners
from pipeline.engine.sql import connect, listed, quoted, rows, transaction, value
from pipeline.errors import OperationError
from pipeline.operations.expected import key_of
from pipeline.operations.layouts import layout_of
from pipeline.operations.refresh import RefreshReport, refresh_parts
from pipeline.operations.status import mirror_file, mirror_files
from pipeline.settings import Settings


def mirror_keys(
    projection: Projection[Any], catalog: Catalog, found: Sequence[tuple[str, tuple[str, ...] | None]]
) -> list[tuple[Any, ...]]:
    """The root keys as mirrors hold them, of documents given by id, and by key where the id is a hash."""
    shape = shape_of(projection.shape)
    table = catalog.table(shape.table)
    key = table.primary_key or shape.key
    whole = [kinds_of(table.column(name)).kinds[0] == "int" for name in key]
    keys = [key_of(id, len(key)) or given for id, given in found]
    return [
        tuple(int(part) if number and _digits(part) else part for part, number in zip(one, whole, strict=True))
        for one in keys
        if one is not None
    ]


def mark_dirty(settings: Settings, projection: Projection[Any], sink: str, keys: Sequence[tuple[Any, ...]]) -> None:
    """The worker writes these documents of that sink again, as its mirror has them; raises OperationError without one."""
    owners = Owners(layout_of(settings, projection), projection.workers)
    by_part: dict[str, list[tuple[Any, ...]]] = {}
    for key in keys:
        by_part.setdefault(projection.parts[owners.of_key(key)], []).append(key)
    for part, own in by_part.items():
        _mark(mirror_file(settings, part), projection, sink, own)


def _mark(path: Path, projection: Projection[Any], sink: str, keys: Sequence[tuple[Any, ...]]) -> None:
    if not path.exists():
        raise OperationError(
            f"There is no mirror {path}, so no document of {projection.id} can be marked: repair on the worker's machine."
        )
    names = [f"k{i}" for i in range(len(keys[0]))]
    values = ", ".join(f"json_extract(j.value, '$[{i}]')" for i in range(len(names)))
    seq = "(SELECT value FROM meta WHERE name = 'seq')"
    db = connect(str(path))
    try:
        with transaction(db):
            known = value(db, "SELECT id FROM sinks WHERE name = ?", (sink,))
            if known is None:
                raise OperationError(f"The mirror {path} knows no sink {sink}: start the worker with `cdc run`.")
            db.execute(
                f"INSERT INTO dirty(sink, {', '.join(names)}, seq, since, low) SELECT ?, {values}, {seq}, {seq}, 1"
                f" FROM json_each(?) j WHERE true ON CONFLICT DO UPDATE SET seq = excluded.seq",
                (known, json.dumps(keys)),
            )
    finally:
        db.close()


def _digits(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


class Rows(Protocol):
    """Rows of the source or of a mirror, their values as in events."""

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        """The rows whose columns `match` have one of the values."""
        ...


class MirrorRows:
    """Rows as a mirror has them."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        wanted = ", ".join(f"json_extract(value, '$[{i}]')" for i in range(len(match)))
        query = (
            f"SELECT {listed(columns)} FROM {quoted(table.name)} WHERE ({listed(match)}) IN"
            f" (SELECT {wanted} FROM json_each(?))"
        )
        return [dict(zip(columns, row, strict=True)) for row in self._db.execute(query, (json.dumps(values),))]


def rows_behind(
    shape: Shape, catalog: Catalog, rows: Rows, keys: Sequence[tuple[Any, ...]]
) -> dict[str, set[tuple[Any, ...]]]:
    """The keys of all rows that the documents of these root keys are made of, by table."""
    root = _key(catalog, shape)
    found: dict[str, set[tuple[Any, ...]]] = {}
    _add(found, shape, catalog, rows, root, keys)
    found.setdefault(shape.table, set()).update(keys)
    return found


def _add(
    found: dict[str, set[tuple[Any, ...]]],
    shape: Shape,
    catalog: Catalog,
    rows: Rows,
    match: Sequence[str],
    values: Sequence[tuple[Any, ...]],
) -> None:
    key = _key(catalog, shape)
    columns = dict.fromkeys([*key, *(name for relation in shape.relations for name in relation.local)])
    these = rows.matching(catalog.table(shape.table), list(columns), match, values)
    found.setdefault(shape.table, set()).update(tuple(row[name] for name in key) for row in these)
    for relation in shape.relations:
        below = {tuple(row[name] for name in relation.local) for row in these}
        below = {value for value in below if None not in value}
        if below:
            _add(found, relation.shape, catalog, rows, relation.remote, sorted(below, key=str))


def counted(settings: Settings, projection: Projection[Any], groups: Sequence[str]) -> set[tuple[Any, ...]]:
    """The root keys of what an aggregate's mirror counts in the groups with these keys, or fails to count."""
    keys = ", ".join(layout_of(settings, projection).root_key)
    these = "g IN (SELECT value FROM json_each(?1))"
    query = f"SELECT {keys} FROM contributions WHERE {these} UNION SELECT {keys} FROM failed WHERE {these}"
    found: set[tuple[Any, ...]] = set()
    for path in mirror_files(settings, projection).values():
        with closing(connect(str(path), readonly=True)) as db:
            found |= set(rows(db, query, (json.dumps(groups),)))
    return found


def refresh_behind(
    settings: Settings, projection: Projection[Any], catalog: Catalog, source: Rows, keys: Sequence[tuple[Any, ...]]
) -> RefreshReport:
    """Read all rows behind these documents again, those that the mirror has and those that the source has.

    Of an aggregate: the documents that it counts. Of several partitions each reads what it owns or may have.
    """
    layout = layout_of(settings, projection)
    owners, shape = Owners(layout, projection.workers), layout.shape
    wanted: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
    for number, part in enumerate(projection.parts):
        own = keys if layout.aggregate is not None else [key for key in keys if owners.of_key(key) == number]
        if not own:
            continue
        with closing(connect(str(mirror_file(settings, part)), readonly=True)) as db:
            there, here = (rows_behind(shape, catalog, rows, own) for rows in (source, MirrorRows(db)))
        for table in dict.fromkeys([*there, *here]):
            found = sorted(there.get(table, set()) | here.get(table, set()), key=str)
            if owners.by_key(table):
                found = [key for key in found if owners.of_row(owners.places[table] or (), key) == number]
            wanted.setdefault(part, {})[table] = found
    return refresh_parts(settings, projection, wanted)


def _key(catalog: Catalog, shape: Shape) -> tuple[str, ...]:
    return catalog.table(shape.table).primary_key or shape.key
