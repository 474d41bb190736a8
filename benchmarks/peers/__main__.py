"""`cdc bench` with the peers' parts beside its own."""

from __future__ import annotations

import typer

from benchmarks.peers import pgsync
from pipeline.bench.run import PARTS
from pipeline.cli import bench

PARTS["pgsync"] = ("PGSync's first sync, from rows to documents", pgsync.measure)
typer.run(bench.bench)
