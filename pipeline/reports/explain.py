"""The story of one document, from its key as people type it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from pipeline.authoring.projection import Projection
from pipeline.operations import explain as operation
from pipeline.operations.explain import DocumentStory
from pipeline.runtime import wiring
from pipeline.settings import Settings


def explain(settings: Settings, projection: Projection[Any], key: Sequence[str]) -> DocumentStory:
    """`key`: its values, `10` or a text. Raises OperationError where there is no mirror, or the key has other parts."""
    wired = wiring.wire(settings, projection)
    typed = key if wired.layout.aggregate is not None else [_parsed(k) for k in key]

    async def run() -> DocumentStory:
        wiring.open_sinks(settings, wired)
        try:
            return await operation.explain(settings, wired.projection, typed, wired.sinks, wired.layout)
        finally:
            for sink in wired.sinks:
                await sink.close()

    return asyncio.run(run())


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
