"""`cdc bench` with the peers' parts beside its own."""

from __future__ import annotations

import typer

from benchmarks.peers import jdbc, pgsync
from pipeline.bench.run import PARTS
from pipeline.cli import bench

PARTS["pgsync"] = ("PGSync's first sync, from rows to documents", pgsync.measure)
PARTS["jdbc"] = ("Debezium's JDBC sink, from a full topic to rows in Postgres", jdbc.measure)
typer.run(bench.bench)
