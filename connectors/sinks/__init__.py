"""Sinks by name: where a projection's target says `elasticsearch`, this says which class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError
from pipeline.ports import Sink
from pipeline.settings import Settings

Opener = Callable[[Target, Projection[Any], Shape, Settings], Sink]


def open_sink(target: Target, projection: Projection[Any], shape: Shape, settings: Settings) -> Sink:
    """The sink that writes this projection version to the target; it connects with its first request."""
    opener = SINKS.get(target.kind)
    if opener is None:
        raise DefinitionError(
            f"{projection.id}: no sink is called {target.kind!r}; known are {', '.join(sorted(SINKS))}."
        )
    return opener(target, projection, shape, settings)


def _elasticsearch(target: Target, projection: Projection[Any], shape: Shape, settings: Settings) -> Sink:
    from connectors.sinks.elasticsearch import ElasticsearchSink, connect

    own = settings.elasticsearch
    return ElasticsearchSink(
        client=connect(own, settings.elasticsearch_url()),
        alias=target.name,
        projection=projection.id,
        shape=shape,
        options=target.options,
        bulk_bytes=own.bulk_bytes,
        in_flight=own.in_flight,
        # deletes have to be remembered for as long as a replaced worker's last request may take to come
        gc_deletes=f"{max(900, int(2 * (settings.worker.session_timeout + own.request_timeout)))}s",
        bulk_timeout=f"{max(1, int(own.request_timeout * 2 / 3))}s",
    )


def _postgres(target: Target, projection: Projection[Any], shape: Shape, settings: Settings) -> Sink:
    from connectors.sinks.postgres import PostgresSink

    own = settings.postgres
    return PostgresSink(
        dsn=settings.postgres_dsn(),
        target=target.name,
        projection=projection.id,
        shape=shape,
        options=target.options,
        in_flight=own.in_flight,
        request_timeout=own.request_timeout,
    )


def _memory(target: Target, projection: Projection[Any], shape: Shape, settings: Settings) -> Sink:
    from connectors.sinks.memory import MemorySink, MemoryStore

    store = target.options.get("store")
    return MemorySink(
        store=store if isinstance(store, MemoryStore) else MemoryStore(),
        alias=target.name,
        projection=projection.id,
        shape=shape,
    )


SINKS: dict[str, Opener] = {"elasticsearch": _elasticsearch, "postgres": _postgres, "memory": _memory}
