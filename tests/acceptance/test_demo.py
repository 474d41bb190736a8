"""`make demo`: to its end, and ended early; either way it leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import REPOSITORY, until


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the services' user comes through; pytest's own is closed to it."""
    with tempfile.TemporaryDirectory(prefix="cdc-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def demo(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    with (folder / "said").open("w") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.demo", "--check", *arguments],
            cwd=REPOSITORY, env={**os.environ, "TMPDIR": str(folder)}, text=True, stdout=subprocess.PIPE, stderr=said,
        )  # fmt: skip


def left_running(folder: Path) -> list[str]:
    """The command lines and folders of processes that belong to the demo of this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            text += str((process / "cwd").readlink())
        except OSError:
            continue
        if f"{folder}/cdc-demo-" in text:
            found.append(text)
    return found


def test_a_short_demo_runs_to_its_end_with_every_document_right(folder: Path) -> None:
    with demo(folder, "--orders", "400", "--seconds", "6", "--rate", "20") as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, (folder / "said").read_text()
    summary = json.loads(out.splitlines()[-1])
    assert summary["documents"] > 400
    assert [summary[name] for name in ("missing", "stale", "extra", "broken_invariants")] == [0, 0, 0, 0]
    assert summary["p50_ms"] > 0
    assert not left_running(folder)


def test_a_demo_that_is_told_to_end_takes_its_stack_with_it(folder: Path) -> None:
    with demo(folder, "--orders", "400") as process:
        until(lambda: "kafka answers" in (folder / "said").read_text(), 120, "Kafka is up")
        assert left_running(folder)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    until(lambda: not left_running(folder), 10, "nothing runs")
