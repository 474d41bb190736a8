"""`cdc apply`: create what the projections need in their sinks."""

from __future__ import annotations

import asyncio
from typing import Any

import typer

from connectors.sinks import open_sink
from connectors.sources import lifecycle
from connectors.sources.debezium import load_definitions
from pipeline.authoring.discovery import discover
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.cli.output import As, DryRun, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import CdcError
from pipeline.operations import apply as operation
from pipeline.operations.apply import Applied, ApplyReport, CapturedBy
from pipeline.ports import Sink
from pipeline.settings import Settings

SIGNS = {"create": "+", "beside": "~", "adopt": "~", "unchanged": "=", "refuse": "!"}


def apply(dry_run: DryRun = False, yes: Yes = False, output: As = None) -> None:
    """Create what the projections need in their sinks; a first version is shown to readers at once."""
    own = load_settings()
    projections, applied = discover(own.projections), Applied(own.state_dir)

    def opened(target: Target, projection: Projection[Any]) -> Sink:
        return open_sink(target, projection, shape_of(projection.shape), own)

    planned = asyncio.run(operation.plan(projections, opened, applied, _connectors(own)))
    if dry_run or planned.refused or not planned.changes:
        _print(planned, as_json(output))
        if planned.refused:
            err().print("Nothing was changed.", style="yellow")
            raise typer.Exit(1)
        return
    if not yes:
        _print(planned, False)
    confirm("Apply this?", yes)
    done = asyncio.run(operation.apply(planned, projections, opened, applied))
    if yes or as_json(output):
        _print(done, as_json(output))
    err().print("Applied. Start the workers with `cdc run`.")


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
    for note in report.notes:
        err().print(note, style="yellow")
