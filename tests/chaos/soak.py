"""Soak: hours of load and kills; what the workers hold, in memory and on disk, has to stay level (`make soak HOURS=1`)."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from rich.console import Console

from pipeline.demo import run
from pipeline.engine.sql import connect, value
from tests.chaos.run import Chaos, main

ORDERS, RATE = 20_000, 20.0
BEAT: Final = 5.0
# The load changes the newest orders only, and has not heard of this process' newest.
APART: Final = 500
LEVEL: Final = 1.25
"""How much higher the median of the last quarter may be than that of the second; the first is for caches to fill."""
CHART = Path("soak.png")
KEPT: Final = "mirrors without what they remember, MB"


def _but_remembered(mirror: Path) -> int:
    """The bytes of a mirror's tables, but for the newest transactions' ids and a week's deletes: both grow up to that."""
    with closing(connect(str(mirror), readonly=True)) as db:
        return int(value(db, "SELECT sum(pgsize) FROM dbstat WHERE name <> 'released' AND name NOT LIKE '%/deleted'"))


class Gauges(threading.Thread):
    """Reads all gauges every BEAT seconds, and keeps the number of orders as it was, so that what grows does so by itself."""

    def __init__(self, demo: run.Demo) -> None:
        super().__init__(name="gauges", daemon=True)
        self._demo, self._done = demo, threading.Event()
        self.times: list[float] = []
        self.read: dict[str, list[float]] = {}
        self.lives: set[int] = set()
        """Process ids that the worker of the orders had."""
        self.error: str | None = None

    def stop(self) -> None:
        self._done.set()
        self.join(60)

    def run(self) -> None:
        began = time.monotonic()
        try:
            while not self._done.wait(BEAT):
                found = {**self._worker(), **self._files(), **self._source()}
                self.times.append((time.monotonic() - began) / 60)
                for name, value in found.items():
                    self.read.setdefault(name, []).append(value)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    def _worker(self) -> dict[str, float]:
        state = self._demo.settings.state_dir
        pid = int(json.loads((state / "workers" / "orders-v1.json").read_text())["pid"])
        self.lives.add(pid)
        try:
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            own = float(lines["RssAnon"].split()[0]) / 1024
            return {"worker's memory, MB": own, "worker's open files": len(list(Path(f"/proc/{pid}/fd").iterdir()))}
        except OSError:  # it is just being started again
            return {"worker's memory, MB": float("nan"), "worker's open files": float("nan")}

    def _files(self) -> dict[str, float]:
        mirrors = self._demo.settings.state_dir / "mirrors"
        files = sorted(mirrors.glob("*.db"))
        logs = sum(f.stat().st_size for f in mirrors.glob("*.db-wal")) / 1e6
        whole, kept = sum(f.stat().st_size for f in files) / 1e6, sum(map(_but_remembered, files)) / 1e6
        return {"mirrors, MB": whole, KEPT: kept, "mirrors' write-ahead logs, MB": logs}

    def _source(self) -> dict[str, float]:
        with psycopg.connect(self._demo.up.postgres) as db:
            for table, key in (("order_lines", "order_id"), ("orders", "id")):
                old = f"(SELECT max(id) - {ORDERS + APART} FROM shop.orders)"
                db.execute(f"DELETE FROM shop.{table} WHERE {key} < {old}".encode())
            lag, log = db.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn) / 1e6::float8,"
                " (SELECT sum(size) FROM pg_ls_waldir()) / 1e6::float8 FROM pg_replication_slots WHERE slot_type = 'logical'"
            ).fetchall()[0]
        return {"slot's lag, MB": float(lag), "source's log on disk, MB": float(log)}

    def growth(self) -> dict[str, float]:
        """The median of the last quarter by that of the second, by gauge."""
        found = {}
        for name, values in self.read.items():
            known = [value for value in values if value == value]
            quarter = len(known) // 4
            found[name] = round(median(known[-quarter:]) / max(1e-9, median(known[quarter : 2 * quarter])), 3)
        return found

    def draw(self, file: Path, title: str) -> None:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        drawn, axes = pyplot.subplots(len(self.read), figsize=(9, 1.5 * len(self.read)), sharex=True)
        for axis, (name, values) in zip(axes, self.read.items(), strict=True):
            axis.plot(self.times, values, color="#2b6cb0", linewidth=1)
            axis.set_title(name, fontsize=9, loc="left")
            axis.set_ylim(0, 1.1 * max((value for value in values if value == value), default=1) or 1)
        axes[-1].set_xlabel("minutes")
        drawn.suptitle(title, fontsize=9)
        drawn.tight_layout()
        drawn.savefig(file, dpi=110, format="png")
        pyplot.close(drawn)


def soak(hours: float, seed: int, *, chart: Path = CHART) -> tuple[bool, dict[str, Any]]:
    """Whether every document was right and all gauges that have to are level, and the summary."""
    say = Console(stderr=True, highlight=False)
    say.print(f"soak: {hours} h, seed {seed}")
    with run.prepared(say, ORDERS, own_state=True) as demo:
        demo.summary |= {"hours": hours, "seed": seed}
        demo.start()
        gauges = Gauges(demo)
        gauges.start()
        # the worker of the orders is left alive: it is the one that is watched
        chaos = Chaos(demo, 3600 * hours, seed, RATE, pause=(60, 180), workers=("customers", "sales"))
        try:
            chaos.run()
        finally:  # what ends early has something to tell, too
            gauges.stop()
            gauges.draw(
                chart,
                f"{gauges.times[-1]:.0f} minutes, {sum(chaos.kills.values())} kills, load average {os.getloadavg()[2]:.1f}",
            )
        same = demo.compare()
        growth, summary = gauges.growth(), demo.summary
        summary |= {
            "growth": growth,
            "lives_of_the_worker": len(gauges.lives),
            "gauges_error": gauges.error,
            "chart": str(chart),
        }
        # the slot's lag and the write-ahead logs rise and fall with every commit and kill
        level = all(growth[name] <= LEVEL for name in ("worker's memory, MB", "worker's open files", KEPT))
        right = same and level and not (summary["torn_documents_seen"] or summary["load_error"] or gauges.error)
        return right, summary


if __name__ == "__main__":
    sys.exit(main(soak, sys.argv[1:]))
