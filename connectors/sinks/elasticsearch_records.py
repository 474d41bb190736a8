"""The checkpoint records in Elasticsearch, as they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import msgspec
from elasticsearch import AsyncElasticsearch

from connectors.sinks.elasticsearch_client import call
from pipeline.ports import SinkRecord

_NAMES = tuple(field.name for field in fields(SinkRecord))


def record_of(source: Mapping[str, Any]) -> SinkRecord:
    """The record in a stored document."""
    return SinkRecord(**{name: value for name, value in source.items() if name in _NAMES})


async def stored_records(
    client: AsyncElasticsearch, name: str, checkpoints: str, names: Sequence[str]
) -> dict[str, SinkRecord]:
    """The records by their names, without those that are not there; raises ApiError where there is no index of records."""
    answer = await call(client, name, "POST", f"/{checkpoints}/_mget", body={"ids": list(names)})
    docs = answer["docs"]  # as they came, where the client leaves answers so
    found = msgspec.json.decode(docs) if isinstance(docs, msgspec.Raw) else docs
    return {doc["_id"]: record_of(doc["_source"]) for doc in found if doc.get("found")}
