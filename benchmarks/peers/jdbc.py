"""Debezium's JDBC sink on the flat documents: its drain of a full topic into Postgres, beside our part f.

It wants events with their schemas, so they have a topic of their own; its plugin comes from Maven, into the cache directory.
"""

from __future__ import annotations

import asyncio
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.bench.lab import Lab, ends, until
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench
from pipeline.bench.report import Figure
from pipeline.errors import OperationError
from pipeline.stack import artefacts, fetch
from pipeline.stack.java import kafka_java, properties
from pipeline.stack.site import choose_port

PLUGIN: Final = "io.debezium:debezium-connector-jdbc:tar.gz:plugin:3.6.0.Final"
SHA256: Final = "c23af8d416f0f801ffb0271b1a8fd9b5360ff8d66b0dd650e066bb56ecfddc05"
COLUMNS: Final = "order_id, line_no, product_id, quantity, unit_price"
SCHEMAS: Final = {
    f"{side}.converter{setting}": value
    for side in ("key", "value")
    for setting, value in (("", "org.apache.kafka.connect.json.JsonConverter"), (".schemas.enable", "true"))
}
DRAINS: Final = ("cold", "warm")
"""The second drain has the JVM of the first."""


def measure(bench: Bench) -> list[Figure]:
    """The clock starts with the first row that is seen, and ends with the last."""
    folder, lab = plugin(), bench.new_lab(bench.size.data)
    topic = f"{lab.name}_schemas.shop.order_lines"
    with captured(lab, topic), standalone(lab, folder) as (connect, process):
        return [drain(lab, connect, process, topic, name) for name in DRAINS]


def plugin() -> Path:
    folder = artefacts.cache() / "peers" / "jdbc"
    if not folder.exists():
        unfinished = folder.with_name("jdbc.unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fetch.downloaded(PLUGIN, SHA256)) as archive:
            fetch.extract(archive, unfinished)
        unfinished.rename(folder)
    return folder


@contextmanager
def captured(lab: Lab, topic: str) -> Iterator[None]:
    """All rows in a topic, as Debezium's defaults for the sink want them."""
    source, name = conninfo_to_dict(lab.dsn), f"{lab.name}_schemas"
    with httpx.Client(base_url=lab.stack.connect, timeout=60) as connect:
        config = {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1",
            "database.hostname": source["host"], "database.port": str(source["port"]), "database.user": source["user"],
            "database.password": lab.password, "database.dbname": lab.name, "topic.prefix": name,
            "table.include.list": "shop.order_lines", "plugin.name": "pgoutput", "slot.name": name,
            "publication.name": name, "publication.autocreate.mode": "filtered", "decimal.handling.mode": "precise",
            "topic.creation.default.partitions": "1", "topic.creation.default.replication.factor": "1",
            **SCHEMAS,
        }  # fmt: skip
        connect.put(f"/connectors/{name}/config", json=config).raise_for_status()
        try:
            until(lambda: asyncio.run(ends(lab.stack.kafka, [topic])) >= lab.data.lines, f"rows in {topic}", pause=0.5)
            yield
        finally:
            connect.delete(f"/connectors/{name}").raise_for_status()
            with psycopg.connect(lab.dsn, autocommit=True) as db:
                until(lambda: dropped(db, name), f"the slot {name} to be free", seconds=60, pause=0.5)


def dropped(db: psycopg.Connection, slot: str) -> bool:
    row = db.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active", (slot,)).fetchone()
    if row is None or row[0]:
        return False
    db.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", (slot,))
    return True


@contextmanager
def standalone(lab: Lab, folder: Path) -> Iterator[tuple[httpx.Client, int]]:
    """A Connect of its own with the sink's plugin; a client of it, and its process."""
    port = choose_port(taken=set())
    worker = lab.folder / "jdbc.properties"
    worker.write_text(
        properties(
            {
                "bootstrap.servers": lab.stack.kafka,
                "listeners": f"http://127.0.0.1:{port}",
                "plugin.path": folder,
                "offset.storage.file.filename": lab.folder / "offsets",
                **SCHEMAS,
            }
        )
    )
    command = kafka_java(lab.folder, "1g", "org.apache.kafka.connect.cli.ConnectStandalone", str(worker))
    with (lab.folder / "jdbc.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=lab.folder, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as connect:
            until(lambda: answers(connect), "a Connect with the JDBC sink", seconds=120, pause=0.5)
            yield connect, process.pid
    finally:
        process.terminate()
        process.wait(60)


def answers(connect: httpx.Client) -> bool:
    try:
        return connect.get("/connectors").is_success
    except httpx.HTTPError:
        return False


def drain(lab: Lab, connect: httpx.Client, process: int, topic: str, name: str) -> Figure:
    """One drain into a table of its own."""
    source, table = conninfo_to_dict(lab.dsn), f"jdbc_{name}"
    config = {
        "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector", "tasks.max": "1", "topics": topic,
        "connection.url": f"jdbc:postgresql://{source['host']}:{source['port']}/{lab.name}",
        "connection.username": source["user"], "connection.password": source["password"],
        "insert.mode": "upsert", "primary.key.mode": "record_key", "delete.enabled": "true",
        "schema.evolution": "basic", "collection.name.format": table, "batch.size": "3000",
        "consumer.override.max.poll.records": "3000", "consumer.override.auto.offset.reset": "earliest",
    }  # fmt: skip
    with psycopg.connect(lab.dsn, autocommit=True) as db, Meter(lab.pids | {"sink": process}) as meter:
        connect.put(f"/connectors/{table}/config", json=config).raise_for_status()
        before = until(lambda: count(db, table, connect), f"the first row in {table}", pause=0.05)
        began = time.perf_counter()
        until(lambda: count(db, table, connect) >= lab.data.lines, f"{lab.data.lines} rows in {table}", pause=0.1)
        seconds = time.perf_counter() - began
    connect.delete(f"/connectors/{table}").raise_for_status()
    detail: dict[str, list[Any]] = {f"cpu_{service}": [used] for service, used in meter.seconds.items()}
    return Figure(
        part="jdbc", what=f"Debezium's JDBC sink, flat lines into Postgres, {name}", unit="documents/s",
        values=[round((lab.data.lines - before) / seconds, 1)], documents=lab.data.lines, different=different(lab, table),
        detail=detail | {"seconds": [round(seconds, 2)]},
    )  # fmt: skip


def count(db: psycopg.Connection, table: str, connect: httpx.Client) -> int:
    """Rows so far; raises OperationError where the sink gave up."""
    for task in connect.get(f"/connectors/{table}/status").json().get("tasks", ()):
        if task["state"] == "FAILED":
            raise OperationError(f"The JDBC sink failed: {task['trace'][:2000]}")
    (there,) = db.execute("SELECT to_regclass(%s)", (table,)).fetchone() or (None,)
    row = db.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() if there else None
    return int(row[0]) if row is not None else 0


def different(lab: Lab, table: str) -> int:
    """How many rows are not the source's, or are missing."""
    of, its = f"SELECT {COLUMNS} FROM shop.order_lines", f"SELECT {COLUMNS} FROM {table}"
    query = f"SELECT count(*) FROM (({of} EXCEPT ALL {its}) UNION ALL ({its} EXCEPT ALL {of})) AS wrong"
    with psycopg.connect(lab.dsn) as db:
        row = db.execute(query.encode()).fetchone()
    return int(row[0]) if row is not None else 0
