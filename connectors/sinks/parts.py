"""Which checkpoint records of a version a sink has: its only one, or those of the partitions that several workers write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pipeline.authoring.projection import Projection
from pipeline.ports import SinkRecord

STATE: Final = "parts"
"""Where a record's state names those of all partitions, for whoever does not know the projection."""


@dataclass(frozen=True, slots=True)
class Parts:
    """`suffixes`: of the version's name in the records' names, `@0` and `@1` of two partitions; `own`: the one that is written."""

    suffixes: tuple[str, ...] = ("",)
    own: str | None = ""
    """None: the records of all are read as one, and none is written."""

    @classmethod
    def of(cls, projection: Projection[Any], part: str | None) -> Parts:
        """Of one of a projection's parts, `orders-v1@2`; None: of whoever does not write, or of the only one."""
        suffixes = tuple(name.removeprefix(projection.id) for name in projection.parts)
        if len(suffixes) == 1:
            return cls()
        return cls(suffixes, None if part is None else part.removeprefix(projection.id))

    @property
    def alone(self) -> bool:
        """One worker writes all."""
        return len(self.suffixes) == 1

    @property
    def number(self) -> int:
        """Of the partition that is written."""
        return self.suffixes.index(self.own or "")

    def name(self, version: str) -> str:
        """Of the record that is written."""
        assert self.own is not None, "whoever reads all of them writes none"
        return version + self.own

    def names(self, version: str) -> list[str]:
        """Of the records of all partitions."""
        return [version + suffix for suffix in self.suffixes]

    def state(self, version: str) -> dict[str, Any]:
        """What a claim adds to the state of its record."""
        return {STATE: self.names(version)} if not self.alone else {}

    def record(self, version: str, found: Mapping[str, SinkRecord]) -> SinkRecord | None:
        """What the records say of the version, or of the partition that is written; by their names."""
        if self.own is None:
            return SinkRecord.least([found.get(name) for name in self.names(version)])
        return found.get(self.name(version))


ONE: Final = Parts()


def named(found: Mapping[str, SinkRecord]) -> list[str]:
    """The names of all partitions' records, as any of these says; none where the version has one only."""
    return next((list(record.state[STATE]) for record in found.values() if STATE in record.state), [])


def whole(version: str, found: Mapping[str, SinkRecord]) -> SinkRecord | None:
    """What all records of a version say, by their names, to a reader, who does not know the projection."""
    return found.get(version) or SinkRecord.least([found.get(name) for name in named(found)])
