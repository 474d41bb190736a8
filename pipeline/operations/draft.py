"""Draft: the text of a new projection and of its test, from a table's columns, as an author would begin."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pipeline.authoring.catalog import UNREADABLE, Column, Table
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.documents import Document
from pipeline.authoring.shape import Kind

IMPORTS: Final = {
    "Any": "typing",
    "Decimal": "decimal",
    "UTC": "datetime",
    "UUID": "uuid",
    "date": "datetime",
    "datetime": "datetime",
    "time": "datetime",
    "timedelta": "datetime",
}
_SAMPLES: Final[dict[Kind, str]] = {
    "int": "1",
    "decimal": "Decimal(1)",
    "float": "0.5",
    "bool": "True",
    "text": '"a"',
    "datetime": "datetime(2026, 1, 1, 12, 0, tzinfo=UTC)",
    "date": "date(2026, 1, 1)",
    "time": "time(12, 0)",
    "interval": "timedelta(days=1)",
    "uuid": "UUID(int=1)",
    "bytes": 'b"a"',
    "json": '{"a": 1}',
}
TEST = '''\
"""The read model `{name}`: what its documents say, on the real engine; no Kafka, nothing to start."""

{imports}from pipeline.testing import Scenario

from {package}.{module} import {document}, {module}


def a_row() -> Scenario[{document}]:
    source = Scenario({module})
    source.insert(
        "{table}",
{given}
    )
    return source


def test_a_row_becomes_a_document() -> None:
    document = a_row().document({key})

{asserts}


def test_a_row_that_is_gone_leaves_no_document() -> None:
    source = a_row()

    source.delete("{table}", {whole_key})

    assert source.documents() == {{}}


def test_any_delivery_order_gives_the_same_documents() -> None:
    a_row().assert_converges()
'''


@dataclass(frozen=True, slots=True)
class Draft:
    """The texts, and the name of the file they go to."""

    module: str
    projection: str
    test: str


def draft(table: Table, name: str, *, package: str = "projections") -> Draft:
    """A flat projection of the table with all its columns, and a test of it; `package` is the folder of the first."""
    return Draft(_module(name), projection_text(table, name), _test_text(table, name, package))


def _module(name: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", name)


def _test_text(table: Table, name: str, package: str) -> str:
    columns = [column for column in table.columns if not column.generated]
    samples = {column.name: _sample(column) for column in columns}
    given = [_argument(column.name, samples[column.name]) for column in columns]
    asserts = [
        f"    assert {_compared(column, samples[column.name])}" for column in columns if column.base != UNREADABLE
    ]
    key = ", ".join(samples[part] for part in table.primary_key)
    document = _class_name(name)
    return TEST.format(
        name=name,
        module=_module(name),
        package=package,
        document=document,
        table=table.name,
        imports=_imports([*samples.values()]) + "\n" if _imports([*samples.values()]) else "",
        given="\n".join(f"        {line}," for line in given),
        asserts="\n".join(asserts),
        key=key,
        whole_key=key if len(table.primary_key) == 1 else f"({key})",
    )


def _sample(column: Column) -> str:
    kinds = kinds_of(column)
    if column.base == UNREADABLE:
        return _SAMPLES["text"]
    if kinds.repeated:
        return f"[{_item(kinds.kinds[0], column.type.removesuffix('[]'))}]"
    return _item(kinds.kinds[0], column.base or column.type)


def _item(kind: Kind, type: str) -> str:
    if kind in ("datetime", "time"):
        zoned = type.endswith("with time zone") or type.partition("(")[0] == "timestamp"  # MariaDB's
        moment = "datetime(2026, 1, 1, 12, 0" if kind == "datetime" else "time(12, 0"
        return moment + (", tzinfo=UTC)" if zoned else ")")
    if size := re.fullmatch(r"character\((\d+)\)", type):
        return f'"{"a".ljust(int(size[1]))}"'
    return _SAMPLES[kind]


def _argument(column: str, sample: str) -> str:
    plain = column.isidentifier() and not keyword.iskeyword(column) and column != "table"
    return f"{column}={sample}" if plain else f'**{{"{column}": {sample}}}'


def _compared(column: Column, sample: str) -> str:
    field = f"document.{_identifier(column.name)}"
    if sample == "True":
        return f"{field} is True"
    return f"{field} == ({sample[1:-1]},)" if kinds_of(column).repeated else f"{field} == {sample}"


def _imports(texts: Iterable[str]) -> str:
    used = {word for text in texts for word in re.findall(r"\w+", text) if word in IMPORTS}
    modules: dict[str, list[str]] = {}
    for word in sorted(used, key=_isorted):
        modules.setdefault(IMPORTS[word], []).append(word)
    return "".join(f"from {module} import {', '.join(words)}\n" for module, words in sorted(modules.items()))


def _isorted(word: str) -> tuple[int, str]:
    """Constants, classes, functions: the order in which ruff sorts names."""
    return (0 if word.isupper() else 1 if word[0].isupper() else 2), word


def projection_text(table: Table, name: str) -> str:
    """A flat projection of a table as an author would write it."""
    columns = [column for column in table.columns if not column.generated and column.base != UNREADABLE]
    annotations = [kinds_of(column).annotation(nullable=column.nullable) for column in columns]
    lines = [_field(column, annotation) for column, annotation in zip(columns, annotations, strict=True)]
    renamed = any("= column(" in line for line in lines)
    imports = _imports(annotations)
    own = ", ".join(["Document", *(["column"] if renamed else []), "elasticsearch", "projection"])
    document = _class_name(name)
    key = "" if table.primary_key == ("id",) else f", key={_key(table.primary_key)}"
    head = f'"""{document}: one document for each row of {table.name}."""\n\n'
    head += f"{imports}\n" if imports else ""
    return (
        f"{head}from pipeline import {own}\n\n\n"
        f'class {document}(Document, source="{table.name}"{key}):\n' + "\n".join(lines) + "\n\n\n"
        f'{_module(name)} = projection({document}, to=elasticsearch("{name}"))\n'
    )


def _field(column: Column, annotation: str) -> str:
    name = _identifier(column.name)
    return f"    {name}: {annotation}" + (
        "" if name == column.name else f" = column({column.name!r})".replace("'", '"')
    )


def _identifier(column: str) -> str:
    name = re.sub(r"\W", "_", column).lstrip("_") or "field"
    if name[0].isdigit():
        name = f"n{name}"
    # what pydantic's own attributes or Python's words would clash with
    return f"{name}_" if keyword.iskeyword(name) or hasattr(Document, name) or name.startswith("model_") else name


def _class_name(name: str) -> str:
    words = re.split(r"[_-]+", name)
    last = words[-1]
    if last.endswith("ies"):
        words[-1] = last[:-3] + "y"
    elif last.endswith("s") and not last.endswith("ss"):
        words[-1] = last[:-1]
    return "".join(word.capitalize() for word in words if word) + "Document"


def _key(key: Sequence[str]) -> str:
    names = [f'"{name}"' for name in key]
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
