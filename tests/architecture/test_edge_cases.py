"""Every edge case that is written of has a test, and every number in a test is written of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLLECT = """
import pytest, sys

class Numbers:
    def pytest_collection_modifyitems(self, items):
        print("numbers", *{n for item in items for mark in item.iter_markers("edge_case") for n in mark.args})

sys.exit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", "tests"], plugins=[Numbers()]))
"""


def test_the_edge_cases_written_of_are_those_that_are_tested() -> None:
    done = subprocess.run([sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("numbers "))
    tested = sorted(map(int, line.split()[1:]))
    page = (ROOT / "docs/concepts/edge-cases.md").read_text()
    assert tested == [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, 54))
