"""What documents hold, asked of the source by SQL of its own: the truth that `verify` compares with.

Nothing here is shared with the engine: rows are joined by Postgres, in one snapshot whose position in the log is known.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from typing import Any, Final
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import dict_row, tuple_row
from psycopg.types.json import set_json_loads

from connectors.sources.masks import salted
from connectors.sources.postgres import connected, reason, where
from connectors.sources.postgres_rows import Rows, plain, written
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.shape import RelationShape, Shape
from pipeline.errors import SourceError, SourceUnavailable
from pipeline.events.sourcelog import position_of

Key = tuple[str, ...]
"""A root key as Postgres writes its columns."""

ARGUMENTS: Final = 100
"""The most arguments a Postgres function takes."""
CONNECT_TIMEOUT: Final = 10
SESSION: Final = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET bytea_output = 'hex'; SET extra_float_digits = 1"
_UNREADABLE = re.compile(
    r"(bit varying|bit|line|lseg|box|path|polygon|circle|point)(\(\d+\))?(\[\])?|interval\b.*\[\]|bit(\(1\))?\[\]"
)


def readable(column: Column) -> bool:
    """Whether the value that an event has of this column can be told from SQL."""
    name = column.base if column.base not in (None, "enum", "composite", "range", "multirange") else column.type
    return name in ("bit", "bit(1)") or not _UNREADABLE.fullmatch(name or "")


class PostgresDocuments:
    """The documents of one shape, as the database says.

    `patience`: seconds that a snapshot waits for transactions that are open, of any database of the server.
    """

    def __init__(self, dsn: str, shape: Shape, catalog: Catalog, *, patience: float = 10.0) -> None:
        self.dsn, self.shape, self.catalog, self.patience = dsn, shape, catalog, patience
        self.root = catalog.table(shape.table)
        self.key = self.root.primary_key or shape.key

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One state of the source; raises SourceError where no slot can be made, SourceUnavailable where it is away."""
        with held(self.dsn, self.patience) as (connection, position):
            salted(connection, (column for table in self.catalog.tables.values() for column in table.columns))
            yield Snapshot(self, connection, position)


@contextmanager
def snapshot_rows(dsn: str, *, patience: float) -> Iterator[tuple[SnapshotRows, int]]:
    """A reader of the rows of one state of the source, and its position; raises as `snapshot` does."""
    with held(dsn, patience) as (connection, position):
        yield SnapshotRows(connection), position


class SnapshotRows(Rows):
    """Rows of one moment, asked for by values as events have them, of this source or of another."""

    def matching(
        self, table: Table, columns: Sequence[str], match: Sequence[str], values: Sequence[Sequence[Any]]
    ) -> list[dict[str, Any]]:
        """The rows whose `match` columns have one of these values; what is no value of such a column is in no row."""
        if not values:
            return []
        given = [[_given(table.column(name), value) for name, value in zip(match, row, strict=True)] for row in values]
        try:
            with self._connection.transaction():
                return super().matching(table, columns, match, given)
        except psycopg.DataError:
            if len(values) == 1:
                return []
            half = len(values) // 2
            return self.matching(table, columns, match, values[:half]) + self.matching(
                table, columns, match, values[half:]
            )

    def after(self, table: Table, columns: Sequence[str], last: Sequence[Any], limit: int) -> list[dict[str, Any]]:
        """The rows that follow a primary key, in its order; the first ones where none is given."""
        key = table.primary_key
        # a type's name comes from the catalog, where Postgres itself has quoted it
        typed = [sql.SQL("%s::{}").format(sql.SQL(table.column(name).type)) for name in key]
        rest = sql.SQL(" WHERE ({}) > ({})").format(_names(key), sql.SQL(", ").join(typed))
        query = sql.SQL("{}{} ORDER BY {} LIMIT {}").format(
            self._select(table, columns), rest if last else sql.SQL(""), _names(key), sql.Literal(limit)
        )
        given = [_given(table.column(name), value) for name, value in zip(key, last, strict=False)]
        return self._read(query, [None if value is None else str(value) for value in given])


def _given(column: Column, value: Any) -> Any:
    """A value of an event as Postgres takes it."""
    if plain(column.type) == "bytea" and isinstance(value, str):
        return "\\x" + base64.b64decode(value).hex()
    return value


def _names(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


class Snapshot:
    """Reads keys and documents of one moment; one thread at a time."""

    def __init__(self, of: PostgresDocuments, connection: psycopg.Connection[Any], position: int) -> None:
        self.position = position
        """What committed before this place in the log is seen, and nothing else."""
        self._of, self._connection = of, connection
        set_json_loads(partial(json.loads, parse_float=Decimal), connection)
        self._query = documents_query(of.shape, of.catalog)

    def keys(self, batch: int) -> Iterator[list[tuple[Key, list[Any]]]]:
        """All root keys in their order: as Postgres writes them, and as events do."""
        table, key = self._of.root, self._of.key
        query = sql.SQL("SELECT {}, {} FROM {} a0 ORDER BY {}").format(
            _texts(key), _wires(table, key), _table(table.name), _columns(key, "a0")
        )
        with self._connection.cursor(name=f"cdc_keys_{uuid4().hex[:8]}", row_factory=tuple_row) as cursor:
            cursor.itersize = batch
            cursor.execute(query, ())
            while found := cursor.fetchmany(batch):
                yield [(tuple(text), wire) for text, wire in found]

    def documents(self, keys: Sequence[Key]) -> list[tuple[Key, list[Any], dict[str, Any]]]:
        """Key, key as in events, and document of those keys that there are; what is no key of this table is left out."""
        if not keys:
            return []
        columns = [[key[i] for key in keys] for i in range(len(self._of.key))]
        try:
            with self._connection.transaction(), self._connection.cursor(row_factory=tuple_row) as cursor:
                found = cursor.execute(self._query, columns).fetchall()
        except psycopg.DataError:
            # some text is no value of the key's type: find it, and go on without
            if len(keys) == 1:
                return []
            half = len(keys) // 2
            return self.documents(keys[:half]) + self.documents(keys[half:])
        return [(tuple(text), wire, document) for text, wire, document in found]


def documents_query(shape: Shape, catalog: Catalog) -> sql.Composed:
    """`SELECT key, key as in events, document` for the keys given as one text array for each column of the key."""
    table = catalog.table(shape.table)
    key = table.primary_key or shape.key
    # a type's name comes from the catalog, where Postgres itself has quoted it
    arrays = [sql.SQL("%s::text[]::{}[]").format(sql.SQL(table.column(name).type)) for name in key]
    return sql.SQL("SELECT {}, {}, {} FROM {} a0 WHERE ({}) IN (SELECT * FROM unnest({}))").format(
        _texts(key), _wires(table, key), _object(shape, catalog, 0), _table(table.name), _columns(key, "a0"),
        sql.SQL(", ").join(arrays),
    )  # fmt: skip


def _object(shape: Shape, catalog: Catalog, depth: int) -> sql.Composable:
    table, alias = catalog.table(shape.table), f"a{depth}"
    pairs: list[sql.Composable] = []
    for member in shape.members:
        if isinstance(member, RelationShape):
            pairs += [sql.Literal(member.name), _relation(member, table, catalog, depth)]
        elif member.column is not None:
            pairs += [sql.Literal(member.name), _value(table.column(member.column), alias)]
        elif member.left_out_of is not None:
            of = next(relation for relation in shape.relations if relation.name == member.left_out_of)
            more = sql.SQL("greatest(0, (SELECT count(*) FROM {}) - {})").format(
                _rows(of, table, catalog, depth), sql.Literal(of.limit)
            )
            pairs += [sql.Literal(member.name), more]
    objects = [pairs[start : start + ARGUMENTS] for start in range(0, len(pairs), ARGUMENTS)] or [[]]
    return sql.SQL(" || ").join(sql.SQL("jsonb_build_object({})").format(sql.SQL(", ").join(one)) for one in objects)


def _value(column: Column, alias: str) -> sql.Composable:
    name = sql.Identifier(alias, column.name)
    if not readable(column):
        return sql.SQL("NULL")
    return written(column, name)


def _relation(relation: RelationShape, above: Table, catalog: Catalog, depth: int) -> sql.Composable:
    alias, table = f"a{depth + 1}", catalog.table(relation.item.table)
    body, rows = _object(relation.item, catalog, depth + 1), _rows(relation, above, catalog, depth)
    order = sql.SQL(", ").join(
        sql.SQL("{} DESC" if name in relation.descending else "{}").format(_ordered(table.column(name), alias))
        for name in dict.fromkeys((*relation.order_by, *relation.item.key))
    )
    if not relation.many:
        return sql.SQL("(SELECT {} FROM {} ORDER BY {} LIMIT 1)").format(body, rows, order)
    if relation.limit is not None:
        rows = sql.SQL("(SELECT {0}.* FROM {1} ORDER BY {2} LIMIT {3}) {0}").format(
            sql.SQL(alias), rows, order, sql.Literal(relation.limit)
        )
    return sql.SQL("coalesce((SELECT jsonb_agg({} ORDER BY {}) FROM {}), '[]'::jsonb)").format(body, order, rows)


def _rows(relation: RelationShape, above: Table, catalog: Catalog, depth: int) -> sql.Composable:
    """`FROM` and `WHERE` of the rows that a relation shows, as `a<depth + 1>`."""
    alias, upper = f"a{depth + 1}", f"a{depth}"
    item = catalog.table(relation.item.table)
    source, first, table = sql.SQL("{} {}").format(_table(item.name), sql.SQL(alias)), alias, item
    if relation.links:
        first, table, onward = f"l{depth + 1}", catalog.table(relation.shape.table), relation.shape.relations[0]
        on = _joined(item, alias, onward.remote, table, first, onward.local)
        source = sql.SQL("{} {} JOIN {} ON {}").format(_table(table.name), sql.SQL(first), source, on)
    tests = [_joined(table, first, relation.remote, above, upper, relation.local)]
    tests += [_one_of(sql.Identifier(alias, name), values) for name, values in relation.where]
    return sql.SQL("{} WHERE {}").format(source, sql.SQL(" AND ").join(tests))


def _joined(left: Table, a: str, columns: Sequence[str], right: Table, b: str, others: Sequence[str]) -> sql.Composable:
    return sql.SQL(" AND ").join(
        _equal(left.column(one), a, right.column(other), b) for one, other in zip(columns, others, strict=True)
    )


def _one_of(column: sql.Composable, values: Sequence[Any]) -> sql.Composable:
    known = sql.SQL(", ").join(sql.Literal(value) for value in values if value is not None)
    tests = [sql.SQL("{} IN ({})").format(column, known)] if any(value is not None for value in values) else []
    tests += [sql.SQL("{} IS NULL").format(column)] if None in values else []
    return sql.SQL("({})").format(sql.SQL(" OR ").join(tests) if tests else sql.SQL("false"))


def _equal(left: Column, a: str, right: Column, b: str) -> sql.Composable:
    """Both sides in their own types, so that indexes serve; as text where Postgres could not compare them."""
    same = left.type == right.type or kinds_of(left).kinds[0] == kinds_of(right).kinds[0]
    return sql.SQL("{} = {}" if same else "{}::text = {}::text").format(
        sql.Identifier(a, left.name), sql.Identifier(b, right.name)
    )


def _ordered(column: Column, alias: str) -> sql.Composable:
    """Text by its bytes: no language decides the order of a document's list."""
    name = sql.Identifier(alias, column.name)
    return sql.SQL('{}::text COLLATE "C"').format(name) if kinds_of(column).kinds[0] == "text" else name


def _texts(key: Sequence[str]) -> sql.Composable:
    return sql.SQL("ARRAY[{}]").format(
        sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier("a0", k)) for k in key)
    )


def _wires(table: Table, key: Sequence[str]) -> sql.Composable:
    return sql.SQL("jsonb_build_array({})").format(sql.SQL(", ").join(_spelled(table.column(k)) for k in key))


def _spelled(column: Column) -> sql.Composable:
    """A key's value as documents have it: no Z where there is no zone, no fraction that is zero."""
    value, kind = _value(column, "a0"), kinds_of(column).kinds[0]
    if kind == "datetime" and "with time zone" in (column.base or column.type):
        return sql.SQL(r"regexp_replace({}, '\.0+Z$', 'Z')").format(value)
    return sql.SQL("regexp_replace({}, 'Z$', '')").format(value) if kind in ("datetime", "date", "time") else value


def _columns(names: Sequence[str], alias: str) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)


def _table(name: str) -> sql.Composable:
    schema, _, table = name.partition(".")
    return sql.Identifier(schema, table)


@contextmanager
def held(dsn: str, patience: float) -> Iterator[tuple[psycopg.Connection[dict[str, Any]], int]]:
    """A connection that sees one moment, and its place in the log: what committed before it is seen, and nothing else.

    Raises SourceError where no slot can be made, SourceUnavailable where the source is away.
    """
    with connected(dsn) as connection:
        connection.execute(SESSION.encode())
        connection.commit()
        with _exported(dsn, patience) as (position, name):
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(name)))
        # the slot is gone here: it keeps no log while rows are read
        yield connection, position


@contextmanager
def _exported(dsn: str, patience: float) -> Iterator[tuple[int, str]]:
    """A temporary slot: the position from which its stream would start, and the snapshot of just before that."""
    options = f"{conninfo_to_dict(dsn).get('options') or ''} -c lock_timeout={max(1, round(patience * 1000))}"
    try:
        connection = psycopg.connect(
            make_conninfo(dsn, replication="database", options=options.strip(), application_name="cdc-verify"),
            autocommit=True, connect_timeout=CONNECT_TIMEOUT, row_factory=dict_row,
        )  # fmt: skip
    except psycopg.OperationalError as error:
        raise SourceUnavailable(
            f"The source database {where(dsn)} takes no replication connection ({reason(error, dsn)}): check"
            " max_wal_senders, pg_hba.conf, and that the user in source.dsn has REPLICATION."
        ) from None
    with connection:
        name = f"cdc_verify_{uuid4().hex[:12]}"
        made = connection.pgconn.exec_(
            f"CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput (SNAPSHOT 'export')".encode()
        )
        if made.status != psycopg.pq.ExecStatus.TUPLES_OK:
            raise _refused(made.error_message.decode("utf-8", "replace"), dsn, patience)
        position, snapshot = made.get_value(0, 1), made.get_value(0, 2)
        assert position is not None and snapshot is not None
        yield position_of(position.decode()), snapshot.decode()


def _refused(said: str, dsn: str, patience: float) -> SourceError:
    text = said.partition("\n")[0].removeprefix("ERROR:").strip()
    if "lock timeout" in text:
        return SourceUnavailable(
            f"The server of {where(dsn)} has had a transaction open for more than {patience:.0f} s, and a slot starts only"
            " once those have ended that were open: look for it in pg_stat_activity (xact_start), or give more --timeout."
        )
    return SourceError(
        f"The source database {where(dsn)} made no temporary slot ({text}): check wal_level = logical,"
        " max_replication_slots, and that the user in source.dsn has REPLICATION."
    )
