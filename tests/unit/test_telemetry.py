"""What a worker says of itself is its own."""

from __future__ import annotations

import subprocess
import sys

CHILD = "import os; from pipeline.runtime.telemetry import peak_memory; print(peak_memory(os.getpid()))"
PARENT = "import subprocess, sys; taken = b'x' * 700_000_000; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"


def test_the_memory_of_a_worker_is_not_that_of_what_started_it() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, check=True)
    assert 10_000_000 < int(done.stdout) < 400_000_000
