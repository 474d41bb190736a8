"""The chart of a report: our share of what the sink alone takes, and the delays of the live part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.bench.report import Figure, Report
from pipeline.errors import SettingsError

OURS, ALONE = "#2b6cb0", "#b9c4d0"


def available() -> None:
    """Raise SettingsError where the library that draws is missing: better before the benchmarks than after them."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SettingsError("A chart needs matplotlib: pip install 'cdc-pipeline[bench]'.") from None


def draw(report: Report, file: Path) -> None:
    """Write the chart as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = [figure for figure in report.figures if figure.unit == "documents/s"]
    live = [figure for figure in report.figures if figure.part == "c" and figure.unit.startswith("ms")]
    both = [(figures, one) for figures, one in ((rates, _rates), (live, _live)) if figures]
    drawn, axes = pyplot.subplots(
        len(both) or 1, squeeze=False, figsize=(9, 1.2 + sum(0.5 + 0.45 * len(figures) for figures, _ in both))
    )
    for axis, (figures, one) in zip(axes[:, 0], both, strict=False):
        one(axis, figures)
    drawn.suptitle(f"{report.machine}; {report.runs} run(s), size {report.size}", fontsize=9)
    drawn.tight_layout()
    drawn.savefig(file, dpi=120, format="png")
    pyplot.close(drawn)


def _rates(axis: Any, figures: list[Figure]) -> None:
    places = range(len(figures))
    alone = [max((max(values) for values in figure.alone.values()), default=0.0) for figure in figures]
    axis.barh([p - 0.2 for p in places], [f.median for f in figures], 0.38, color=OURS, label="the pipeline")
    axis.barh([p + 0.2 for p in places], alone, 0.38, color=ALONE, label="the sink alone, at its best")
    axis.set_yticks(list(places), [figure.what for figure in figures], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("documents/s")
    axis.legend(fontsize=8)


def _live(axis: Any, figures: list[Figure]) -> None:
    places = range(len(figures))
    for share, color in (("p99", ALONE), ("p95", "#7fa8d1"), ("p50", OURS)):
        axis.barh(list(places), [max(figure.detail[share]) for figure in figures], 0.6, color=color, label=share)
    axis.set_yticks(list(places), [figure.what for figure in figures], fontsize=8)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("ms")
    axis.legend(fontsize=8)
