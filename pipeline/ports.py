"""The ports: what the engine's neighbours promise each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipeline.authoring.leaves import Leaf
from pipeline.errors import Fenced
from pipeline.events.sourcelog import parsed


@dataclass(frozen=True, slots=True)
class Write:
    """One document to write, or to delete.

    `id` is the key in its canonical text (at most 512 bytes), `revision` the owner's version (epoch << 40 | seq),
    `document` the JSON object's text, or None for a delete.
    """

    id: str
    revision: int
    document: str | None


@dataclass(frozen=True, slots=True)
class Applied:
    """Written; a delete of a document that was not there counts too."""


@dataclass(frozen=True, slots=True)
class Stale:
    """Refused, because what is stored has this revision or a newer one: a success."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """The sink has no room now; ask again after `retry_after` seconds."""

    reason: str
    retry_after: float = 1.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """The sink will never take this document as it is; `reason` has the sink's words."""

    reason: str


Outcome = Applied | Stale | Throttled | Rejected
APPLIED, STALE = Applied(), Stale()


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as the sink has it now."""

    revision: int
    document: Mapping[str, Any]


@dataclass(slots=True)
class SinkRecord:
    """What a sink remembers of a projection version: the checkpoint record.

    `offsets`: input offsets acknowledged, `{"topic/partition": next offset}`. `watermark`: one entry per connector,
    `{"shop": {"log": …, "lsn": …, "txid": …, "ts_ms": …}}`. `state`: free notes of the owner (loading, …).
    """

    epoch: int = 0
    owner: str = ""
    offsets: dict[str, int] = field(default_factory=dict)
    watermark: dict[str, dict[str, Any]] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def least(cls, parts: Sequence[SinkRecord | None]) -> SinkRecord | None:
        """What can be said of a read model in partitions: no more than each of them says. None: nobody claimed any."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        shared = set.intersection(*(set(part.watermark if part is not None else ()) for part in parts))
        watermark = {
            connector: min((part.watermark[connector] for part in known), key=_place) for connector in sorted(shared)
        }
        offsets = {name: offset for part in known for name, offset in part.offsets.items()}
        return cls(max(part.epoch for part in known), "", offsets, watermark)

    def fenced_by(self, stored: SinkRecord | None, sink: str) -> Fenced:
        """The error of an owner that finds this record replaced, or gone, in the sink of that name."""
        owned = "no record" if stored is None else f"epoch {stored.epoch} of {stored.owner}"
        return Fenced(f"{sink}: the sink has {owned}, not epoch {self.epoch} of {self.owner}: this worker stops.")


def _place(mark: Mapping[str, Any]) -> tuple[int, int]:
    return parsed(str(mark.get("log", ""))).number, int(mark["lsn"])


def always() -> bool:
    return True


class Sink(Protocol):
    """Writes the documents of one projection version to one target.

    Any method raises SinkUnavailable where the target is away; TargetMissing where it was never prepared or is gone.
    """

    atomic: bool
    """Readers see all that one `write` wrote or nothing of it."""

    @property
    def name(self) -> str:
        """`elasticsearch:orders-v3`: names the sink in the dirty set, in status and in errors."""
        ...

    async def prepare(self) -> None:
        """Create the index or table of this version; idempotent. Readers do not see it before `switch`."""
        ...

    async def claim(self, owner: str, at_least: int) -> SinkRecord:
        """Take ownership by compare-and-set: the stored record with epoch = max(stored, at_least) + 1 and this owner."""
        ...

    async def record(self) -> SinkRecord | None:
        """The stored checkpoint record, or None."""
        ...

    async def save(self, record: SinkRecord) -> None:
        """Store the record; raises Fenced where the stored one has another epoch or owner."""
        ...

    async def write(
        self, writes: Sequence[Write], epoch: int, allowed: Callable[[], bool] = always
    ) -> Sequence[Outcome]:
        """Write one bulk request; one outcome per write, in the same order. An id stands at most once in `writes`.

        `allowed` is asked right before anything is sent; where it says no, NotAllowed is raised.
        """
        ...

    async def read(self, ids: Sequence[str]) -> Mapping[str, Stored]:
        """The documents stored under these ids; what is not there is left out."""
        ...

    async def ended(self, ids: Sequence[str]) -> Collection[str]:
        """Those of the ids that were written, and that the sink let go of since, as the author told it to."""
        ...

    def scan(self, *, documents: bool = True) -> AsyncIterator[Mapping[str, Stored]]:
        """Everything stored, some hundreds at a time, as of the last refresh; in no order.

        Without `documents` only ids and revisions are fetched.
        """
        ...

    async def loading(self, on: bool) -> None:
        """Settings for a bulk load (no refresh) while no reader sees this version; restored by False. Idempotent."""
        ...

    async def switch(self) -> None:
        """Readers see this version from now on, atomically."""
        ...

    async def drop(self) -> None:
        """Remove this version's target and its checkpoint record."""
        ...

    async def refresh(self) -> None:
        """Make everything written searchable now."""
        ...

    async def count(self) -> int:
        """Documents stored in this version."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...


# ---- reading ------------------------------------------------------------------------------------------------

Operator = Literal["eq", "gt", "gte", "lt", "lte", "null"]


@dataclass(frozen=True, slots=True)
class Condition:
    """The leaf's value, or that of some item where there are several, compares so with one of `values`; null: has none.

    Values are those of JSON: int, float, str, bool; a Decimal of a decimal, times and dates in ISO 8601.
    """

    leaf: Leaf
    operator: Operator
    values: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """By a leaf, or by how well the text is met (None); what has no value is last."""

    leaf: Leaf | None
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """Which documents, in which order (then by key), `limit` of them `after` a place that `Page.next` told."""

    conditions: tuple[Condition, ...] = ()
    text: str = ""
    """Words that are all somewhere in `texts`."""
    texts: tuple[Leaf, ...] = ()
    order: tuple[Order, ...] = ()
    after: tuple[Any, ...] | None = None
    limit: int = 50


Function = Literal["sum", "avg", "min", "max"]


@dataclass(frozen=True, slots=True)
class Measure:
    """What is made of a leaf's values, of which a document has one at most; NaN and infinities are left out."""

    function: Function
    leaf: Leaf


@dataclass(frozen=True, slots=True)
class Group:
    """How many documents have the value; None: no value, or all documents where they are in no groups.

    `results` are those of the measures, as documents spell such values; None where no document has one.
    """

    value: Any
    count: int
    results: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A document's JSON as it is stored, without what the sink adds."""

    revision: int
    document: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """Documents of a query; `next` is None behind the last."""

    documents: Sequence[bytes]
    next: tuple[Any, ...] | None


class Reader(Protocol):
    """Reads the documents of a projection in one target, of the version that readers see.

    Any method raises SinkUnavailable where the target is away, TargetMissing where the version is gone, QueryRefused
    where it can't be asked so. `seen` names a version to the others.
    """

    @property
    def name(self) -> str:
        """`elasticsearch:orders`, for errors."""
        ...

    def version(self, projection: str) -> str:
        """What the build with this id, `orders-v1.2`, is called in `seen`."""
        ...

    async def seen(self) -> str:
        """The version that readers see now."""
        ...

    async def record(self, version: str) -> SinkRecord | None:
        """Its checkpoint record."""
        ...

    async def get(self, version: str, ids: Sequence[str]) -> Mapping[str, Found]:
        """The documents of these ids, as last written; what is not there is left out."""
        ...

    async def search(self, version: str, query: Query) -> Page:
        """Documents as of the last `refresh`, or newer."""
        ...

    async def count(self, version: str, query: Query) -> int:
        """How many a search has in all."""
        ...

    async def groups(
        self, version: str, query: Query, by: Leaf | None, limit: int, measures: Sequence[Measure] = ()
    ) -> Sequence[Group]:
        """A group of each value, the most frequent first; `by` None: one of all documents."""
        ...

    async def refresh(self, version: str) -> None:
        """Searches find what was written before this call."""
        ...

    async def close(self) -> None:
        """Release the connections."""
        ...


# ---- following ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """A document as it was written, None where it went. `place`: where a reader stands who has this."""

    id: str
    revision: int
    document: bytes | None
    place: str


@dataclass(frozen=True, slots=True)
class Moved:
    """Readers see this version from here on: all its documents follow, then its changes."""

    version: str
    place: str


Told = tuple[str, Sequence[Change | Moved]]
"""Where a reader stands who has all of these, and these."""


class Feed(Protocol):
    """The documents of a projection in one target as they change, those of the version that readers see."""

    @property
    def name(self) -> str:
        """`kafka:crm.customers`, for errors."""
        ...

    def follow(self, place: str | None = None, *, everything: bool = False) -> AsyncIterator[Told]:
        """What changes from now on; from behind a place; or `everything`: all documents first.

        The changes of a document come in their order. It never ends, and tells a place alone about once a second where nothing
        changes, and to begin with. Raises as a Reader does, QueryRefused where a place is none, or from so long ago that
        deletes behind it may be gone.
        """
        ...
