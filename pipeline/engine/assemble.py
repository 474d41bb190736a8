"""A shape compiled to one SQL statement that gives documents, as JSON text, for many root keys at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import apsw

from pipeline.authoring.documents import Constant
from pipeline.authoring.masks import STARS, Mask
from pipeline.authoring.shape import FieldShape, RelationShape, Shape
from pipeline.engine.layout import Layout, Table
from pipeline.engine.ordering import order_key
from pipeline.engine.sql import equal, literal, quoted
from pipeline.engine.withholding import Rules, compared, of_table

LONGEST_ID: Final = 512
"""Elasticsearch's bound of `_id`, in bytes; a longer key is hashed."""


def document_id(key: tuple[Any, ...]) -> str:
    """The canonical text of a root key: the value itself, or a JSON list of several; injective, at most 512 bytes."""
    text = str(key[0]) if len(key) == 1 else "[" + ",".join(_json(part) for part in key) + "]"
    if len(text) * 4 > LONGEST_ID and len(text.encode()) > LONGEST_ID:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return text


def _json(part: Any) -> str:
    return json.dumps(part, ensure_ascii=False)


def assembly_sql(layout: Layout, *, checked: bool, rules: Rules | None = None) -> str:
    """`SELECT key…, document` for the keys in `temp.batch`; a NULL document is one that is to be deleted.

    `checked` is the careful variant for a mirror that holds unknown values or lacks required parents: a further column
    tells (not 0) that the document can't be built yet. `rules`: a last column tells (not 0) that it must not go, built or not.
    """
    compiler = _Compiler(layout)
    root = layout.root
    body = compiler.object(layout.shape, "r", 0)
    keys = [f"k{i}" for i in range(len(root.key))]
    pending = compiler.pending(layout.shape, "r", 0) if checked else "0"
    present = f"r.{quoted(root.key[0])} IS NOT NULL"
    # what is unknown is a blob, which no JSON function takes
    known = f"{present} AND NOT {pending}" if checked else present
    withheld = ""
    if rules:
        must_not = compiler.withheld(layout.shape, rules, "r", 0)
        present, known = f"{present} AND NOT {must_not}", f"{known} AND NOT {must_not}"
        withheld = f", {must_not}"
    return (
        f"SELECT {', '.join('d.' + k for k in keys)}, CASE WHEN {known} THEN {body} END,"
        f" CASE WHEN {present} THEN {pending} ELSE 0 END{withheld}"
        f" FROM temp.batch d LEFT JOIN {quoted(root.name)} r ON {equal('r', root.key, 'd', keys)}"
    )


def masked(column: str, mask: Mask | None) -> str:
    """The SQL expression of what is shown of a text; `know_masks` makes its function known."""
    if mask is None:
        return column
    if mask.way == "hash":
        return f"hashed({column})"
    kept = f"{literal(STARS)} || substr({column}, -{mask.chars})" if mask.chars else literal(STARS)
    return (
        f"(CASE WHEN length({column}) > {mask.chars} THEN {kept} WHEN {column} IS NOT NULL THEN {literal(STARS)} END)"
    )


def know_masks(db: apsw.Connection, layout: Layout) -> None:
    """Make the function by which fields are hashed known to a connection that assembles documents."""
    mask = Mask("hash")

    def hashed(*values: Any) -> Any:
        return mask.of(values[0], layout.salt)

    db.create_scalar_function("hashed", hashed, 1, deterministic=True)


class _Compiler:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def object(self, shape: Shape, alias: str, depth: int) -> str:
        """An SQL expression whose value is the JSON object's text; plain concatenation, so nothing is parsed again."""
        parts: list[str] = []
        for member in shape.members:
            if isinstance(member, FieldShape) and member.derived:
                continue  # Python adds it
            if isinstance(member, RelationShape):
                expression = self._relation(member, alias, depth + 1)
            elif member.left_out_of is not None:
                expression = self._left_out(shape, member.left_out_of, alias, depth + 1)
            else:
                expression = self._field(member, alias, self.layout.tables[shape.table])
            name = _json(member.name)
            parts.append(f"{literal(('{' if not parts else ',') + name + ':')} || {expression}")
        return f"({' || '.join(parts) or literal('{')} || '}}')"

    def _field(self, field: FieldShape, alias: str, table: Table) -> str:
        if field.fixed is not None:
            return literal(_json(field.fixed.value))
        assert field.column is not None
        column = f"{alias}.{quoted(field.column)}"
        wire = table.wires[field.column]
        if field.repeated or wire.array or field.kind in ("json", "float", "int"):
            return f"coalesce({column}, 'null')"
        if field.kind == "bool":
            return f"(CASE WHEN {column} IS NULL THEN 'null' WHEN {column} THEN 'true' ELSE 'false' END)"
        if field.kind == "text":
            return f"json_quote({masked(column, field.mask)})"
        return f"coalesce('\"' || {column} || '\"', 'null')"

    def _relation(self, relation: RelationShape, above: str, depth: int) -> str:
        alias = f"{'m' if relation.many else 'o'}{depth}"
        body = self.object(relation.item, alias, depth)
        rows = self._rows(relation, alias, above)
        order = ", ".join(self._ordered(relation, alias))
        if not relation.many:
            # one row, unless the author joins columns that are not unique after all
            some = f" ORDER BY {order} LIMIT 1" if relation.remote != relation.shape.key else ""
            return f"coalesce((SELECT {body} FROM {rows}{some}), 'null')"
        if relation.limit is not None:
            rows = f"(SELECT {alias}.* FROM {rows} ORDER BY {order} LIMIT {relation.limit}) {alias}"
        return f"'[' || coalesce((SELECT group_concat({body}, ',' ORDER BY {order}) FROM {rows}), '') || ']'"

    def _left_out(self, shape: Shape, of: str, above: str, depth: int) -> str:
        relation = next(r for r in shape.relations if r.name == of)
        rows = self._rows(relation, f"m{depth}", above)
        return f"max(0, (SELECT count(*) FROM {rows}) - {relation.limit})"

    def _rows(self, relation: RelationShape, alias: str, above: str) -> str:
        """The rows that a relation shows, as `FROM` and `WHERE` of a query whose `alias` they are."""
        item = relation.item
        source = f"{quoted(item.table)} {alias}"
        if relation.links:
            link, onward = f"l{alias}", relation.shape.relations[0]
            joined = equal(alias, onward.remote, link, onward.local)
            source = f"{quoted(relation.shape.table)} {link} CROSS JOIN {source} ON {joined}"
            where = equal(link, relation.remote, above, relation.local)
        else:
            where = equal(alias, relation.remote, above, relation.local)
        tests = [where, *(self._one_of(f"{alias}.{quoted(name)}", values) for name, values in relation.where)]
        return f"{source} WHERE {' AND '.join(tests)}"

    @staticmethod
    def _one_of(column: str, values: Sequence[Constant]) -> str:
        known = [_constant(value) for value in values if value is not None]
        tests = [f"{column} IN ({', '.join(known)})"] if known else []
        tests += [f"{column} IS NULL"] if None in values else []
        return f"({' OR '.join(tests) or '0'})"

    def _ordered(self, relation: RelationShape, alias: str) -> list[str]:
        """As the source orders the values, nulls after all others; text by its code points (Postgres's collation "C")."""
        table = self.layout.tables[relation.item.table]
        terms = []
        for name in dict.fromkeys((*relation.order_by, *relation.item.key)):
            wire = table.wires.get(name)
            term = order_key(f"{alias}.{quoted(name)}", None if wire is None or wire.array else wire.kind)
            if name in relation.descending:
                terms.append(f"{term} DESC NULLS FIRST")
            else:
                terms.append(term if name in table.key else f"{term} NULLS LAST")
        return terms

    def withheld(self, shape: Shape, rules: Rules, alias: str, depth: int) -> str:
        """Whether the document shows a row that must not go, whatever `keep()` says of it."""
        tests = [
            f"coalesce({self._one_of(compared(f'{alias}.{quoted(column)}', values), values)}, 0)"
            for column, values in of_table(rules, shape.table).items()
        ]
        for relation in shape.relations:
            below = f"{'m' if relation.many else 'o'}{depth + 1}"
            if (inner := self.withheld(relation.item, rules, below, depth + 1)) != "(0)":
                tests.append(f"EXISTS(SELECT 1 FROM {self._shown(relation, below, alias)} AND {inner})")
        return f"({' OR '.join(tests) or '0'})"

    def _shown(self, relation: RelationShape, alias: str, above: str) -> str:
        rows = self._rows(relation, alias, above)
        limit = relation.limit if relation.many else 1
        if limit is None:
            return rows
        order = ", ".join(self._ordered(relation, alias))
        return f"(SELECT {alias}.* FROM {rows} ORDER BY {order} LIMIT {limit}) {alias} WHERE true"

    # ---- the careful variant: is anything unknown, or is a required parent missing? ------------------------

    def pending(self, shape: Shape, alias: str, depth: int) -> str:
        checks = [
            f"(typeof({alias}.{quoted(column)}) = 'blob')"
            for column in sorted({f.column for f in shape.copied if f.column is not None})
        ]
        for relation in shape.relations:
            checks += [f"(typeof({alias}.{quoted(c)}) = 'blob')" for c in relation.local]
            checks.append(self._pending_relation(relation, alias, depth + 1))
        return f"({' + '.join(checks) or '0'})"

    def _pending_relation(self, relation: RelationShape, above: str, depth: int) -> str:
        alias = f"{'m' if relation.many else 'o'}{depth}"
        where = equal(alias, relation.remote, above, relation.local)
        below = self.pending(relation.shape, alias, depth)
        if not relation.links:
            chosen = (*relation.order_by, *(name for name, _ in relation.where))
            below += "".join(f" + (typeof({alias}.{quoted(c)}) = 'blob')" for c in chosen)
        missing = "0" if relation.many or relation.nullable else "1"
        return f"coalesce((SELECT sum({below}) FROM {quoted(relation.shape.table)} {alias} WHERE {where}), {missing})"


def _constant(value: Constant) -> str:
    return literal(value) if isinstance(value, str) else str(int(value or 0))


def needs_check(shape: Shape) -> bool:
    """Whether some parent is required, so that a document may have to wait for it."""
    return any(not r.many and not r.nullable for level in shape.walk() for r in level.relations)


def keys_sql(keys: Sequence[str]) -> str:
    """The temporary table that `assembly_sql` reads its root keys from."""
    return f"CREATE TEMP TABLE IF NOT EXISTS batch({', '.join(keys)}, PRIMARY KEY({', '.join(keys)}))"
