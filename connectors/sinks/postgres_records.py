"""The checkpoint records in Postgres, as they are stored: one of each version, or one of each of its partitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from pipeline.ports import SinkRecord

RECORD: Final = "epoch, owner, offsets, watermark, state"
OF_VERSION: Final = "(target = %s OR starts_with(target, %s))"
"""Parameters: the version's name, and that with an @ behind it."""


def stored(checkpoints: str) -> str:
    """The query of a version's records; parameters as above."""
    return f"SELECT target, {RECORD} FROM {checkpoints} WHERE {OF_VERSION}"


def by_name(found: Iterable[Sequence[Any]]) -> dict[str, SinkRecord]:
    return {name: SinkRecord(*record) for name, *record in found}
