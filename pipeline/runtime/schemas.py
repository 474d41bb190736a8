"""Records of foreign topics wait here until their registry has told their schemas: it may be away, and no record is lost by that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from connectors.sources.registry import Registry
from pipeline.errors import Transient
from pipeline.runtime.batches import Batch
from pipeline.runtime.pacing import Backoff

log = logging.getLogger("cdc.schemas")


@dataclass(slots=True)
class Schemas:
    """`registries` are those of the topics that need one."""

    name: str
    registries: Mapping[str, Registry]
    stopping: asyncio.Event
    nap: Callable[[float], Awaitable[None]]
    waits: str | None = None
    """What is waited for."""

    async def known(self, batch: Batch) -> bool:
        """Whether the batch can be decoded; not where the worker stops, or the batch is stale, before its schemas are told."""
        registry = self.registries.get(batch.tp.topic)
        if registry is None:
            return True
        backoff = Backoff(0.5)
        try:
            while not (self.stopping.is_set() or batch.stale()):
                try:
                    await registry.learn(batch.records)
                    return True
                except Transient as error:
                    log.warning("%s: %s: %s", self.name, batch.partition, error)
                    self.waits = f"{batch.partition}: {error}"
                    await self.nap(backoff.delay())
            return False
        finally:
            self.waits = None
