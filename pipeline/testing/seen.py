"""What a scenario shows of its sinks and its mirror."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.engine.story import RowStory


@dataclass(frozen=True, slots=True)
class Received:
    """One write that a sink received; `document` is None for a delete."""

    id: str
    document: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Story:
    """Why a document is as it is: the rows behind it, what each sink holds, and what it waits for."""

    id: str
    rows: tuple[RowStory, ...]
    sinks: Mapping[str, Mapping[str, Any] | None]
    waits: str | None

    def __str__(self) -> str:
        lines = [f"{row.path}: {row.table} {row.columns} (commit {row.commit}, order {row.order})" for row in self.rows]
        lines += [f"{name}: {json.dumps(document, ensure_ascii=False)}" for name, document in self.sinks.items()]
        return "\n".join([f"document {self.id}", *lines, *([self.waits] if self.waits else [])])
