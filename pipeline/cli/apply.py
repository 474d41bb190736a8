"""`cdc plan` and `cdc apply`: what differs between what runs and what the files say, and doing it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from pipeline.authoring import builds
from pipeline.authoring.builds import Build
from pipeline.authoring.discovery import discover
from pipeline.cli.output import As, DryRun, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import OperationError
from pipeline.operations import apply as operation
from pipeline.operations.apply import Applied, ApplyReport
from pipeline.reports import plan as reports

SIGNS = {"create": "+", "beside": "~", "adopt": "~", "unchanged": "=", "refuse": "!", "left": "-"}
EXIT_CHANGES = 2


def plan(
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the plan into this file, for `cdc apply FILE`.")
    ] = None,
    output: As = None,
) -> None:
    """Say what `cdc apply` would do. Ends with 0 where nothing would change, 2 where something would, 1 where it refuses."""
    planned = reports.plan(load_settings())
    if out is not None:
        out.write_text(planned.model_dump_json(indent=2) + "\n")
    _print(planned, as_json(output))
    if planned.refused:
        raise typer.Exit(1)
    if planned.changes:
        raise typer.Exit(EXIT_CHANGES)


def apply(
    file: Annotated[
        Path | None, typer.Argument(help="A plan of `cdc plan --out`; refused when it is outdated.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: As = None,
) -> None:
    """Create what the projections need in their sinks; a first version is shown to readers at once."""
    own = load_settings()
    planned = reports.plan(own)
    if file is not None:
        operation.compare_plans(_read(file), planned)
    if dry_run or planned.refused or not planned.changes:
        _print(planned, as_json(output))
        if planned.refused:
            err().print("Nothing was changed.", style="yellow")
            raise typer.Exit(1)
        return
    if not yes:
        _print(planned, False)
    confirm("Apply this?", yes)
    done = asyncio.run(operation.apply(planned, discover(own.projections), reports.opener(own), Applied(own.state_dir)))
    for step in done.steps:
        if step.action == "create":
            first = Build(version=step.version)
            builds.update(own, step.projection, lambda now, live=first: now if now.live else now.having(live=live))  # type: ignore[misc]
    if yes or as_json(output):
        _print(done, as_json(output))
    err().print("Applied. Start the workers with `cdc run`.")


def _read(file: Path) -> ApplyReport:
    try:
        return ApplyReport.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise OperationError(
            f"{file} is no plan ({type(error).__name__}): make one with `cdc plan --out {file}`."
        ) from None


def _print(report: ApplyReport, json: bool) -> None:
    if json:
        print_json(report)
        return
    rows = [(SIGNS[s.action], s.projection, str(s.version), s.target, s.action, s.reason) for s in report.steps]
    print_table(("", "PROJECTION", "VERSION", "TARGET", "ACTION", "WHY"), rows)
    for step in report.steps:
        for change in step.changes:
            err().print(f"{step.projection}: {change}")
        if step.documents is not None and step.seconds is not None:
            err().print(f"{step.projection}: {step.documents:,} documents, about {step.seconds:,.0f} s to build")
    for note in report.notes:
        err().print(note, style="yellow")
