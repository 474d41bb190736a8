"""`cdc backfill`: a table's rows are read again from the source, while the stream goes on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import typer

from connectors.sources import lifecycle, notices, signals
from connectors.sources.debezium import ConnectorDefinition, capturing, load_definitions
from connectors.sources.kinds import only_postgres
from connectors.sources.topics import foreign_tables
from pipeline.authoring.discovery import find, live
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.cli.output import As, as_json, err, load_settings, print_json, print_table
from pipeline.errors import CdcError, OperationError
from pipeline.operations.backfill import BackfillReport, Progress
from pipeline.operations.backfill import backfill as operation
from pipeline.settings import Settings

SAY_EVERY = 10.0
"""Seconds between two lines of progress where there is no terminal."""


def backfill(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="schema.table")],
    where: Annotated[str, typer.Option("--where", metavar="SQL", help="Only the rows that this holds for.")] = "",
    projection: Annotated[
        str | None, typer.Option("--projection", metavar="NAME", help="Wait only for this one.", show_default=False)
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until the documents show the rows.")] = True,
    output: As = None,
) -> None:
    """Read a table's rows again from the source, while the stream goes on; all its projections get them."""
    own = load_settings()
    definition = captured_by(own, table)
    chosen = [find(own, projection)] if projection else live(own)
    readers = [p for p in chosen if table in shape_of(p.shape).columns()]
    if projection and not readers:
        raise OperationError(f"{projection} does not read {table}.")
    with _bar(table) as progress:
        report = asyncio.run(read_again(own, definition, readers if wait else [], table, where, progress))
    _print(report, as_json(output))
    if not report.done:
        raise typer.Exit(1)


def captured_by(own: Settings, table: str) -> ConnectorDefinition:
    """The connector that reads a table; raises OperationError where none does, or others produce its topic."""
    if (topics := foreign_tables(own).get(table)) is not None:
        raise OperationError(
            f"{table} is of {topics.topic(table)}, a topic of others ({topics.name}): their database is not known here, so"
            " its rows can't be read again or erased from there. A delete in their topic removes a row everywhere."
        )
    definitions = load_definitions(own.connectors)
    if (found := capturing(definitions, {table})) is not None:
        return found
    known = sorted({t for d in definitions.values() for t in d.tables})
    raise OperationError(f"No connector captures {table}; captured are {', '.join(known) or 'none'}.")


async def _check_connector(own: Settings, definition: ConnectorDefinition) -> None:
    dsn = own.source_dsn(definition.source)
    at = own.connect_address(definition.kafka)
    plan = await lifecycle.plan(definition, connect_at=at, source_dsn=dsn, salt=own.mask.salt)
    if any(change.key.startswith("notification.") for change in plan.changes):
        raise OperationError(
            f"Connector {definition.name} does not say how its snapshots go: cdc connector apply {definition.name}."
        )


async def read_again(
    own: Settings,
    definition: ConnectorDefinition,
    readers: list[Projection[Any]],
    table: str,
    where: str,
    progress: Progress,
) -> BackfillReport:
    """A table's rows by its connector, in turn with others who ask it; until these readers have written them."""
    only_postgres(
        definition,
        "An incremental snapshot",
        f"cdc connector apply {definition.name} --anew reads all its tables again.",
    )
    await _check_connector(own, definition)

    async def ill() -> str:
        try:
            found = await lifecycle.status(definition.name, connect_at=own.connect_address(definition.kafka))
        except CdcError as error:
            return str(error)
        return "" if found.running else f"connector {definition.name} is {found.state}: {found.reason or 'resume it'}"

    kafka = own.kafka_address(definition.kafka)
    told = False
    while True:
        with signals.turn(definition, own.source_dsn(definition.source)) as mine:
            if mine is not None:
                async with notices.notices(kafka, definition) as said:
                    return await operation(
                        own, readers, table, where, connector=definition.name, topic=definition.topic(table),
                        snapshots=mine, said=said, ill=ill, ends=partial(notices.end_offsets, kafka),
                        progress=progress,
                    )  # fmt: skip
        if not told:
            err().print("Another snapshot of this connector is under way: waiting for its end.")
            told = True
        await asyncio.sleep(0.5)


@contextmanager
def _bar(table: str) -> Iterator[Progress]:
    """A bar on a terminal, else a line every ten seconds."""
    console = err()
    if console.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        with Bar(TextColumn(table), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(table)
            yield lambda read, expected: bar.update(task, completed=read, total=expected)
        return
    said = [0.0]

    def line(read: int, expected: int) -> None:
        if time.monotonic() - said[0] >= SAY_EVERY or read == expected:
            said[0] = time.monotonic()
            console.print(f"{table}: {read:,} of {expected:,} rows")

    yield line


def _print(report: BackfillReport, json: bool) -> None:
    if json:
        print_json(report)
        return
    rows = [(p.projection, "written" if p.passed else f"not written: {p.reason}") for p in report.projections]
    err().print(f"{report.table}: {report.rows:,} rows in {report.seconds:.1f} s")
    print_table(("PROJECTION", "ROWS"), rows)
