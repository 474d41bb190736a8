"""`cdc bench --size small` on real services: every part reports, and every document is the source's; never a speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench.run import PARTS
from pipeline.settings import Endpoints, Settings

pytestmark = pytest.mark.stack


@pytest.mark.timeout(1800)
def test_every_part_of_the_benchmarks_reports_and_finds_the_documents_right(
    stack: Endpoints, stack_settings: Settings, tmp_path: Path
) -> None:
    chart = tmp_path / "chart.png"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "bench", "--size", "small", "-o", "json", "--chart", str(chart), "--state-dir", str(stack_settings.state_dir)],
        env={name: value for name, value in os.environ.items() if not name.startswith("CDC_")},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert {figure["part"] for figure in figures} == set(PARTS)
    assert all(value > 0 for figure in figures for value in figure["values"])
    compared = [figure for figure in figures if figure["documents"]]
    assert {figure["part"] for figure in compared} == set(PARTS)
    assert [figure["what"] for figure in compared if figure["different"]] == []
    rates = [figure for figure in figures if figure["unit"] == "documents/s"]
    assert all(set(figure["alone"]) == {"1 client", "2 clients"} for figure in rates)
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_a_part_that_there_is_not_is_named_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "bench", "z"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "no part z" in done.stderr and "a, b, c, d, e, f, g, h, i" in done.stderr
