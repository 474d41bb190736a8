"""`cdc doctor`: look at everything around the pipeline, and say what is wrong with its fix."""

from __future__ import annotations

import typer

from pipeline.cli.output import As, as_json, load_settings, print_json, print_table
from pipeline.reports import doctor as reports


def doctor(output: As = None) -> None:
    """Source, slots, replica identity, topics, connectors, Elasticsearch, clocks; exit code 4 where something is wrong."""
    report = reports.doctor(load_settings())
    found = report.root
    if as_json(output):
        print_json(report)
    else:
        signs = {"ok": "ok", "warning": "!", "error": "!!"}
        print_table(("", "WHAT", "FOUND", "FIX"), [(signs[f.level], f.subject, f.found, f.fix) for f in found])
    if any(f.level == "error" for f in found):
        raise typer.Exit(4)
