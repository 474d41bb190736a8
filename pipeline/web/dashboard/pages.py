"""The pages' models: reports of the command line, put side by side; no logic of their own."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, Field

from pipeline.operations.apply import ApplyReport
from pipeline.operations.explain import DocumentStory
from pipeline.operations.rebuild import RebuildReport
from pipeline.operations.refused import DeadLetter, Quarantined
from pipeline.operations.status import ProjectionStatus, StatusReport
from pipeline.operations.verified import VerifyReport
from pipeline.reports.connectors import ConnectorLine
from pipeline.reports.doctor import Findings


class Page(BaseModel):
    """What every page says: the command that prints the same, and who could not be asked."""

    command: str
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    """As of when."""
    problem: str | None = None


class Overview(Page):
    """`cdc status`, and how far `behind` each projection was at the last looks, in seconds, oldest first."""

    status: StatusReport = StatusReport(projections=[])
    behind: dict[str, list[float | None]] = {}
    rates: dict[str, dict[str, float]] = {}
    """A second, over the last looks: `changes` and `transactions` taken in, and documents written by sink."""

    @property
    def attention(self) -> list[str]:
        return [line for p in self.status.projections for line in p.attention] + self.status.attention


class Canary(BaseModel):
    """The next version's share of the reads, in this process."""

    version: str
    share: float
    reads: dict[str, int]
    """By what it answered: same, different, unavailable."""
    stopped: str | None = None
    """Why it is read no more."""


class ProjectionPage(Page):
    """One projection, from the source to its sinks. `rates` are a second, over the last looks."""

    name: str
    status: ProjectionStatus | None = None
    behind: list[float | None] = []
    rates: dict[str, float] = {}
    topics: list[str] = []
    key: list[str] = []
    """What a document's key is made of."""
    connectors: list[ConnectorLine] = []
    """Those that capture its tables."""
    rebuild: RebuildReport | None = None
    verified: VerifyReport | None = None
    canary: Canary | None = None


class DocumentPage(Page):
    """`cdc explain` of one document; no story before a key is given."""

    name: str
    names: list[str]
    key: list[str]
    story: DocumentStory | None = None


class RefusedPage(Page):
    """`cdc deadletters list` and `cdc quarantine list`."""

    dead_letters: list[DeadLetter] = []
    quarantined: list[Quarantined] = []
    done: str | None = None
    """What a retry did, in the answer to it."""


class SourcesPage(Page):
    """`cdc connector list`. `positions`: where the log of each connector's source is."""

    connectors: list[ConnectorLine] = []
    positions: dict[str, int] = {}


class PlanPage(Page):
    """`cdc plan`."""

    plan: ApplyReport | None = None


class DoctorPage(Page):
    """`cdc doctor`."""

    findings: Findings = Findings([])


def command(*words: Any) -> str:
    """A command line, quoted as a shell needs it."""
    return shlex.join(["cdc", *map(str, words)])
