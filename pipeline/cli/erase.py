"""`cdc erase`: a row that was deleted in the source is removed everywhere, and proved gone."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

import typer

from connectors.sinks import open_sink
from connectors.sources import kinds, notices
from connectors.sources.kinds import open_rows
from connectors.sources.retention import gone_by
from connectors.sources.topics import refuse_foreign
from pipeline.authoring import builds
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.discovery import discover
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.cli.backfill import captured_by
from pipeline.cli.output import As, DryRun, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import OperationError
from pipeline.operations import erase as operation
from pipeline.operations.erase import EraseReport, Place
from pipeline.operations.in_parts import exchange_topic
from pipeline.ports import Sink
from pipeline.settings import Settings


def erase(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="schema.table")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="The row's key; 10,1 where it has two columns.")],
    dry_run: DryRun = False,
    yes: Yes = False,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds without progress to wait.")] = 60.0,
    output: As = None,
) -> None:
    """Remove a row that was deleted in the source from every read model, and show that it is gone; exit 1 where it is not.

    Its owner deletes it in the source first. The workers have to run.
    """
    own = load_settings()
    definition = captured_by(own, table)
    dsn = definition.dsn_in(own)
    catalog = kinds.read_catalog(dsn, tables=[table])
    parts = _parts(catalog, table, key)
    if _there(dsn, catalog, table, parts):
        raise OperationError(
            f"{table} {key} is still in the source: let its owner delete it there, then erase it here."
        )
    readers = [build for code in discover(own.projections) for build in builds.maintained(own, code)]
    readers = [build for build in readers if table in shape_of(build.shape).columns()]
    for build in readers:
        refuse_foreign(own, shape_of(build.shape).columns(), build.name)
    if not dry_run:
        confirm(f"Erase {table} {key} from {len(readers)} read models?", yes)
    report = asyncio.run(_erase(own, readers, table, parts, timeout, dry_run))
    if as_json(output):
        print_json(report)
    else:
        _print(report)
    if report.done and report.left:
        err().print(f"{table} {key} is not gone yet: see above.", style="red")
        raise typer.Exit(1)


def _parts(catalog: Catalog, table: str, key: str) -> list[str]:
    columns = catalog.table(table).primary_key
    parts = key.split(",") if len(columns) > 1 else [key]
    if len(parts) != len(columns):
        raise OperationError(f"{key!r} is no key of {table}: give {','.join(columns)}.")
    return parts


def _there(dsn: str, catalog: Catalog, table: str, parts: list[str]) -> bool:
    of = catalog.table(table)
    with open_rows(dsn) as rows:
        return bool(rows.matching(of, of.primary_key, of.primary_key, [parts]))


async def _erase(
    own: Settings, readers: list[Projection[Any]], table: str, parts: list[str], patience: float, dry: bool
) -> EraseReport:
    definition = captured_by(own, table)
    kafka = own.kafka_address(definition.kafka)
    topic = definition.topic(table)
    topics = [topic, *(exchange_topic(own, build) for build in readers if build.workers > 1)]
    return await operation.erase(
        own, readers, table, parts,
        sinks=partial(_sinks, own), connector=definition.name,
        position=partial(asyncio.to_thread, kinds.position, definition.dsn_in(own)),
        ends=partial(notices.end_offsets, kafka), topics={name: await gone_by(kafka, name) for name in topics}, topic=topic,
        patience=patience, dry=dry, rereads=definition.kind == "postgres",
    )  # fmt: skip


def _sinks(own: Settings, projection: Projection[Any]) -> list[Sink]:
    return [open_sink(target, projection, shape_of(projection.shape), own) for target in projection.to]


def _print(report: EraseReport) -> None:
    print_table(("PLACE", "WHERE", "BEFORE", "AFTER", ""), [_line(place) for place in report.places])


def _line(place: Place) -> tuple[str, ...]:
    counts = ("-" if n is None else f"{n:,}" for n in (place.before, place.after))
    return (place.kind, place.where, *counts, place.note)
