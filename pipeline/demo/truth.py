"""The truth the demo compares with: every order document computed by plain SQL over the source, on a path of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import psycopg
from aiokafka import AIOKafkaConsumer

from pipeline.demo.crm import crm_session

ORDERS: Final = """
SELECT o.id::text, json_build_object(
    'id', o.id, 'status', o.status, 'charged', o.charged::text,
    'placed_at', regexp_replace(to_char(o.placed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '\\.000000Z$', 'Z'),
    'customer', (SELECT json_build_object('id', c.id, 'name', c.name) FROM shop.customers c WHERE c.id = o.customer_id),
    'lines', coalesce((SELECT json_agg(json_build_object(
            'line_no', l.line_no, 'quantity', l.quantity, 'unit_price', l.unit_price::text,
            'amount', (l.quantity * l.unit_price)::text,
            'product', (SELECT json_build_object('sku', p.sku, 'title', p.title) FROM shop.products p
                        WHERE p.id = l.product_id)) ORDER BY l.line_no)
        FROM shop.order_lines l WHERE l.order_id = o.id), '[]'::json),
    'total', (SELECT coalesce(sum(l.quantity * l.unit_price), 0)::text FROM shop.order_lines l WHERE l.order_id = o.id))
FROM shop.orders o
"""
CUSTOMERS: Final = """
SELECT c.id::text, json_build_object('id', c.id, 'name', c.name, 'email', c.email,
    'joined_at', regexp_replace(to_char(c.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), '\\.000000Z$', 'Z'))
FROM shop.customers c WHERE c.deleted_at IS NULL
"""
SALES: Final = """
SELECT '["' || day || '","' || status || '"]', json_build_object('day', day, 'status', status, 'orders', count(*),
    'customers', count(DISTINCT customer_id), 'pieces', sum(pieces), 'revenue', sum(charged)::text,
    'average_order', round(avg(charged), 2)::text, 'largest_order', max(charged)::text,
    'last_placed_at', regexp_replace(max(to_char(placed_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')), '\\.000000Z$', 'Z'))
FROM (SELECT *, (placed_at AT TIME ZONE 'UTC')::date::text AS day, coalesce((SELECT sum(l.quantity) FROM shop.order_lines l
    WHERE l.order_id = orders.id), 0) AS pieces FROM shop.orders WHERE charged > 0) sale
GROUP BY day, status
"""
SAGAS: Final = """
SELECT aggregate_id::text, json_build_object('order_id', aggregate_id, 'status', (array_agg(step ORDER BY id DESC))[1],
    'total', coalesce((array_agg(payload->>'total' ORDER BY id DESC) FILTER (WHERE step = 'placed'))[1], '0'),
    'paid', coalesce((array_agg(CASE step WHEN 'paid' THEN payload->>'amount' ELSE '0' END ORDER BY id DESC)
        FILTER (WHERE step IN ('paid', 'compensated')))[1], '0'),
    'refused_because', (array_agg(payload->>'reason' ORDER BY id DESC) FILTER (WHERE step = 'refused'))[1],
    'steps', json_agg(step ORDER BY id))
FROM (SELECT *, lower(replace(type, 'Order', '')) AS step FROM shop.outbox WHERE aggregate_type = 'order') told
GROUP BY aggregate_id
"""
TAGS: Final = """
SELECT t.id::text, json_build_object('id', t.id, 'name', t.name, 'products', coalesce((
    SELECT json_agg(json_build_object('id', p.id, 'sku', p.sku, 'title', p.title) ORDER BY p.id)
    FROM shop.product_tags l JOIN shop.products p ON p.id = l.product_id WHERE l.tag_id = t.id), '[]'::json))
FROM shop.tags t
"""


MEMBERS: Final = "SELECT customer_id, level, points FROM crm.members"
Joined = Callable[[str], dict[str, Any]]


def members(uri: str) -> Joined:
    """What the CRM, in a MariaDB, has of a customer."""
    with crm_session(uri) as session:
        found = {str(id): {"level": level, "points": points} for id, level, points in session.rows(MEMBERS)}
    return lambda id: {"member": found.get(id)}


@dataclass
class Difference:
    """Documents compared with the source's truth."""

    documents: int = 0
    missing: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Orders whose charge is not the sum of their lines."""

    @property
    def none(self) -> bool:
        return not (self.missing or self.stale or self.extra or self.broken)

    def counts(self) -> dict[str, int]:
        return {
            "documents": self.documents, "missing": len(self.missing), "stale": len(self.stale),
            "extra": len(self.extra), "broken_invariants": len(self.broken),
        }  # fmt: skip


def compare(dsn: str, elasticsearch: str, alias: str, query: str, joined: Joined | None = None) -> Difference:
    """Every document of the alias against the SQL's; ids as text."""
    return difference(dsn, query, documents(elasticsearch, alias), joined)


def difference(
    dsn: str, query: str, documents: Iterable[tuple[str, dict[str, Any]]], joined: Joined | None = None
) -> Difference:
    """Every document, by its id as text, against the SQL's, with what another database has of each."""
    with psycopg.connect(dsn) as db:
        expected: dict[str, dict[str, Any]] = {row[0]: row[1] for row in db.execute(query.encode())}
    if joined is not None:
        expected = {id: document | joined(id) for id, document in expected.items()}
    found = Difference()
    for key, document in documents:
        document.pop("_epoch", None)
        found.documents += 1
        truth = expected.pop(key, None)
        if truth is None:
            found.extra.append(key)
        elif truth != document:
            found.stale.append(key)
        if "charged" in document and float(document["charged"]) != float(document["total"]):
            found.broken.append(key)
    found.missing = list(expected)
    return found


def documents(elasticsearch: str, alias: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document of an index or alias, by a point in time."""
    with httpx.Client(base_url=elasticsearch, timeout=60) as client:
        client.post(f"/{alias}/_refresh").raise_for_status()
        pit = client.post(f"/{alias}/_pit", params={"keep_alive": "2m"}).raise_for_status().json()["id"]
        after: list[Any] | None = None
        while True:
            body: dict[str, Any] = {
                "size": 2000, "pit": {"id": pit, "keep_alive": "2m"}, "sort": ["_shard_doc"], "track_total_hits": False
            }  # fmt: skip
            if after is not None:
                body["search_after"] = after
            hits = client.post("/_search", json=body).raise_for_status().json()["hits"]["hits"]
            if not hits:
                break
            for hit in hits:
                yield hit["_id"], hit["_source"]
            after = hits[-1]["sort"]
        client.request("DELETE", "/_pit", content=json.dumps({"id": pit}), headers={"content-type": "application/json"})


def in_postgres(dsn: str, view: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document of a view of the Postgres sink."""
    with psycopg.connect(dsn) as db:
        yield from db.execute(f"SELECT _id, document FROM {view}".encode())


def in_redis(url: str, target: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every document of the version that the Redis sink's key names."""
    from redis import Redis

    client: Any
    with Redis.from_url(url, decode_responses=True) as client:
        prefix = str(client.get(target))
        for key in client.scan_iter(f"{prefix}*", count=1000, _type="string"):
            yield key.removeprefix(prefix), json.loads(client.get(key))


def in_kafka(bootstrap: str, target: str) -> dict[str, dict[str, Any]]:
    """Every document of the version that the topic names, as a consumer reads them."""
    return asyncio.run(kafka_documents(target, bootstrap_servers=bootstrap))


async def kafka_records(topic: str, **kafka: Any) -> list[Any]:
    """All that is committed of a topic, in the order of each partition."""
    kafka = {"isolation_level": "read_committed", "auto_offset_reset": "earliest"} | kafka
    async with AIOKafkaConsumer(topic, **kafka) as consumer:
        ends = await consumer.end_offsets(list(consumer.assignment()))
        found: list[Any] = []
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for some in (await consumer.getmany(*ends, timeout_ms=100)).values():
                found += some
        return found


async def kafka_live(target: str, **kafka: Any) -> dict[str, Any]:
    """What readers are told to read."""
    return dict(json.loads((await kafka_records(target, **kafka))[-1].value))


async def kafka_documents(target: str, **kafka: Any) -> dict[str, dict[str, Any]]:
    """The documents of the version that readers are told to read."""
    topic = (await kafka_live(target, **kafka))["topic"]
    last = {record.key.decode(): record.value for record in await kafka_records(topic, **kafka)}
    return {id: json.loads(value) for id, value in last.items() if value is not None}


def position(dsn: str) -> int:
    """Where the source's log is now, as a number; read after the commits it is to cover."""
    with psycopg.connect(dsn) as db:
        row = db.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    assert row is not None
    return int(row[0])
