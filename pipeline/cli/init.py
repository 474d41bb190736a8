"""`cdc init`: a new project in a folder of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.cli.output import As, as_json, err, load_settings, out, print_json
from pipeline.errors import CdcError, SettingsError, SourceError
from pipeline.operations.scaffold import index_name, scaffold

EXAMPLE = Table(
    name="shop.customers",
    columns=(
        Column(name="id", type="bigint", nullable=False),
        Column(name="name", type="text", nullable=False, toastable=True),
        Column(name="email", type="text", nullable=False, toastable=True),
        Column(name="created_at", type="timestamp with time zone", nullable=False, default=True),
        Column(name="deleted_at", type="timestamp with time zone"),
    ),
    primary_key=("id",),
)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write it.")] = Path(),
    table: Annotated[
        str | None,
        typer.Option("--table", help="The first read model shows this table.", show_default="shop.customers"),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="DSN", help="The database with it; the settings' source unless given."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="The project's name.", show_default="the folder's")] = None,
    output: As = None,
) -> None:
    """Write a new project: settings, a connector, one read model and its test, ready to run."""
    project = name or _slug(folder.resolve().name)
    catalog = _catalog(table, source)
    chosen = catalog.table(table) if table is not None else EXAMPLE
    done = scaffold(folder, chosen, project=project, name=index_name(chosen.name), catalog=catalog)
    if as_json(output):
        print_json(done)
        return
    for file in done.files:
        out().print(str(folder / file))
    start = "" if folder == Path() else f"cd {folder} && "
    err().print(f"\nNext: {start}cdc check && cdc connector apply {project} && cdc apply && cdc run")


def _catalog(table: str | None, source: str | None) -> Catalog:
    """The source's tables; without a source the example's, unless a table was asked for."""
    from connectors.sources.postgres import read_catalog

    try:
        tables = read_catalog(source or load_settings().source_dsn()).tables.values()
        return Catalog.of(found for found in tables if not found.name.startswith("cdc."))
    except SettingsError:
        if table is not None or source is not None:
            raise
    except SourceError as error:
        if table is not None or source is not None:
            raise
        _narrate(error)
    return Catalog.of([EXAMPLE])


def _narrate(error: CdcError) -> None:
    err().print(f"{error} The example's table is taken.", style="yellow")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "shop"
