"""Scaffold: a project of one's own, with one flat projection that works as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.authoring.catalog import Catalog, Table
from pipeline.errors import OperationError
from pipeline.operations.draft import draft

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
# [redis]
# url = "redis://redis.example:6379/0"
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

    cdc new projection NAME --table TABLE    writes one and its test
    pytest                         every test, and every projection on generated histories
    cdc tables show TABLE          the columns to choose from
    cdc check                      every mistake at once
    cdc preview NAME               documents from live rows, before anything runs
    cdc connector apply {project}  after adding a table to connectors/debezium/{project}.toml
    cdc apply                      creates the index
    cdc run                        keeps it current

A change to a projection that is applied needs the next version: `projection(…, version=2)`.
"""
PYTEST = """\
[pytest]
testpaths = tests
pythonpath = .
"""
PACKAGE = '"""The read models of this project: one file, one read model."""\n'
CONVERGENCE = '''\
"""Every projection on generated histories, also one that has no test of its own yet."""

from typing import Any

from pipeline.testing import Scenario


def test_any_delivery_of_any_history_gives_the_same_documents(cdc_scenario: Scenario[Any]) -> None:
    cdc_scenario.assert_converges(20)
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
    drafted = draft(table, name)
    files: Mapping[str, str] = {
        "cdc.toml": SETTINGS.format(project=project),
        f"connectors/debezium/{project}.toml": CONNECTOR.format(project=project, table=table.name),
        f"projections/{drafted.module}.py": drafted.projection,
        "projections/__init__.py": PACKAGE,
        "projections/README.md": README.format(project=project),
        "projections/catalog.lock.json": catalog.text(),
        f"tests/projections/test_{drafted.module}.py": drafted.test,
        "tests/projections/test_convergence.py": CONVERGENCE,
        "pytest.ini": PYTEST,
        ".gitignore": IGNORED,
    }
    there = [file for file in files if (folder / file).exists()]
    if there:
        raise OperationError(f"{folder} has {', '.join(there)} already: choose an empty folder, or remove them.")
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return Scaffolded(folder=str(folder), table=table.name, projection=name, files=tuple(files))


def index_name(table: str) -> str:
    """`shop.order_lines` → `order_lines`, as far as it can name an index."""
    plain = re.sub(r"[^a-z0-9_-]", "_", table.rpartition(".")[2].lower()).lstrip("_-")
    return plain if plain[:1].isalpha() else f"t{plain}"
