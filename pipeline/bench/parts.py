"""What the parts have in common: the labs they work in, and the reference beside each of their figures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.bench import truth
from pipeline.bench.alone import Alone, Compared, compare
from pipeline.bench.lab import Lab
from pipeline.bench.sizes import Data, Size
from pipeline.settings import Endpoints, Settings
from pipeline.stack import stack
from pipeline.stack.connect import secrets_file


@dataclass
class Bench:
    """One run's surroundings; `undo` takes down what was made."""

    settings: Settings
    size: Size
    say: Console
    undo: ExitStack
    labs: dict[int, Lab] = field(default_factory=dict)
    """Shops whose rows are all in Kafka, by their orders."""

    @property
    def up(self) -> Endpoints:
        endpoints = self.settings.endpoints()
        assert endpoints is not None
        return endpoints

    def new_lab(self, data: Data, *, copied: bool = False) -> Lab:
        """A shop without a connector; `copied`: of one that has no snapshot, so that workers copy the tables."""
        pids = {one.name: one.pid for one in stack.status(self.settings).services if one.pid is not None}
        folder = self.undo.enter_context(tempfile.TemporaryDirectory(prefix="cdc-bench-"))
        password = f"${{file:{secrets_file(self.settings)}:source.password}}"
        lab = Lab(Path(folder), self.up, pids, password, data, self.say, copied)
        self.undo.callback(lab.remove)
        lab.create()
        return lab

    def lab(self, data: Data) -> Lab:
        """A shop whose rows are all in Kafka; other parts use and change the same."""
        if data.orders not in self.labs:
            self.labs[data.orders] = self.filled(data)
        return self.labs[data.orders]

    def filled(self, data: Data) -> Lab:
        """A shop of its own whose rows are all in Kafka, and nothing else."""
        lab = self.new_lab(data)
        lab.connect()
        lab.fill()
        return lab

    def compared(self, lab: Lab, model: str) -> Compared:
        """The read model's documents compared with the source."""
        return compare(lab.dsn, lab.stack.elasticsearch, lab.index(model), truth.QUERIES[model])

    def alone(self, lab: Lab, model: str, *, settings: Mapping[str, Any] | None = None) -> Alone:
        """`settings`: of the index that it writes, where they are not those of the read model's."""
        rows, size = self.settings.worker.flush_rows, self.settings.elasticsearch.bulk_bytes
        return Alone(
            lab.stack.elasticsearch, lab.index(model), rows=rows, size=size, pid=lab.pids.get("elasticsearch"), settings=settings
        )  # fmt: skip


def megabytes(n: int) -> int:
    return round(n / 1e6)
