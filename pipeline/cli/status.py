"""`cdc status`: one line a projection, and what needs attention."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pipeline.authoring.discovery import find, live
from pipeline.cli.output import As, as_json, err, load_settings, print_json, print_table
from pipeline.operations.status import Building, ProjectionStatus, StatusReport
from pipeline.reports import status as reports

COLUMNS = ("PROJECTION", "VERSION", "STATE", "DOCUMENTS", "BEHIND", "DIRTY", "PENDING", "QUARANTINED", "DEAD LETTERS")
BUILDING = ("BUILDING", "FROM", "STEP", "DONE", "FOR", "LEFT")


def status(
    projections: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Only these.", show_default=False)
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Say it again every second, until ctrl-C.")] = False,
    fail_behind: Annotated[float, typer.Option(help="Seconds behind that need attention.")] = 30.0,
    output: As = None,
) -> None:
    """How far each projection is, and what holds it up; exit code 4 where something needs attention."""
    own = load_settings()
    chosen = [find(own, name) for name in projections] if projections else live(own)
    while True:
        report = reports.status(own, chosen, fail_behind=fail_behind)
        _print(report, as_json(output))
        if not watch:
            break
        time.sleep(1)
    if not report.healthy:
        raise typer.Exit(4)


def _print(report: StatusReport, json: bool) -> None:
    if json:
        print_json(report)
        return
    print_table(COLUMNS, [_line(p) for p in report.projections])
    if report.building:
        print_table(BUILDING, [line_of(far) for far in report.building])
    for projection in report.projections:
        if len(logs := projection.source_logs) > 1:
            was, now = logs[-2], logs[-1]
            since = now.seen_at.astimezone().isoformat(" ", "seconds")
            err().print(
                f"{projection.name}: since {since} from source log {now.identity} (before: {was.identity or 'not said'})",
                markup=False, highlight=False, soft_wrap=True,
            )  # fmt: skip
        for sink in projection.sinks:
            if sink.withheld:
                err().print(f"{sink.name}: {sink.withheld:,} documents are withheld from it", markup=False)
        for line in projection.attention:
            err().print(line, style="yellow")
    for line in report.attention:
        err().print(line, markup=False, style="yellow")


def _line(p: ProjectionStatus) -> tuple[str, ...]:
    behind = "-" if p.behind is None else f"{p.behind:.1f} s"
    return (
        p.name, str(p.version), p.state, f"{p.documents:,}", behind, f"{p.dirty:,}", f"{p.pending:,}", f"{p.quarantined:,}",
        f"{p.dead_letters:,}",
    )  # fmt: skip


def line_of(far: Building) -> tuple[str, ...]:
    """A build under way, in the columns of `BUILDING`."""
    done = f"{far.done:,} of {far.total:,} {far.unit}" if far.total else "-"
    left = "-" if far.seconds_left is None else f"about {far.seconds_left:.0f} s"
    return far.id, far.origin, far.step, done, f"{far.seconds:.0f} s", left
