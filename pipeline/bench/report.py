"""What a run of the benchmarks found."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

from pydantic import BaseModel, computed_field


class Figure(BaseModel):
    """One thing measured, once for each run. Where `alone` has values, each run's `ratio` is ours to the sink's."""

    part: str
    what: str
    unit: str
    values: list[float]
    alone: dict[str, list[float]] = {}
    """What the sink alone takes, by its number of clients; in the unit of `values`."""
    documents: int = 0
    """How many documents were compared with the source."""
    different: int = 0
    """How many of them were wrong, missing or too many."""
    detail: dict[str, list[Any]] = {}
    """Further figures, one for each run: CPU seconds of each process, memory in MB, …"""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median(self) -> float:
        return median(self.values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spread(self) -> tuple[float, float]:
        return min(self.values), max(self.values)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def ratio(self) -> dict[str, float]:
        """The median of each run's ratio."""
        return {
            clients: round(median(ours / theirs for ours, theirs in zip(self.values, values, strict=True)), 3)
            for clients, values in self.alone.items()
        }


class Report(BaseModel):
    """One run of `cdc bench`."""

    size: str
    runs: int
    machine: str
    began: str
    load: float
    """The machine's load average before it began: whether it was quiet."""
    figures: list[Figure] = []

    @property
    def equal(self) -> bool:
        """Whether every document compared was the source's."""
        return not any(figure.different for figure in self.figures)

    def add(self, found: Iterable[Figure]) -> None:
        """Figures of one run; those of the same name are joined to a series."""
        known = {(figure.part, figure.what): figure for figure in self.figures}
        for new in found:
            old = known.get((new.part, new.what))
            if old is None:
                self.figures.append(new)
                continue
            old.values += new.values
            old.documents += new.documents
            old.different += new.different
            for name, values in new.alone.items():
                old.alone.setdefault(name, []).extend(values)
            for name, details in new.detail.items():
                old.detail.setdefault(name, []).extend(details)
