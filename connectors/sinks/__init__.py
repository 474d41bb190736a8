"""Sinks by name: where a projection's target says `elasticsearch`, this says which class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from connectors.sinks.parts import Parts
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError, SettingsError
from pipeline.ports import Feed, Reader, Sink
from pipeline.settings import Settings

ReaderOpener = Callable[[Target, Shape, Settings], Reader]
Opener = Callable[[Target, Projection[Any], Shape, Settings, Parts], Sink]
FeedOpener = Callable[[Target, Settings], Feed]


def open_sink(
    target: Target, projection: Projection[Any], shape: Shape, settings: Settings, part: str | None = None
) -> Sink:
    """The sink that writes this projection version, or one of its parts, to the target; it connects with its first request."""
    opener = SINKS.get(target.kind)
    if opener is None:
        raise DefinitionError(
            f"{projection.id}: no sink is called {target.kind!r}; known are {', '.join(sorted(SINKS))}."
        )
    return opener(target, projection, shape, settings, Parts.of(projection, part))


def _elasticsearch(target: Target, projection: Projection[Any], shape: Shape, settings: Settings, parts: Parts) -> Sink:
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
        parts=parts,
    )


def _postgres(target: Target, projection: Projection[Any], shape: Shape, settings: Settings, parts: Parts) -> Sink:
    from connectors.sinks.postgres import PostgresSink

    own = settings.postgres
    return PostgresSink(
        dsn=settings.postgres_dsn,
        target=target.name,
        projection=projection.id,
        shape=shape,
        options=target.options,
        in_flight=own.in_flight,
        request_timeout=own.request_timeout,
        parts=parts,
    )


def _redis(target: Target, projection: Projection[Any], shape: Shape, settings: Settings, parts: Parts) -> Sink:
    try:
        from connectors.sinks.redis import RedisSink
    except ImportError:
        raise SettingsError("Documents in Redis need an extra: pip install 'cdc-pipeline[redis]'.") from None
    return RedisSink(
        url=settings.redis_url,
        target=target.name,
        projection=projection.id,
        shape=shape,
        options=target.options,
        settings=settings.redis,
        parts=parts,
    )


def _kafka(target: Target, projection: Projection[Any], shape: Shape, settings: Settings, parts: Parts) -> Sink:
    from connectors.sinks.kafka import KafkaSink

    return KafkaSink(
        kafka=settings.kafka_address(),
        target=target.name,
        projection=projection.id,
        shape=shape,
        options=target.options,
        settings=settings.kafka,
        parts=parts,
    )


def _memory(target: Target, projection: Projection[Any], shape: Shape, settings: Settings, _: Parts) -> Sink:
    from connectors.sinks.memory import MemorySink, MemoryStore

    store = target.options.get("store")
    return MemorySink(
        store=store if isinstance(store, MemoryStore) else MemoryStore(),
        alias=target.name,
        projection=projection.id,
        shape=shape,
    )


SINKS: dict[str, Opener] = {
    "elasticsearch": _elasticsearch,
    "postgres": _postgres,
    "redis": _redis,
    "kafka": _kafka,
    "memory": _memory,
}


def open_reader(target: Target, shape: Shape, settings: Settings) -> Reader | None:
    """Reads what readers see of the target; it connects with its first request. None: this kind of sink has no reader."""
    opener = READERS.get(target.kind)
    return opener(target, shape, settings) if opener is not None else None


def _read_elasticsearch(target: Target, shape: Shape, settings: Settings) -> Reader:
    from connectors.sinks.elasticsearch import CHECKPOINTS, connect
    from connectors.sinks.elasticsearch_reader import ElasticsearchReader

    client = connect(settings.elasticsearch, settings.elasticsearch_url(), shallow=True)
    return ElasticsearchReader(client=client, alias=target.name, shape=shape, checkpoints=CHECKPOINTS)


def _read_postgres(target: Target, shape: Shape, settings: Settings) -> Reader:
    from connectors.sinks.postgres_reader import PostgresReader

    return PostgresReader(
        dsn=settings.postgres_dsn,
        target=target,
        shape=shape,
        request_timeout=settings.postgres.request_timeout,
    )


READERS: dict[str, ReaderOpener] = {"elasticsearch": _read_elasticsearch, "postgres": _read_postgres}


def _follow_kafka(target: Target, settings: Settings) -> Feed:
    from connectors.sinks.kafka_feed import KafkaFeed

    return KafkaFeed(kafka=settings.kafka_address(), target=target.name, timeout=settings.kafka.request_timeout)


FEEDS: dict[str, FeedOpener] = {"kafka": _follow_kafka}
"""The kinds of sinks that can be followed; it connects when it is."""
