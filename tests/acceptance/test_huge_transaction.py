"""A transaction of a million rows: whole or not at all, in memory that its size does not set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = 1_000_000
STAGED_BYTES = 8_000_000
BOUND_BYTES = 200_000_000
"""Holding the events would take 900 MB."""


@pytest.mark.edge_case(18)
def test_a_transaction_of_a_million_rows_passes_whole_in_bounded_memory(tmp_path: Path) -> None:
    script = Path(__file__).with_name("huge_transaction.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "mirror.db"), str(ROWS), str(STAGED_BYTES)],
        capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["applied"] == ROWS + ROWS // 4
    assert report["rows"] == ROWS - ROWS // 4
    assert report["staged"] == 0
    assert report["grew_bytes"] < BOUND_BYTES
