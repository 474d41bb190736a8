"""The command `cdc`: commands load their settings, call an operation and print its report; nothing else."""

from __future__ import annotations

import sys


def main() -> None:
    """The entry point: runs the command line and exits with its status."""
    from pipeline.cli.root import run

    sys.exit(run(sys.argv[1:]))
