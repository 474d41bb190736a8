"""`cdc new`: the first draft of something an author will go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from connectors.sources.catalogs import names, read_catalogs
from connectors.sources.debezium import load_definitions
from connectors.sources.kinds import read_catalog
from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.discovery import look
from pipeline.cli.output import As, as_json, err, load_settings, out, print_json
from pipeline.operations.new_projection import new_projection
from pipeline.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Write a new projection and its test.")


@app.callback()
def _group() -> None:
    """Write a new projection and its test."""


@app.command()
def projection(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, and that of its file and its index.")],
    table: Annotated[str, typer.Option("--table", metavar="TABLE", help="The table it shows, schema.table.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DSN", help="Read the table from this source; else from the catalog, where it is there."
        ),
    ] = None,
    output: As = None,
) -> None:
    """Write a flat projection of a table, and a test of it, to go on with; both work as they are."""
    settings = load_settings()
    folder = settings.projections
    taken = look(folder).projections if folder.is_dir() else ()
    chosen = _table(settings, table, source)
    done = new_projection(Path(), folder, chosen, name, taken)
    if as_json(output):
        print_json(done)
    else:
        for file in done.files:
            out().print(file)
    err().print(f"\nNext: pytest, cdc check, cdc preview {name}{_capture(settings, table)}", highlight=False)


def _table(settings: Settings, table: str, source: str | None) -> Table:
    """The table as the catalog has it; one that is not there is read from the source, and kept in the catalog."""
    known = Catalog.load(settings.catalog) if settings.catalog.exists() else None
    if source is None and known is not None and (found := known.tables.get(table)) is not None:
        return found
    if source is None and not names(settings) and known is not None:
        return known.table(table)  # there is no source to ask: UnknownTable, with the nearest name
    definitions = load_definitions(settings.connectors)
    everything = read_catalog(source) if source else read_catalogs(settings, definitions)
    chosen = everything.table(table)
    Catalog.of([*known.tables.values(), chosen] if known else [chosen]).save(settings.catalog)
    return chosen


def _capture(settings: Settings, table: str) -> str:
    captured = {name for definition in load_definitions(settings.connectors).values() for name in definition.tables}
    if table in captured:
        return ""
    return f"; and add {table} to `tables` of a connector in {settings.connectors}, then cdc connector apply"
