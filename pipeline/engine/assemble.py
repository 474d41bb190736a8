"""A shape compiled to one SQL statement that gives documents, as JSON text, for many root keys at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from pipeline.authoring.shape import FieldShape, RelationShape, Shape
from pipeline.engine.layout import Layout, Table
from pipeline.engine.ordering import order_key
from pipeline.engine.sql import equal, literal, quoted

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


def assembly_sql(layout: Layout, *, checked: bool) -> str:
    """`SELECT key…, document` for the keys in `temp.batch`; a NULL document is one that is to be deleted.

    `checked` is the careful variant for a mirror that holds unknown values or lacks required parents: a further column
    tells (not 0) that the document can't be built yet.
    """
    compiler = _Compiler(layout)
    root = layout.root
    body = compiler.object(layout.shape, "r", 0)
    keys = [f"k{i}" for i in range(len(root.key))]
    pending = compiler.pending(layout.shape, "r", 0) if checked else "0"
    present = f"r.{quoted(root.key[0])} IS NOT NULL"
    # what is unknown is a blob, which no JSON function takes
    known = f"{present} AND NOT {pending}" if checked else present
    return (
        f"SELECT {', '.join('d.' + k for k in keys)}, CASE WHEN {known} THEN {body} END,"
        f" CASE WHEN {present} THEN {pending} ELSE 0 END"
        f" FROM temp.batch d LEFT JOIN {quoted(root.name)} r ON {equal('r', root.key, 'd', keys)}"
    )


class _Compiler:
    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def object(self, shape: Shape, alias: str, depth: int) -> str:
        """An SQL expression whose value is the JSON object's text; plain concatenation, so nothing is parsed again."""
        parts: list[str] = []
        for member in shape.members:
            if isinstance(member, FieldShape) and member.column is None:
                continue  # derived: Python adds it
            expression = (
                self._field(member, alias, self.layout.tables[shape.table])
                if isinstance(member, FieldShape)
                else self._relation(member, alias, depth + 1)
            )
            name = _json(member.name)
            parts.append(f"{literal(('{' if not parts else ',') + name + ':')} || {expression}")
        return f"({' || '.join(parts) or literal('{')} || '}}')"

    def _field(self, field: FieldShape, alias: str, table: Table) -> str:
        assert field.column is not None
        column = f"{alias}.{quoted(field.column)}"
        wire = table.wires[field.column]
        if field.repeated or wire.array or field.kind in ("json", "float", "int"):
            return f"coalesce({column}, 'null')"
        if field.kind == "bool":
            return f"(CASE {column} WHEN 1 THEN 'true' WHEN 0 THEN 'false' ELSE 'null' END)"
        if field.kind == "text":
            return f"json_quote({column})"
        return f"coalesce('\"' || {column} || '\"', 'null')"

    def _relation(self, relation: RelationShape, above: str, depth: int) -> str:
        child = relation.shape
        alias = f"{'m' if relation.many else 'o'}{depth}"
        body = self.object(child, alias, depth)
        where = equal(alias, relation.remote, above, relation.local)
        table = quoted(child.table)
        if not relation.many:
            return f"coalesce((SELECT {body} FROM {table} {alias} WHERE {where}), 'null')"
        order = ", ".join(self._ordered(relation, alias))
        return (
            f"'[' || coalesce((SELECT group_concat({body}, ',' ORDER BY {order}) FROM {table} {alias}"
            f" WHERE {where}), '') || ']'"
        )

    def _ordered(self, relation: RelationShape, alias: str) -> list[str]:
        """As the source orders the values, nulls last; text by its code points (Postgres's collation "C")."""
        table = self.layout.tables[relation.shape.table]
        terms = []
        for name in dict.fromkeys((*relation.order_by, *relation.shape.key)):
            wire = table.wires.get(name)
            term = order_key(f"{alias}.{quoted(name)}", None if wire is None or wire.array else wire.kind)
            terms.append(term if name in table.key else f"{term} NULLS LAST")
        return terms

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
        below += "".join(f" + (typeof({alias}.{quoted(c)}) = 'blob')" for c in relation.order_by)
        missing = "0" if relation.many or relation.nullable else "1"
        return f"coalesce((SELECT sum({below}) FROM {quoted(relation.shape.table)} {alias} WHERE {where}), {missing})"


def needs_check(shape: Shape) -> bool:
    """Whether some parent is required, so that a document may have to wait for it."""
    return any(not r.many and not r.nullable for level in shape.walk() for r in level.relations)


def keys_sql(keys: Sequence[str]) -> str:
    """The temporary table that `assembly_sql` reads its root keys from."""
    return f"CREATE TEMP TABLE IF NOT EXISTS batch({', '.join(keys)}, PRIMARY KEY({', '.join(keys)}))"
