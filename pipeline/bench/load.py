"""`python -m pipeline.bench.load RATE SECONDS`: customers who order at a rate, in a process of their own.

A line for each transaction that changed orders: when it had committed (time.time()), and the orders' numbers. The
database is CDC_SOURCE__DSN's.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from pipeline.demo import shop

FROM_ONE: Final = 60
"""Transactions a second that one connection makes; more come from several at once."""
CONNECTIONS: Final = 4


def main(rate: float, seconds: float) -> int:
    number = CONNECTIONS if rate > FROM_ONE else 1
    dsn = os.environ["CDC_SOURCE__DSN"]

    def committed(order: int, at: float) -> None:
        sys.stdout.write(f"{at:.6f} {order}\n")
        sys.stdout.flush()

    loads = [
        shop.Load(dsn, rate / number, seconds, seed=n + 1, committed=committed, share=(n, number))
        for n in range(number)
    ]
    for load in loads:
        load.start()
    for load in loads:
        load.join()
    sys.stdout.write(f"done {sum(load.done for load in loads)}\n")
    failed = [load.error for load in loads if load.error]
    if failed:
        sys.stderr.write(f"{failed[0]}\n")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), float(sys.argv[2])))
