"""`cdc plan` and `cdc apply`: what differs between what runs and what the files say, and doing it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from connectors.sinks import open_sink
from connectors.sources import lifecycle
from connectors.sources.debezium import load_definitions
from pipeline.authoring import builds
from pipeline.authoring.builds import Build
from pipeline.authoring.discovery import discover
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.cli.output import As, DryRun, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import CdcError, OperationError
from pipeline.operations import apply as operation
from pipeline.operations.apply import Applied, ApplyReport, CapturedBy
from pipeline.ports import Sink
from pipeline.settings import Settings

SIGNS = {"create": "+", "beside": "~", "adopt": "~", "unchanged": "=", "refuse": "!", "left": "-"}
EXIT_CHANGES = 2


def plan(
    out: Annotated[
        Path | None, typer.Option("--out", help="Write the plan into this file, for `cdc apply FILE`.")
    ] = None,
    output: As = None,
) -> None:
    """Say what `cdc apply` would do. Ends with 0 where nothing would change, 2 where something would, 1 where it refuses."""
    planned = _planned(load_settings())
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
    planned = _planned(own)
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
    done = asyncio.run(operation.apply(planned, discover(own.projections), _opener(own), Applied(own.state_dir)))
    for step in done.steps:
        if step.action == "create":
            first = Build(version=step.version)
            builds.update(own, step.projection, lambda now, live=first: now if now.live else now.having(live=live))  # type: ignore[misc]
    if yes or as_json(output):
        _print(done, as_json(output))
    err().print("Applied. Start the workers with `cdc run`.")


def _planned(own: Settings) -> ApplyReport:
    projections, applied = discover(own.projections), Applied(own.state_dir)
    return asyncio.run(operation.plan(projections, _opener(own), applied, _connectors(own)))


def _opener(own: Settings) -> operation.Opener:
    def opened(target: Target, projection: Projection[Any]) -> Sink:
        return open_sink(target, projection, shape_of(projection.shape), own)

    return opened


def _read(file: Path) -> ApplyReport:
    try:
        return ApplyReport.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise OperationError(
            f"{file} is no plan ({type(error).__name__}): make one with `cdc plan --out {file}`."
        ) from None


def _connectors(own: Settings) -> list[CapturedBy]:
    definitions = load_definitions(own.connectors)
    try:
        running = set(asyncio.run(lifecycle.statuses(connect_url=own.connect_url())))
    except CdcError:
        return [CapturedBy(name, frozenset(d.tables), None) for name, d in definitions.items()]
    return [CapturedBy(name, frozenset(d.tables), name in running) for name, d in definitions.items()]


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
