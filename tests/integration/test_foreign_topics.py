"""Topics that others produce, on the real stack: a Debezium with its defaults, one that flattens, and Avro by a registry.

The oracle is SQL over the producer's table, and the read model that our own connector fills from the same table.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from psycopg.conninfo import conninfo_to_dict

from tests.support.project import Project, until
from tests.support.registry import Registry, encoded, registry

pytestmark = pytest.mark.stack

TYPES = """
CREATE SCHEMA billing; CREATE SCHEMA shop;
CREATE TABLE billing.invoices (
  id bigint PRIMARY KEY, order_id int NOT NULL, total numeric(12,2), free numeric, at timestamp, at3 timestamp(3), until timestamptz,
  day date, hour time, paid boolean, share double precision, rate real, raw bytea, code uuid, more jsonb, note text, tags text[], long text
);
CREATE TABLE shop.orders (id int PRIMARY KEY, status text NOT NULL);
INSERT INTO shop.orders SELECT n, 'new' FROM generate_series(1, 20) n;
"""
INSERT = """
INSERT INTO billing.invoices SELECT n, n % 20 + 1, n * 1.37, (n * 7 + 0.001)::numeric, timestamp '2024-02-29 10:00:00.1' + n * interval '1.000007 s',
  timestamp '1969-01-01' + n * interval '1.001 s', timestamptz '2024-02-29 10:00:00+02' + n * interval '0.5 s', date '1960-01-01' + n * 97, time '00:00:01' + n * interval '1.01 s',
  n % 2 = 0, n / 3.0, (n / 7.0)::real, decode(lpad(to_hex(n), 4, '0'), 'hex'), md5(n::text)::uuid, jsonb_build_object('n', n, 'ä', ARRAY[1.50, NULL]), 'ü "' || n,
  ARRAY['a', NULL, n::text], repeat(md5(n::text), 200)
FROM generate_series({0}, {1}) n
"""
COLUMNS = """
id = "bigint"
order_id = "integer not null"
total = "numeric(12,2)"
free = "numeric"
at = "timestamp without time zone"
at3 = "timestamp(3) without time zone"
until = "timestamp with time zone"
day = "date"
hour = "time without time zone"
paid = "boolean"
share = "double precision"
rate = "real"
raw = "bytea"
code = "uuid"
more = "jsonb"
note = "text"
tags = "text[]"
long = "text"
"""
DOCUMENT = """
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID
from pipeline import Document, elasticsearch, many, projection

class Invoice(Document, source="{table}"):
    id: int
    order_id: int
    total: Decimal | None
    free: Decimal | None
    at: datetime | None
    at3: datetime | None
    until: datetime | None
    day: date | None
    hour: time | None
    paid: bool | None
    share: float | None
    rate: float | None
    raw: bytes | None
    code: UUID | None
    more: Any
    note: str | None
    tags: tuple[str | None, ...] | None
    long: str | None

{name} = projection(Invoice, to=elasticsearch("ALIAS-{name}"))
"""
ORDERS = """
from decimal import Decimal
from pipeline import Document, elasticsearch, many, projection

class Invoice(Document, source="theirs.invoices"):
    id: int
    total: Decimal | None

class Order(Document, source="shop.orders"):
    id: int
    status: str
    invoices: tuple[Invoice, ...] = many(by="order_id", order_by="id")

orders = projection(Order, to=elasticsearch("ALIAS-orders"), across_sources=True)
"""
REFUNDS = """
from decimal import Decimal
from pipeline import Document, elasticsearch, projection

class Refund(Document, source="theirs.refunds"):
    id: int
    total: Decimal | None
    note: str | None

refunds = projection(Refund, to=elasticsearch("ALIAS-refunds"))
"""
PATIENCE = 180.0
KEY: dict[str, Any] = {"type": "record", "name": "Key", "fields": [{"name": "id", "type": "long"}]}
FIRST: dict[str, Any] = {
    "type": "record", "name": "Value",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "total", "type": ["null", {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}]},
        {"name": "__deleted", "type": ["null", "string"]},
    ],
}  # fmt: skip
SECOND: dict[str, Any] = {**FIRST, "fields": [*FIRST["fields"], {"name": "note", "type": ["null", "string"]}]}


@dataclass
class Avro:
    """A producer of refunds: each change goes to its own table and to its topic."""

    project: Project
    registry: Registry
    key: int
    topic: str

    async def send(
        self, schema: int, declared: dict[str, Any], *rows: dict[str, Any], deleted: tuple[int, ...] = ()
    ) -> None:
        with self.project.connection() as db:
            for row in rows:
                db.execute(
                    "INSERT INTO billing.refunds VALUES (%s, %s, %s) ON CONFLICT (id) DO UPDATE SET total = EXCLUDED.total,"
                    " note = EXCLUDED.note",
                    (row["id"], row["total"], row.get("note")),
                )
            for id in deleted:
                db.execute("DELETE FROM billing.refunds WHERE id = %s", (id,))
        messages = [(row["id"], encoded(schema, declared, {"__deleted": "false", **row})) for row in rows]
        for id in deleted:
            row = dict.fromkeys(field["name"] for field in declared["fields"]) | {"id": id, "__deleted": "true"}
            messages += [(id, encoded(schema, declared, row)), (id, None)]
        await self.produce(*messages)

    async def produce(self, *messages: tuple[int, bytes | None]) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self.project.endpoints.kafka)
        await producer.start()
        try:
            for id, value in messages:
                await producer.send_and_wait(self.topic, value, encoded(self.key, KEY, {"id": id}), partition=0)
        finally:
            await producer.stop()


def connector(project: Project, name: str, more: dict[str, str]) -> None:
    """A Debezium of somebody else, with its defaults."""
    at = conninfo_to_dict(project.dsn)
    config = {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1", "topic.prefix": name,
        "database.hostname": str(at["host"]), "database.port": str(at["port"]), "database.user": str(at["user"]),
        "database.password": project.password, "database.dbname": project.name, "plugin.name": "pgoutput",
        "slot.name": name, "publication.name": name, "publication.autocreate.mode": "filtered",
        "table.include.list": "billing.invoices", "poll.interval.ms": "50",
        "topic.creation.default.replication.factor": "1", "topic.creation.default.partitions": "2",
        **{f"{part}.converter": "org.apache.kafka.connect.json.JsonConverter" for part in ("key", "value")},
        **more,
    }  # fmt: skip
    httpx.put(f"{project.endpoints.connect}/connectors/{name}/config", json=config, timeout=30).raise_for_status()

    def running() -> bool:
        found = httpx.get(f"{project.endpoints.connect}/connectors/{name}/status", timeout=10).json()
        tasks = found.get("tasks", [])
        assert not any(task["state"] == "FAILED" for task in tasks), tasks
        return bool(tasks) and all(task["state"] == "RUNNING" for task in tasks)

    until(running, 60, f"connector {name} runs")


SCHEMAS = {"key.converter.schemas.enable": "true", "value.converter.schemas.enable": "true"}
FLAT = {
    "key.converter.schemas.enable": "false", "value.converter.schemas.enable": "false", "decimal.handling.mode": "string",
    "time.precision.mode": "adaptive_time_microseconds", "transforms": "flat",
    "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
    "transforms.flat.delete.tombstone.handling.mode": "rewrite", "transforms.flat.add.fields": "op,source.lsn,source.ts_ms",
    "transforms.flat.add.headers": "op",
}  # fmt: skip
MARKED = {
    **SCHEMAS, "transforms": "flat", "transforms.flat.type": "io.debezium.transforms.ExtractNewRecordState",
}  # fmt: skip


async def make_topic(project: Project, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=project.endpoints.kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1)])
    finally:
        await admin.close()


def run_only(project: Project, *names: str) -> None:
    """The workers of these: all at once are too many for a small machine."""
    project.stop_workers()
    project.start_run(*names)


def define(project: Project) -> None:
    folder = project.folder / "connectors/topics"
    folder.mkdir()
    name = project.name
    for topics, table, prefix, envelope, more in (
        ("theirs", "theirs.invoices", f"{name}_env", "debezium", ""),
        ("flat", "flat.invoices", f"{name}_flat", "flattened", 'plain_times = "micros"'),
        ("marked", "marked.invoices", f"{name}_mark", "flattened", ""),
    ):
        columns = COLUMNS.replace('at3 = "timestamp(3) without time zone"\n', "") if topics == "flat" else COLUMNS
        (folder / f"{topics}.toml").write_text(
            f'name = "{topics}"\nformat = "json"\nenvelope = "{envelope}"\n{more}\n[tables."{table}"]\n'
            f'topic = "{prefix}.billing.invoices"\nkey = ["id"]\n[tables."{table}".columns]\n{columns}'
        )
    (folder / "refunds.toml").write_text(
        f'name = "refunds"\nformat = "avro"\nenvelope = "flattened"\nregistry = "theirs"\n[tables."theirs.refunds"]\n'
        f'topic = "{name}.refunds"\nkey = ["id"]\n[tables."theirs.refunds".columns]\n'
        'id = "bigint"\ntotal = "numeric(12,2)"\nnote = "text"\n'
    )


@pytest.fixture(scope="module")
def project(new_project: Callable[[str], Project], avro_registry: Registry) -> Iterator[Project]:
    found = new_project("it_foreign")
    found.settings["CDC_REGISTRIES__THEIRS__URL"] = avro_registry.url
    names = {
        "mine": "billing.invoices",
        "theirs": "theirs.invoices",
        "flat": "flat.invoices",
        "marked": "marked.invoices",
    }
    texts = {name: DOCUMENT.format(name=name, table=table) for name, table in names.items()}
    texts["flat"] = texts["flat"].replace("    at3: datetime | None\n", "")
    made = {name: f"{found.name}_{end}" for name, end in (("theirs", "env"), ("flat", "flat"), ("marked", "mark"))}

    def others(project: Project) -> None:
        define(project)
        for name, more in (("theirs", SCHEMAS), ("flat", FLAT), ("marked", MARKED)):
            connector(project, made[name], more)

    asyncio.run(make_topic(found, f"{found.name}.refunds"))
    found.before_connector = others
    found.create_with(
        TYPES + INSERT.format(1, 300) + "; CREATE TABLE billing.refunds (id bigint PRIMARY KEY, total numeric(12,2), note text);",
        ["billing.invoices", "shop.orders"],
        {**texts, "orders": ORDERS, "refunds": REFUNDS},
    )  # fmt: skip
    yield found
    found.stop_workers()
    with httpx.Client(base_url=found.endpoints.connect, timeout=30) as connect:
        for name in made.values():
            connect.put(f"/connectors/{name}/stop")
            connect.delete(f"/connectors/{name}")
    with psycopg.connect(found.endpoints.postgres, autocommit=True) as db:
        for name in made.values():
            until(lambda: _dropped(db, name), 30, f"slot {name} is gone")  # noqa: B023 - asked at once


def _dropped(db: psycopg.Connection[Any], slot: str) -> bool:
    db.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active",
        [slot],
    )
    return db.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", [slot]).fetchone() is None


@pytest.fixture(scope="module")
def avro_registry() -> Iterator[Registry]:
    with registry() as found:
        yield found


@pytest.fixture(scope="module")
def avro(project: Project, avro_registry: Registry) -> Avro:
    return Avro(project, avro_registry, avro_registry.add(KEY), f"{project.name}.refunds")


def documents(project: Project, name: str) -> dict[str, Any]:
    index = f"{project.endpoints.elasticsearch}/{project.name}-{name}"
    httpx.post(f"{index}/_refresh", timeout=10)
    hits = httpx.post(f"{index}/_search", json={"size": 10_000}, timeout=10).json()["hits"]["hits"]
    return {hit["_id"]: {k: v for k, v in hit["_source"].items() if not k.startswith("_")} for hit in hits}


def rows(project: Project, statement: str) -> list[tuple[Any, ...]]:
    with project.connection() as db:
        return db.execute(statement.encode()).fetchall()


def in_source(project: Project) -> dict[str, Any]:
    """What can be told of each invoice in SQL without our help."""
    said = rows(
        project,
        "SELECT id, total::text, free::text, at, at3, until AT TIME ZONE 'UTC', day::text, hour::text, paid, share, note,"
        " encode(raw, 'base64'), code::text, more, tags, long FROM billing.invoices",
    )
    return {str(row[0]): row for row in said}


def told(document: dict[str, Any]) -> tuple[Any, ...]:
    """The same of a document."""
    moments = (document.get("at"), document.get("at3"), (document["until"] or "").removesuffix("Z") or None)
    return (
        document["id"], document["total"], document["free"], *moments, document["day"], document["hour"], document["paid"],
        document["share"], document["note"], document["raw"], document["code"], document["more"], document["tags"], document["long"],
    )  # fmt: skip


def spelled(row: tuple[Any, ...]) -> tuple[Any, ...]:
    def moment(value: Any, *, micros: bool) -> Any:
        text = None if value is None else value.isoformat()
        return text if text is None or micros or "." not in text else text.rstrip("0")

    id, total, free, at, at3, utc, day, hour, *rest = row
    moments = (moment(at, micros=False), moment(at3, micros=False), moment(utc, micros=True))
    return (id, total, free, *moments, day, hour, *rest)


def assert_same_soon(project: Project, what: str) -> None:
    def same() -> bool:
        mine = documents(project, "mine")
        truth = {key: spelled(row) for key, row in in_source(project).items()}
        lacking = {key: {k: v for k, v in one.items() if k != "at3"} for key, one in mine.items()}
        return (
            {key: told(one) for key, one in mine.items()} == truth
            and documents(project, "theirs") == mine == documents(project, "marked")
            and documents(project, "flat") == lacking
        )

    try:
        until(same, PATIENCE, what)
    except AssertionError:
        mine, truth = documents(project, "mine"), {key: spelled(row) for key, row in in_source(project).items()}
        assert {key: told(one) for key, one in mine.items()} == truth, project.log()
        for name in ("theirs", "marked"):
            assert documents(project, name) == mine, project.log()
        flat = {key: {k: v for k, v in one.items() if k != "at3"} for key, one in mine.items()}
        assert documents(project, "flat") == flat, project.log()


def change(project: Project, dice: random.Random, times: int) -> None:
    for _ in range(times):
        n, m = dice.randrange(1, 301), dice.randrange(1, 301)
        project.sql(
            f"UPDATE billing.invoices SET total = {dice.random():.2f}, note = '{dice.random()}', order_id = {dice.randrange(1, 21)} WHERE id = {n}",
            f"DELETE FROM billing.invoices WHERE id = {m}",
            f"{INSERT.format(m, m)} ON CONFLICT DO NOTHING",
            f"DELETE FROM billing.invoices WHERE id = {dice.randrange(1, 301)}",
            f"UPDATE billing.invoices SET id = id + 1000 WHERE id = {dice.randrange(1, 301)} AND id NOT IN (SELECT id - 1000 FROM billing.invoices)",
            f"UPDATE shop.orders SET status = 's{dice.random()}' WHERE id = {dice.randrange(1, 21)}",
        )


@pytest.mark.edge_case(7)
def test_the_same_class_has_the_same_documents_whoever_sends_the_changes(project: Project) -> None:
    run_only(project, *(f"{project.name}-{name}" for name in ("mine", "theirs", "flat", "marked")))
    assert_same_soon(project, "the snapshots of all")
    change(project, random.Random(1), 20)
    assert_same_soon(project, "the changes of all")


def test_documents_are_joined_of_a_foreign_topic_and_a_table_of_our_own_whatever_is_killed(project: Project) -> None:
    dice = random.Random(2)
    run_only(project, f"{project.name}-orders", f"{project.name}-marked")
    for name in ("orders", "marked", "orders"):
        change(project, dice, 5)
        kill(project, name)
    change(project, dice, 10)

    def joined() -> bool:
        wanted = {
            str(id): {"id": id, "status": status, "invoices": invoices or []}
            for id, status, invoices in rows(
                project,
                "SELECT o.id, o.status, json_agg(json_build_object('id', i.id, 'total', i.total::text) ORDER BY i.id)"
                " FILTER (WHERE i.id IS NOT NULL) FROM shop.orders o LEFT JOIN billing.invoices i ON i.order_id = o.id GROUP BY o.id",
            )
        }
        return documents(project, "orders") == wanted

    until(joined, PATIENCE, f"orders with their invoices\n{project.log()}")
    truth = {key: spelled(row) for key, row in in_source(project).items()}
    until(
        lambda: {k: told(one) for k, one in documents(project, "marked").items()} == truth, PATIENCE, "after the kills"
    )


def kill(project: Project, name: str) -> None:
    """The worker that runs now; what an earlier one said of itself is still there while it starts."""

    def killed() -> bool:
        with suppress(ProcessLookupError, KeyError):
            os.kill(project.said(name)["pid"], signal.SIGKILL)
            return True
        return False

    until(killed, PATIENCE, f"a worker of {name}")


def letters(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(project.cdc("deadletters", "list", "-o", "json").stdout)
    return [one for one in found if one["projection"] == f"{project.name}-refunds"]


def refunds(project: Project) -> dict[str, Any]:
    return {
        str(id): {"id": id, "total": total, "note": note}
        for id, total, note in rows(project, "SELECT id, total::text, note FROM billing.refunds")
    }


def assert_refunds_soon(project: Project, what: str) -> None:
    try:
        until(lambda: documents(project, "refunds") == refunds(project), PATIENCE, what)
    except AssertionError:
        assert documents(project, "refunds") == refunds(project), project.log()


@pytest.mark.edge_case(34)
async def test_avro_waits_for_its_registry_and_loses_nothing(
    project: Project, avro: Avro, avro_registry: Registry
) -> None:
    run_only(project, f"{project.name}-refunds")
    first = avro_registry.add(FIRST)
    await avro.send(first, FIRST, *({"id": n, "total": Decimal(n) / 4} for n in range(1, 101)))
    assert_refunds_soon(project, "the first schema")
    assert sorted(set(avro_registry.asked)) == [f"/schemas/ids/{avro.key}", f"/schemas/ids/{first}"]

    second = avro_registry.add(SECOND)
    avro_registry.stop()
    await avro.send(second, SECOND, {"id": 1, "total": None, "note": "a column more"}, deleted=(2, 3))
    await avro.send(first, FIRST, {"id": 4, "total": Decimal("-0.01")})
    until(lambda: "can't be reached" in (project.status("refunds").get("error") or ""), PATIENCE, "the outage is said")
    kill(project, "refunds")
    avro_registry.start()
    assert_refunds_soon(project, "the second schema, a column more")

    unknown = second + 1
    await avro.send(unknown, SECOND, {"id": 5, "total": Decimal(1), "note": "x"})
    until(
        lambda: f"knows no schema {unknown}" in (project.status("refunds").get("error") or ""), PATIENCE, "it is said"
    )
    assert avro_registry.add(SECOND) == unknown
    assert_refunds_soon(project, "the schema that came late")
    until(lambda: not project.status("refunds").get("error"), PATIENCE, "nothing is said any more")
    assert letters(project) == []


@pytest.mark.edge_case(34)
async def test_what_is_no_avro_is_a_dead_letter_and_the_topic_goes_on(project: Project, avro: Avro) -> None:
    await avro.produce((1, b"{}"), (2, b"\0\0\0\0\2\xff"))
    await avro.send(2, FIRST, {"id": 7, "total": Decimal(7)})
    assert_refunds_soon(project, "what came after them")
    found = letters(project)
    assert ["not with 00" in found[0]["error"], "as schema 2 says" in found[1]["error"]] == [True, True]
    retried = json.loads(
        project.cdc("deadletters", "retry", f"{project.name}-refunds", "--all", "-o", "json", check=False).stdout
    )
    assert [one["id"] for one in retried["left"]] == [one["id"] for one in found]


def test_it_is_said_what_a_foreign_topic_does_not_have(project: Project) -> None:
    found = json.loads(project.cdc("check", "-o", "json").stdout)["findings"]
    assert [f["level"] for f in found if f["error"] == "ForeignTopic"] == ["hint"] * 5
    assert not [f for f in found if f["level"] != "hint"], found
    name = f"{project.name}-theirs"
    for command in (
        ("wait", name, "--now"), ("verify", name, "--all"), ("rebuild", name), ("preview", name), ("replay", name, "--since", "1h"),
        ("backfill", "theirs.invoices"), ("erase", "theirs.invoices", "1", "--yes"),
    ):  # fmt: skip
        done = project.cdc(*command, check=False)
        said = " ".join(done.stderr.split())
        assert done.returncode == 1 and "others" in said and "theirs.invoices" in said, (command, done.stderr)
    file = project.folder / "projections/orders.py"
    text = file.read_text()
    file.write_text(text.replace(", across_sources=True", ""))
    try:
        found = json.loads(project.cdc("check", "-o", "json", check=False).stdout)["findings"]
        assert [f["error"] for f in found if f["level"] == "error"] == ["SeveralConnectors"]
    finally:
        file.write_text(text)
