"""A projection sends one document shape to one or more sinks."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pipeline.authoring.aggregates import Aggregate
from pipeline.authoring.documents import Document

ShapeT = TypeVar("ShapeT", bound=Document | Aggregate)


@dataclass(frozen=True, slots=True)
class Target:
    """Where documents go. `kind` names a sink in connectors/sinks/."""

    kind: str
    name: str
    options: dict[str, object] = field(default_factory=dict)


def elasticsearch(index: str, **options: object) -> Target:
    """Documents go to the index behind the alias `index`."""
    return Target("elasticsearch", index, options)


def postgres(table: str, **options: object) -> Target:
    """Documents go to the table behind the view `table`, `crm.customers` (schema `read_models` where it names none).

    `columns=True`: a typed column for each field beside the document. `indexes=["email", "customer.id"]`: fields to index.
    `children=["lines"]`: lists whose items are rows of a table of their own, behind the view `crm.customers_lines`.
    """
    return Target("postgres", table, options)


def redis(name: str, **options: object) -> Target:
    """Documents go to keys of their own, `crm:customers:v3:ID`; the key `crm:customers` says the prefix of the version to read.

    `key="crm:customer:{version}:{id}"`: another pattern of the documents' keys.
    `lookups=["email", "customer.id"]`: for each value of these fields a set, `crm:customers:v3:by:email:VALUE`, of the keys of its documents.
    `ttl=timedelta(days=7)`, or seconds: a document ends that long after it was last written.
    """
    return Target("redis", name, options)


def kafka(topic: str, **options: object) -> Target:
    """Documents go to a compacted topic of their own, `crm.customers.v3`; the last record of the topic `crm.customers` says which to read.

    `partitions=6`: those of the documents' topic (1).
    """
    return Target("kafka", topic, options)


# What stands before a read model's own name in that of a target.
_BEFORE = {"postgres": ".", "redis": ":", "kafka": "."}


@dataclass(frozen=True, slots=True)
class Projection(Generic[ShapeT]):
    """A shape, its targets and a version; `file` and `line` say where it was declared."""

    shape: type[ShapeT]
    to: tuple[Target, ...]
    name: str
    version: int = 1
    file: str = ""
    line: int = 0
    across_sources: bool = False
    """It may join tables of several databases: each row is right, and they are of no common moment."""
    workers: int = 1
    """More than one: exchange mode, its documents in so many partitions (docs/concepts/scale.md)."""
    build: int = 1
    """Builds of one version have the same code: each rebuild of it makes the next."""

    @property
    def id(self) -> str:
        """`orders-v3`, its second build `orders-v3.2`: names the mirror, the consumer group and the index."""
        return f"{self.name}-v{self.version}" + (f".{self.build}" if self.build > 1 else "")

    @property
    def parts(self) -> tuple[str, ...]:
        """What has a mirror and a checkpoint record of its own: it, or each of its partitions, `orders-v3@0`."""
        return (self.id,) if self.workers == 1 else tuple(f"{self.id}@{n}" for n in range(self.workers))


def projection(
    shape: type[ShapeT],
    *,
    to: Target | list[Target],
    name: str | None = None,
    version: int = 1,
    across_sources: bool = False,
    workers: int = 1,
) -> Projection[ShapeT]:
    """Declare a read model: documents of `shape`, kept in step in every target of `to`.

    `across_sources`: its tables may be in several databases, whose transactions have no common order. Then each row is
    applied as it comes, and a document may show half a transaction until the rest is there.

    `workers`: so many processes share out the documents (exchange mode). The number is part of the version.
    """
    targets = (to,) if isinstance(to, Target) else tuple(to)
    caller = inspect.stack()[1]
    own = name or _own_name(targets[0])
    return Projection(shape, targets, own, version, caller.filename, caller.lineno, across_sources, workers)


def _own_name(target: Target) -> str:
    mark = _BEFORE.get(target.kind)
    return target.name.rpartition(mark)[2] if mark else target.name
