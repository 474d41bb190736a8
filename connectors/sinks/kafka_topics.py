"""The topics of a projection version in Kafka: its documents', its record's, and the one that says which version to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError

OPTIONS = ("partitions",)
VERSIONED = r".*\.v\d+(\.\d+)?(\.record)?"
NAME = re.compile(rf"(?!{VERSIONED}$)(?=.{{1,200}}$)[A-Za-z0-9][A-Za-z0-9._-]*")
RECORD = re.compile(r"(?P<documents>.+\.v\d+(\.\d+)?)\.record")
HOUR, DAY = 3_600_000, 86_400_000
KEPT = {"cleanup.policy": "compact"}
DOCUMENTS = KEPT | {
    "max.message.bytes": "10485760",
    # who is less behind sees every change, and who is less than a week behind every delete
    "min.compaction.lag.ms": str(DAY),
    "max.compaction.lag.ms": str(7 * DAY),
    "delete.retention.ms": str(7 * DAY),
}
# nobody reads but its last record
RECORDS = KEPT | {"segment.ms": str(HOUR), "delete.retention.ms": str(HOUR)}


@dataclass(frozen=True, slots=True)
class Topics:
    """What one version has in Kafka. `target`: `crm.customers`, the topic that says which to read; `projection`: `customers-v3.2`."""

    target: str
    projection: str
    options: Mapping[str, object]
    records: int = 1
    """Checkpoint records, each of which has a partition of their topic."""
    partitions: int = field(init=False)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.options if name not in OPTIONS]:
            raise DefinitionError(
                f"kafka({self.target!r}) has no option {', '.join(unknown)}; known are {', '.join(OPTIONS)}."
            )
        number = self.options.get("partitions", 1)
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 1000:
            raise DefinitionError(f"kafka({self.target!r}): partitions={number!r} is no number from 1 to 1000.")
        object.__setattr__(self, "partitions", number)

    @property
    def documents(self) -> str:
        """`crm.customers.v3`, of its second build `crm.customers.v3.2`."""
        return f"{self.target}.{self.projection.rpartition('-')[2]}"

    @property
    def record(self) -> str:
        """The checkpoint record; the version is there while it and the documents' topic are."""
        return f"{self.documents}.record"

    def wanted(self, topic: str) -> tuple[str, int, dict[str, str]]:
        """Its partitions and settings."""
        if topic == self.documents:
            return topic, self.partitions, DOCUMENTS
        return (topic, self.records, RECORDS) if topic == self.record else (topic, 1, KEPT)


def described(target: Target, projection: str, shape: Shape) -> str:
    """What `preview` shows beside the SQL of other sinks, as a comment of SQL."""
    own = Topics(target.name, projection, target.options)
    return (
        f"-- Kafka, documents of {shape.name}: the last record of the topic {own.target} tells consumers the topic to read,\n"
        f"-- {own.documents} of this version ({own.partitions} partition{'s' if own.partitions > 1 else ''}, compacted):"
        " the id is the key, the document the value.\n"
    )
