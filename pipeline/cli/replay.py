"""`cdc replay`: what Kafka still has is read once more and held against the mirror."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from connectors.sources.history import history
from connectors.sources.topics import refuse_foreign
from pipeline.authoring.discovery import find
from pipeline.authoring.shape import shape_of
from pipeline.cli.output import As, DryRun, as_json, err, load_settings, print_json, print_table
from pipeline.errors import OperationError
from pipeline.events.sourcelog import position_of
from pipeline.operations import replay as operation
from pipeline.operations.replay import ReplayReport
from pipeline.runtime import wiring

DIFFERENT = 3
UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def replay(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection.")],
    since: Annotated[
        str, typer.Option("--since", metavar="TIME|POSITION", help="2h, 3d, 2026-01-31T12:00, 0/16B3748, gtid:0-1-42.")
    ],
    dry_run: DryRun = False,
    output: As = None,
) -> None:
    """Hold kept history against the mirror; rows that are not as it says are read again. With --dry-run exit 3 where there are."""
    own = load_settings()
    projection = find(own, name)
    refuse_foreign(own, shape_of(projection.shape).columns(), projection.name)
    time, position = _since(since)
    wired = wiring.wire(own, projection)
    inputs = wired.inputs
    if inputs.others:
        raise OperationError(
            f"{name} reads the tables of {' and '.join(inputs.connectors)}, and replay follows the log of one:"
            f" cdc verify {name} --all --repair compares it with both."
        )
    ends = operation.ends_of(own, projection, inputs.topics)
    records = history(own.kafka_address(wired.definition.kafka), ends, time)
    report = asyncio.run(operation.replay(own, projection, inputs.topics, records, since=position, dry=dry_run))
    if as_json(output):
        print_json(report)
    else:
        _print(report)
    if report.wrong and dry_run:
        raise typer.Exit(DIFFERENT)
    if report.repaired is not None and report.repaired.left:
        raise typer.Exit(1)


def _since(text: str) -> tuple[datetime | None, int]:
    """A time, or a place in the source's log."""
    if re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}|gtid:[0-9]+-[0-9]+-[0-9]+", text):
        return None, position_of(text.removeprefix("gtid:"))
    ago = re.fullmatch(r"(\d+)([mhd])", text)
    if ago is not None:
        return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])}), 0
    try:
        return datetime.fromisoformat(text).astimezone(UTC), 0
    except ValueError:
        raise OperationError(
            f"{text!r} is no time and no place: write 2h, 2026-01-31T12:00, 0/16B3748 or gtid:0-1-42."
        ) from None


def _print(report: ReplayReport) -> None:
    columns = ("EVENTS", "STALE", "EQUAL", "WRONG", "WITHOUT A PLACE", "WAITING", "UNDECODABLE")
    counts = (
        report.events,
        report.stale,
        report.equal,
        report.wrong,
        report.unplaced,
        report.waiting,
        report.undecodable,
    )
    print_table(columns, [tuple(f"{n:,}" for n in counts)])
    for row in report.rows:
        err().print(f"{row.kind} {row.table} {', '.join(map(str, row.key))}", markup=False, style="yellow")
    if report.repaired is not None:
        done = report.repaired
        err().print(f"{done.refreshed + done.removed + done.absent} read again from the source, {len(done.left)} left")
