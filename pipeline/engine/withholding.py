"""Rows that must not go to a sink: a document made of one is deleted there, and counted."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from pipeline.authoring.documents import Constant
from pipeline.authoring.shape import Shape
from pipeline.engine.layout import Layout
from pipeline.engine.sql import listed, quoted, value

if TYPE_CHECKING:
    from pipeline.engine.mirror import Mirror

Rules = Mapping[str, Sequence[Constant]]
"""By column, `shop.customers.region`, the values of the rows that must not go."""
_KINDS: Final[dict[type, tuple[str, ...]]] = {bool: ("bool", "flag"), int: ("int", "flag", "unsigned"), str: ("text",)}
"""What a value of a rule can be compared with."""


def of_table(rules: Rules, table: str) -> dict[str, Sequence[Constant]]:
    """The rules on a table, by its columns; blanks at the end of a text do not count, for `char(n)` has them."""
    named = {name.rpartition(".")[2]: values for name, values in rules.items() if name.rpartition(".")[0] == table}
    return {column: [_bare(value) for value in values] for column, values in named.items()}


def concerning(layout: Layout, rules: Rules) -> Rules:
    """Those of the rules that are on tables which these documents are made of."""
    return {name: values for name, values in rules.items() if name.rpartition(".")[0] in layout.tables}


def _bare(value: Any) -> Any:
    return value.rstrip(" ") if isinstance(value, str) else value


def compared(column: str, values: Sequence[Constant]) -> str:
    """The SQL expression that is compared with values of `of_table`."""
    return f"rtrim({column})" if any(isinstance(value, str) for value in values) else column


def unkept(layout: Layout, rules: Rules) -> Iterator[tuple[str, Shape]]:
    """The rules that could not be kept for these documents: what to do, and the level of the document that it is about."""
    for level in dict.fromkeys(layout.shape.walk()):
        for column, values in of_table(rules, level.table).items():
            name = f"{level.table}.{column}"
            if layout.aggregate is not None:
                yield (
                    f"rows of {level.table} are withheld, and groups have rows of all kinds; leave them out by keep()",
                    level,
                )
            elif not any(field.column == column and not field.repeated for field in level.copied):
                yield (
                    f"rows are withheld by {name}, which {level.name} does not read; add a field of it, {column}: str = hidden()",
                    level,
                )
            elif any(layout.tables[level.table].wires[column].kind not in _KINDS[type(value)] for value in values):
                said = ", ".join(map(repr, values))
                yield f"rows are withheld where {name} is {said}, which it never is; write values of its type", level


def withheld(shape: Shape, raw: Mapping[str, Any], rules: Rules) -> bool:
    """Whether a document made of these rows (by the names of its fields, hidden ones too) must not go."""
    own = of_table(rules, shape.table)
    if any(_bare(raw[field.name]) in own[field.column] for field in shape.copied if field.column in own):
        return True
    for relation in shape.relations:
        below = raw[relation.name]
        rows = below if relation.many else () if below is None else (below,)
        if any(withheld(relation.item, row, rules) for row in rows):
            return True
    return False


# ---- in the mirror -----------------------------------------------------------------------------------------


def apply_rules(mirror: Mirror, sink: int, rules: Rules) -> None:
    """What holds for a sink from now on. Where it is another rule than before, every document is written there again.

    Not for groups: their worker does not start where a rule concerns them.
    """
    name = f"withheld/{sink}"
    said = json.dumps({column: list(rules[column]) for column in sorted(rules)}) if rules else None
    if mirror.get(name) == said:
        return
    keys, root = ", ".join(mirror.layout.written_key), mirror.layout.root
    with mirror.checkpoint() as seq:
        mirror.db.execute(
            f"CREATE TABLE IF NOT EXISTS withheld(sink INTEGER, {keys}, PRIMARY KEY(sink, {keys})) WITHOUT ROWID"
        )
        mirror.db.execute("DELETE FROM withheld WHERE sink = ?", (sink,))
        mirror.db.execute(
            f"INSERT INTO dirty(sink, {keys}, seq, since, low) SELECT ?1, {listed(root.key)}, ?2, ?2, 1"
            f" FROM {quoted(root.name)} NOT INDEXED WHERE true ON CONFLICT(sink, {keys}) DO UPDATE SET seq = excluded.seq",
            (sink, seq),
        )
        mirror.set(name, said)


def settle(db: Any, same: str, done: Sequence[tuple[Any, ...]], held: Collection[tuple[Any, ...]]) -> None:
    """Which of the documents written (sink and key) were withheld; inside the checkpoint that settles them."""
    db.executemany(f"DELETE FROM withheld WHERE {same}", done)
    kept = [one for one in done if one[1:] in held]
    if kept:
        db.executemany(f"INSERT INTO withheld VALUES({', '.join('?' * len(kept[0]))})", kept)


def count(db: Any, sink: int) -> int:
    """How many documents are kept from a sink."""
    if value(db, "SELECT 1 FROM sqlite_schema WHERE name = 'withheld'") is None:
        return 0
    return int(value(db, "SELECT count(*) FROM withheld WHERE sink = ?", (sink,)))
