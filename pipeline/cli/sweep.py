"""`cdc sweep`: let rows go that a new snapshot of the source left out."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.authoring.discovery import find
from pipeline.cli.output import As, DryRun, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.operations import sweep as operation


def sweep(
    projection: Annotated[str, typer.Argument(metavar="NAME")],
    dry_run: DryRun = False,
    yes: Yes = False,
    output: As = None,
) -> None:
    """Take away rows that are not in the source's new snapshot, and their documents.

    Few of them go by themselves; a large share of a table (`worker.sweep_limit`) waits for this.
    """
    own = load_settings()
    chosen = find(own, projection)
    report = operation.look(own, chosen)
    if report.rows and not dry_run:
        confirm(f"Take {sum(old for old, _ in report.rows.values()):,} rows out of {projection}?", yes)
        report = operation.allow(own, chosen)
    if as_json(output):
        print_json(report)
        return
    if not report.rows:
        err().print(f"{projection}: nothing waits to be swept")
        return
    lines = [(table, f"{old:,}", f"{every:,}") for table, (old, every) in report.rows.items()]
    print_table(("TABLE", "NOT IN THE SNAPSHOT", "ROWS"), lines)
    if report.allowed:
        err().print("The worker takes them away now, or when it starts.")
