"""`cdc preview`: documents and mappings before anything runs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated, Any

import typer

from connectors.sources.debezium import capturing, load_definitions
from connectors.sources.kinds import RowsBySource, open_rows, read_catalog
from connectors.sources.masks import masked
from connectors.sources.topics import refuse_foreign
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.discovery import find
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.cli.output import err, load_settings, terminal
from pipeline.cli.sinks import RULES
from pipeline.operations.preview import SAMPLE, Previewed
from pipeline.operations.preview import preview as operation
from pipeline.settings import Settings


class What(StrEnum):
    json = "json"
    mapping = "mapping"
    ddl = "ddl"


def preview(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection.")],
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Root keys, 10 or 10,1.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="How many, where no key is given.")] = 3,
    what: Annotated[What, typer.Option("--as", help="Documents, the index's mapping, or the table's SQL.")] = What.json,
) -> None:
    """Show documents as they would be, from the source's live rows; or the mapping of the index, the SQL of the table."""
    own = load_settings()
    projection = find(own, name)
    if what is What.mapping:
        typer.echo(json.dumps(_mappings(projection), indent=2))
        return
    if what is What.ddl:
        typer.echo(_ddl(projection), nl=False)
        return
    with ExitStack() as opened:
        rows = RowsBySource()
        for source, tables in _sources(own, projection).items():
            dsn = own.source_dsn(source)
            of_source = [d for d in load_definitions(own.connectors).values() if d.source == source]
            catalog = masked(read_catalog(dsn, tables=sorted(tables)), of_source, own.mask.salt)
            rows.add(catalog, opened.enter_context(open_rows(dsn)))
        salt = own.salt(projection.name) if "hash" in shape_of(projection.shape).masks else None
        found = operation(projection, rows.catalog, rows, keys=keys or (), limit=limit, salt=salt)
    _print(found)
    if isinstance(shape_of(projection.shape), AggregateShape):
        err().print(f"Counted in the first {SAMPLE:,} rows only: a worker counts all.", style="yellow")
    if any(one.document is None for one in found):
        raise typer.Exit(1)


def _sources(own: Settings, projection: Projection[Any]) -> dict[str, set[str]]:
    """Its tables by their source: that of the connector that captures them, where one does already."""
    tables, definitions = set(shape_of(projection.shape).columns()), load_definitions(own.connectors)
    refuse_foreign(own, tables, projection.name)
    if not projection.across_sources:
        found = capturing(definitions, tables)
        return {"" if found is None else found.source: tables}
    by: dict[str, set[str]] = {}
    for table in tables:
        found = capturing(definitions, {table})
        by.setdefault("" if found is None else found.source, set()).add(table)
    return by


def _mappings(projection: Projection[Any]) -> dict[str, Any]:
    shape = shape_of(projection.shape)
    return {
        target.name: dict(rules.mapping(shape, target.options))
        for target in projection.to
        if (rules := RULES.get(target.kind)) is not None and rules.mapping is not None
    }


def _ddl(projection: Projection[Any]) -> str:
    shape = shape_of(projection.shape)
    return "\n".join(
        rules.ddl(target, projection.id, shape)
        for target in projection.to
        if (rules := RULES.get(target.kind)) is not None and rules.ddl is not None
    )


def _print(found: list[Previewed]) -> None:
    """A JSON text for each document; what is missing is said on stderr."""
    for one in found:
        if one.document is not None:
            indent = 2 if terminal.format == "table" else None
            typer.echo(json.dumps(one.document, indent=indent, ensure_ascii=False))
        else:
            err().print(f"{', '.join(map(str, one.key))}: no document: {one.reason}", style="yellow")
