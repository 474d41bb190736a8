"""Scaffold: a project of one's own, with one flat projection that works as it is."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.documents import Document
from pipeline.errors import OperationError

IMPORTS = {
    "Any": "typing",
    "Decimal": "decimal",
    "UUID": "uuid",
    "date": "datetime",
    "datetime": "datetime",
    "time": "datetime",
    "timedelta": "datetime",
}
SETTINGS = """\
# The settings of this project; `cdc config show` prints all. CDC_… in the environment wins (CDC_SOURCE__DSN is source.dsn).
project = "{project}"

# Where nothing is said, the local stack of this folder is used: `cdc stack up`. Passwords belong into the environment.
# [source]
# dsn = "postgresql://reader@db.example:5432/shop"
# [kafka]
# bootstrap = "kafka.example:9092"
# [connect]
# url = "http://connect.example:8083"
# [elasticsearch]
# url = "https://search.example:9200"
"""
CONNECTOR = """\
# What Debezium reads; `cdc connector apply {project}` makes Kafka Connect run it.
name = "{project}"
kind = "postgres"
tables = [
    "{table}",
]

# For a database that is not the local stack's: the variable in Connect's environment that has the password.
# [database]
# password_env = "SOURCE_PASSWORD"
"""
README = """\
# Projections

One file, one read model. Write the document that readers want:

- a field named like a column is copied; `column("other_name")` reads another, `hidden()` is read but not written;
- `one(via="customer_id")` follows our foreign key, `many(by="order_id")` collects the rows that point to us;
- `@derived` is computed from the other fields, and `keep()` returning False takes the document out.

Then, from the folder above:

    cdc tables show TABLE          the columns to choose from
    cdc check                      every mistake at once
    cdc preview NAME               documents from live rows, before anything runs
    cdc connector apply {project}  after adding a table to connectors/debezium/{project}.toml
    cdc apply                      creates the index
    cdc run                        keeps it current

A change to a projection that is applied needs the next version: `projection(…, version=2)`.
"""
TEST = '''\
"""The read model `{name}`, from rows to documents."""

from pipeline.authoring.discovery import find
from pipeline.settings import load


def test_the_document_has_the_columns_of_the_table() -> None:
    {name} = find(load(), "{index}")

    assert set({name}.shape.model_fields) == {{{fields}}}
'''
IGNORED = ".cdc/\n.venv/\n__pycache__/\n.pytest_cache/\n"


class Scaffolded(BaseModel):
    """The files written, relative to the folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    table: str
    projection: str
    files: tuple[str, ...]


def scaffold(folder: Path, table: Table, *, project: str, name: str, catalog: Catalog) -> Scaffolded:
    """Write the project; raises OperationError, before anything is written, where a file is there already."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", project):
        raise OperationError(f"{project!r} can't name a project: use --name with small letters, digits and -.")
    module = re.sub(r"\W", "_", name)
    fields = [_identifier(column.name) for column in table.columns if not column.generated]
    files: Mapping[str, str] = {
        "cdc.toml": SETTINGS.format(project=project),
        f"connectors/debezium/{project}.toml": CONNECTOR.format(project=project, table=table.name),
        f"projections/{module}.py": projection_text(table, name),
        "projections/README.md": README.format(project=project),
        "projections/catalog.lock.json": catalog.text(),
        f"tests/projections/test_{module}.py": TEST.format(
            name=module, index=name, fields=", ".join(f'"{field}"' for field in fields)
        ),
        ".gitignore": IGNORED,
    }
    there = [file for file in files if (folder / file).exists()]
    if there:
        raise OperationError(f"{folder} has {', '.join(there)} already: choose an empty folder, or remove them.")
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return Scaffolded(folder=str(folder), table=table.name, projection=name, files=tuple(files))


def projection_text(table: Table, name: str) -> str:
    """A flat projection of a table as an author would write it."""
    columns = [column for column in table.columns if not column.generated]
    annotations = [kinds_of(column).annotation(nullable=column.nullable) for column in columns]
    lines = [_field(column, annotation) for column, annotation in zip(columns, annotations, strict=True)]
    renamed = any("= column(" in line for line in lines)
    used = sorted({word for text in annotations for word in re.findall(r"\w+", text) if word in IMPORTS})
    modules: dict[str, list[str]] = {}
    for word in used:
        modules.setdefault(IMPORTS[word], []).append(word)
    imports = [f"from {module} import {', '.join(words)}" for module, words in sorted(modules.items())]
    own = ", ".join(["Document", *(["column"] if renamed else []), "elasticsearch", "projection"])
    document = _class_name(name)
    key = "" if table.primary_key == ("id",) else f", key={_key(table.primary_key)}"
    head = f'"""{document}: one document for each row of {table.name}."""\n\n'
    head += "".join(f"{line}\n" for line in imports) + ("\n" if imports else "")
    return (
        f"{head}from pipeline import {own}\n\n\n"
        f'class {document}(Document, source="{table.name}"{key}):\n' + "\n".join(lines) + "\n\n\n"
        f'{re.sub(r"[^a-z0-9_]", "_", name)} = projection({document}, to=elasticsearch("{name}"))\n'
    )


def index_name(table: str) -> str:
    """`shop.order_lines` → `order_lines`, as far as it can name an index."""
    plain = re.sub(r"[^a-z0-9_-]", "_", table.rpartition(".")[2].lower()).lstrip("_-")
    return plain if plain[:1].isalpha() else f"t{plain}"


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


def _key(key: tuple[str, ...]) -> str:
    names = [f'"{name}"' for name in key]
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
