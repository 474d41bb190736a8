"""The demo to look at: changes going in, documents coming out, and how long that took."""

from __future__ import annotations

import time

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from pipeline.demo import run, shop
from pipeline.demo.sampler import Sampler, percentile
from pipeline.operations.status import StatusReport


def watch(say: Console, *, orders: int, rate: float) -> int:
    """Until ctrl-C."""
    with run.prepared(say, orders, own_state=False) as demo:
        demo.start()
        up = demo.up
        sampler = Sampler(up.elasticsearch, "orders")
        load = shop.Load(up.postgres, rate, 86_400, committed=sampler.committed, tells=True, crm=demo.crm)
        say.print("Customers keep ordering; ctrl-C ends it all.")
        with sampler, Live(console=say, refresh_per_second=2, transient=False) as screen:
            load.start()
            try:
                while load.running:
                    screen.update(_screen(load, sampler, demo.status(), demo))
                    time.sleep(0.5)
            except KeyboardInterrupt:
                load.stop()
        load.join(5)
    return 0


def _screen(load: shop.Load, sampler: Sampler, status: StatusReport, demo: run.Demo) -> Group:
    going_in = Table("TRANSACTION", "COMMITTED", box=None)
    for kind, n in sorted(load.by_kind.items(), key=lambda item: -item[1]):
        going_in.add_row(kind.replace("_", " "), f"{n:,}")
    out = Table("READ MODEL", "STATE", "DOCUMENTS", "BEHIND", "WRITTEN", box=None)
    for p in status.projections:
        written = sum(s.written.get("applied", 0) for s in p.sinks)
        behind = "-" if p.behind is None else f"{p.behind:.1f} s"
        out.add_row(p.name, p.state, f"{p.documents:,}", behind, f"{written:,}")
    recent = [delay for _, delay in sampler.samples[-200:]]
    middle, late = percentile(recent, 0.5), percentile(recent, 0.99)
    delays = "…" if middle is None or late is None else f"p50 {middle * 1000:.0f} ms, p99 {late * 1000:.0f} ms"
    elasticsearch = demo.up.elasticsearch
    newest = _newest(elasticsearch)
    look = f"{demo.dashboard}   ·   curl '{elasticsearch}/orders/_doc/{newest}?pretty'   ·   .venv/bin/cdc status"
    return Group(
        Panel(going_in, title=f"into Postgres and MariaDB: {load.done:,} transactions", title_align="left"),
        Panel(out, title=f"out of Elasticsearch: commit to readable {delays}", title_align="left"),
        Panel(look, title="look at the dashboard, or at a document", title_align="left"),
    )


def _newest(elasticsearch: str) -> str:
    try:
        query = {"size": 1, "sort": [{"id": "desc"}], "_source": False}
        hits = httpx.post(f"{elasticsearch}/orders/_search", json=query, timeout=5).json()["hits"]["hits"]
        return str(hits[0]["_id"]) if hits else "1"
    except (httpx.HTTPError, KeyError, ValueError):
        return "1"
