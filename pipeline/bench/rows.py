"""Part f: a topic that is full, to flat documents in Postgres, beside what Postgres alone takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec
import psycopg

from pipeline.bench.alone import CLIENTS, sent
from pipeline.bench.lab import Lab, until
from pipeline.bench.meters import Meter
from pipeline.bench.parts import Bench, megabytes
from pipeline.bench.report import Figure
from pipeline.bench.truth import QUERIES

MODEL: Final = "rows"
VIEW: Final = "bench.lines"
Rows = Sequence[tuple[str, str]]
_canonical = msgspec.json.Encoder(order="sorted").encode


def measure(bench: Bench) -> list[Figure]:
    """The clock starts when the worker is given its partitions, and ends when the last document is seen."""
    lab = bench.lab(bench.size.data)
    with Meter(lab.pids) as meter, psycopg.connect(lab.dsn, autocommit=True) as db:
        worker = lab.start(MODEL)
        until(lambda: count(db) >= lab.data.lines, f"{lab.data.lines} documents of {MODEL}", pause=0.3)
        seconds = time.time() - worker.reading_since()
    cpu, memory = worker.cpu, worker.memory
    worker.stop()
    different = compare(lab)
    detail = {f"cpu_{name}": used for name, used in meter.seconds.items()} | {
        "cpu_worker": cpu, "memory_mb": megabytes(memory), "seconds": round(seconds, 2),
    }  # fmt: skip
    return [
        Figure(
            part="f", what="drain, flat lines into Postgres", unit="documents/s",
            values=[round(lab.data.lines / seconds, 1)],
            alone={k: [v] for k, v in alone(lab, bench.settings.postgres.cut_rows).items()},
            documents=lab.data.lines, different=different, detail={k: [v] for k, v in detail.items()},
        )
    ]  # fmt: skip


def count(db: psycopg.Connection) -> int:
    row = db.execute(f"SELECT count(*) FROM {VIEW}".encode()).fetchone()
    return int(row[0]) if row is not None else 0


def compare(lab: Lab) -> int:
    """How many documents differ from the source's SQL, are missing or too many."""
    with psycopg.connect(lab.dsn) as db:
        stored = {key: hash(_canonical(d)) for key, d in db.execute(f"SELECT _id, document FROM {VIEW}".encode())}
        wrong = sum(stored.pop(key, None) != hash(_canonical(d)) for key, d in db.execute(QUERIES["lines"].encode()))
    return wrong + len(stored)


def alone(lab: Lab, rows: int) -> dict[str, float]:
    """Documents a second by number of clients: the same ones by COPY into an empty table, `rows` in a transaction."""
    with psycopg.connect(lab.dsn) as db:
        found = db.execute(f"SELECT _id, document::text FROM {VIEW}".encode()).fetchall()
    parts = [found[start : start + rows] for start in range(0, len(found), rows)]
    return {f"{n} client{'s' * (n > 1)}": round(len(found) / copied(lab, parts, n), 1) for n in CLIENTS}


def copied(lab: Lab, parts: Sequence[Rows], clients: int) -> float:
    """Seconds until all of it is committed."""
    with psycopg.connect(lab.dsn, autocommit=True) as db:
        db.execute("DROP TABLE IF EXISTS bench.alone")
        db.execute('CREATE TABLE bench.alone(_id text COLLATE "C" PRIMARY KEY, document jsonb)')

    @contextmanager
    def client() -> Iterator[Callable[[Rows], None]]:
        with psycopg.connect(lab.dsn) as db, db.cursor() as cursor:

            def send(part: Rows) -> None:
                with cursor.copy("COPY bench.alone FROM STDIN") as copy:
                    for row in part:
                        copy.write_row(row)
                db.commit()

            yield send

    return sent(parts, clients, client)
