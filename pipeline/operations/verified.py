"""What verify found: reports, and which part of the documents was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.authoring.projection import Projection
from pipeline.operations.expected import FieldDifference
from pipeline.operations.status import verified_file
from pipeline.settings import Settings

Kind = Literal["missing", "extra", "different"]


class Difference(BaseModel):
    """A document that is not what the source says, seen twice with the same revision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: Kind
    fields: tuple[FieldDifference, ...] = ()
    """Where they differ; the first few."""


class SinkVerified(BaseModel):
    """What was found in one sink; counts are of documents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sink: str
    position: int | dict[str, int]
    """The place in the source's log up to which all was compared; of documents over several, that of each connector."""
    checked: int
    missing: int
    extra: int
    different: int
    undecided: int
    """Changed each time they were looked at; none of them is known to be wrong."""
    unbuildable: int
    """Those on whose rows the author's code fails: see `cdc quarantine list`."""
    repaired: int
    compared_again: int
    ended: int = 0
    """Those that the sink let go of, as the author told it to; they are not compared."""
    differences: tuple[Difference, ...]
    """The first of them, with fields."""
    seconds: float

    @property
    def wrong(self) -> int:
        return self.missing + self.extra + self.different


class VerifyReport(BaseModel):
    """What `verify` found. `share` is the part of all documents that was compared, 1 for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: str
    version: int
    at: datetime
    share: float
    sinks: tuple[SinkVerified, ...]
    not_compared: tuple[str, ...] = ()
    """Fields over columns that SQL can't give as events have them, and documents whose group nobody knows."""

    @property
    def equal(self) -> bool:
        return not any(sink.wrong for sink in self.sinks)


@dataclass(frozen=True, slots=True)
class Share:
    """Part `number` of `of` equal parts of all documents, told by a hash of the id, so that all parts together are all."""

    number: int = 0
    of: int = 1

    def has(self, id: str) -> bool:
        if self.of == 1:
            return True
        return (
            int.from_bytes(blake2b(id.encode("utf-8", "surrogatepass"), digest_size=8).digest()) % self.of
            == self.number
        )


def report(
    projection: Projection[Any], share: Share, sinks: Sequence[SinkVerified], not_compared: Sequence[str]
) -> VerifyReport:
    """The report of one projection over all its sinks."""
    return VerifyReport(
        projection=projection.name, version=projection.version, at=datetime.now(UTC), share=1 / share.of,
        sinks=tuple(sinks), not_compared=tuple(not_compared),
    )  # fmt: skip


def last(settings: Settings, projection: Projection[Any]) -> VerifyReport | None:
    """What `verify` last found of this build; None where it has not been compared yet."""
    try:
        return VerifyReport.model_validate_json(verified_file(settings, projection.id).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
