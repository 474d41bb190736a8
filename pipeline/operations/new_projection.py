"""New projection: its file and its test, written from a table of the catalog."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pipeline.authoring.catalog import Table
from pipeline.errors import NoPrimaryKey, OperationError
from pipeline.operations.draft import draft
from pipeline.operations.scaffold import CONVERGENCE, PACKAGE, PYTEST

OWN_SETTINGS = ("pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
"""Where pytest looks for a project's settings."""


class NewProjection(BaseModel):
    """The files written, relative to the folder; one that was there already is left as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: str
    table: str
    files: tuple[str, ...]


def new_projection(folder: Path, projections: Path, table: Table, name: str, taken: Collection[str]) -> NewProjection:
    """Write `NAME.py` and its test into a project's folder; `projections` is where its read models are.

    `taken` are the names there are. Raises OperationError, before anything is written, where a name or a file is.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise OperationError(f"{name!r} can't name a projection: use small letters, digits, - and _.")
    if name in taken:
        raise OperationError(f"There is a projection {name!r} already: choose another name.")
    if not table.primary_key:
        raise NoPrimaryKey(f"{table.name} has no primary key, so its updates and deletes can't be followed: add one.")
    drafted = draft(table, name, package=projections.name)
    files: Mapping[str, str] = {
        str(projections / f"{drafted.module}.py"): drafted.projection,
        f"tests/{projections.name}/test_{drafted.module}.py": drafted.test,
    }
    there = [file for file in files if (folder / file).exists()]
    if there:
        raise OperationError(f"{', '.join(there)} is there already: choose another name, or remove it.")
    support = {
        str(projections / "__init__.py"): PACKAGE,
        f"tests/{projections.name}/test_convergence.py": CONVERGENCE,
        **({} if any((folder / own).exists() for own in OWN_SETTINGS) else {"pytest.ini": PYTEST}),
    }
    written = {**files, **{file: text for file, text in support.items() if not (folder / file).exists()}}
    for file, text in written.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    return NewProjection(projection=name, table=table.name, files=tuple(written))
