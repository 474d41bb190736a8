"""`cdc bench`: how fast the pipeline is here, beside what Elasticsearch alone takes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from pipeline.bench import chart as charts
from pipeline.bench.report import Figure, Report
from pipeline.bench.run import PARTS
from pipeline.bench.run import run as measure
from pipeline.cli.output import As, as_json, err, load_settings, print_json, print_table

COLUMNS = ("PART", "WHAT", "UNIT", "MEDIAN", "FROM", "TO", "SINK ALONE", "RATIO", "FURTHER", "DOCUMENTS")
NOTES = {
    "p95": "p95 {:,.0f}",
    "p99": "p99 {:,.0f}",
    "reads_per_second": "{:,.0f} reads/s",
    "transactions_per_second": "{:,.0f} transactions/s",
    "events_per_second": "{:,.0f} events/s",
    "cpu_worker": "worker {:,.1f} CPU s",
    "cpu_us_an_event": "{:,.0f} µs an event",
    "memory_mb": "{:,.0f} MB",
}


class SizeName(StrEnum):
    small = "small"
    full = "full"
    ten = "ten"


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PART", show_default=False, help="All unless given. " + "; ".join(f"{k}: {v[0]}" for k, v in PARTS.items()) + "."
        ),
    ] = None,
    size: Annotated[
        SizeName, typer.Option(help="A minute's, 100,000 orders, or with growth to ten times that.")
    ] = SizeName.full,
    runs: Annotated[int, typer.Option(min=1, help="How often each part is measured.")] = 1,
    chart: Annotated[Path | None, typer.Option(dir_okay=False, help="Draw a PNG.", show_default=False)] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Use the local stack of this state directory; one of its own unless given.", show_default=False
        ),
    ] = None,
    output: As = None,
) -> None:  # fmt: skip
    """Measure the pipeline on a sample shop beside what Elasticsearch, or Postgres, alone takes; exit 1 where documents differ."""
    if chart is not None:
        charts.available()
    report = measure(load_settings(), list(parts or ()), size=size.value, runs=runs, state_dir=state_dir, say=err())
    if as_json(output):
        print_json(report)
    else:
        _print(report)
    if chart is not None:
        charts.draw(report, chart)
    if not report.equal:
        err().print("Documents differ from the source: no figure counts.", style="red")
        raise typer.Exit(1)


def _print(report: Report) -> None:
    err().print(f"{report.machine}; load {report.load} before it began; size {report.size}, {report.runs} run(s)")
    print_table(COLUMNS, [_line(figure) for figure in report.figures])


def _line(figure: Figure) -> tuple[str, ...]:
    low, high = figure.spread
    alone = ", ".join(f"{name} {median(values):,.0f}" for name, values in figure.alone.items())
    ratio = ", ".join(f"{value:.2f}" for value in figure.ratio.values())
    notes = [text.format(median(figure.detail[name])) for name, text in NOTES.items() if name in figure.detail]
    compared = f"{figure.different:,} DIFFER" if figure.different else f"{figure.documents:,} equal"
    return (
        figure.part, figure.what, figure.unit, f"{figure.median:,.0f}", f"{low:,.0f}", f"{high:,.0f}", alone, ratio,
        ", ".join(notes), compared if figure.documents else "",
    )  # fmt: skip
