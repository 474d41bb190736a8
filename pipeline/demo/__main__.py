"""`python -m pipeline.demo [--check]`: what `make demo` runs."""

from __future__ import annotations

import argparse
import signal
import sys

from rich.console import Console

from pipeline.demo import live, run
from pipeline.errors import CdcError


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="The whole pipeline on a sample shop.")
    parser.add_argument("--check", action="store_true", help="unattended; the last line is a JSON summary")
    parser.add_argument("--orders", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=None, help="transactions a second (50; 10 to look at)")
    parser.add_argument("--seconds", type=float, default=30, help="of load, with --check")
    given = parser.parse_args()
    say = Console(stderr=True, highlight=False)
    # what the demo started goes with it, however it is ended
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if given.check:
            return run.check(say, orders=given.orders, rate=given.rate or 50, seconds=given.seconds)
        return live.watch(say, orders=given.orders, rate=given.rate or 10)
    except CdcError as error:
        say.print(f"{type(error).__name__}: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


sys.exit(main())
