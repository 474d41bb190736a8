"""`cdc tables`: the source's tables as the catalog knows them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from connectors.sources.catalogs import read_catalogs
from connectors.sources.debezium import load_definitions
from connectors.sources.kinds import read_catalog
from connectors.sources.topics import foreign_catalog
from pipeline.authoring import catalog as catalogs
from pipeline.authoring.catalog import Catalog
from pipeline.cli.output import As, Format, as_json, err, load_settings, out

app = typer.Typer(no_args_is_help=True, help="The source's tables, columns and keys.")
OWN_SCHEMA = "cdc"


@app.command()
def pull(
    source: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="DSN", help="A libpq URI; the settings' sources unless given.", show_default=False
        ),
    ] = None,
    schema: Annotated[list[str] | None, typer.Option("--schema", help="Only this schema; may be repeated.")] = None,
    output: As = None,
) -> None:
    """Read the source's tables, and what is declared of foreign topics, into the catalog file, which belongs into git."""
    settings = load_settings()
    if source is None:
        found = read_catalogs(settings, load_definitions(settings.connectors), schemas=schema)
    else:
        declared = foreign_catalog(settings).tables
        found = Catalog.of((read_catalog(source, schemas=schema).tables | declared).values())
    tables = [table for name, table in found.tables.items() if not name.startswith(OWN_SCHEMA + ".")]
    known = Catalog.of(tables)
    # one schema, or one of several sources, says nothing of the tables elsewhere
    if (schema or (source and settings.sources)) and settings.catalog.exists():
        old = Catalog.load(settings.catalog).tables
        kept = [
            table
            for name, table in old.items()
            if name not in known.tables and name.partition(".")[0] not in (schema or ())
        ]
        known = Catalog.of([*kept, *tables])
    changed = known.save(settings.catalog)
    err().print(f"{settings.catalog}: {len(known.tables)} tables{'' if changed else ', unchanged'}", highlight=False)
    _print(known, output)


@app.command("list")
def list_(output: As = None) -> None:
    """Every table of the catalog."""
    _print(Catalog.load(load_settings().catalog), output)


@app.command()
def show(table: Annotated[str, typer.Argument(metavar="TABLE", help="schema.table")], output: As = None) -> None:
    """One table's columns, types and keys."""
    found = Catalog.load(load_settings().catalog).table(table)
    if as_json(output):
        out().print_json(found.model_dump_json())
        return
    out().print(f"{found.name}  replica identity {found.replica_identity}")
    columns = Table("COLUMN", "TYPE", "NULL", "KEY", "NOTES", box=None, pad_edge=False)
    for column in found.columns:
        place = f"{found.primary_key.index(column.name) + 1}" if column.name in found.primary_key else ""
        columns.add_row(column.name, column.type, "null" if column.nullable else "", place, _notes(column))
    out().print(columns)
    for index in found.indexes:
        out().print(f"index ({', '.join(index)})")


def _notes(column: catalogs.Column) -> str:
    notes = [column.base or ""]
    notes += [word for word in ("generated", "default", "toastable") if getattr(column, word)]
    return ", ".join(note for note in notes if note)


def _print(known: Catalog, output: Format | None) -> None:
    if as_json(output):
        out().print_json(known.model_dump_json())
        return
    table = Table("TABLE", "COLUMNS", "KEY", "REPLICA IDENTITY", box=None, pad_edge=False)
    for entry in known.tables.values():
        key = ", ".join(entry.primary_key) or "none"
        table.add_row(entry.name, str(len(entry.columns)), key, entry.replica_identity)
    out().print(table)
