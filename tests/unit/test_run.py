"""`cdc run` where no worker can be run: who gives up is named, with the reason, and the exit status is the worker's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.worker import EXIT_STOP_AND_SAY

TEXT = """
from pipeline import Document, elasticsearch, projection

class Row(Document, source="app.{name}"):
    id: int

{name} = projection(Row, to=elasticsearch("{name}"))
"""


def cdc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("names", [("notes",), ("notes", "things")])
def test_when_every_worker_has_given_up_the_last_line_says_why(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "projections").mkdir()
    for name in names:
        (tmp_path / "projections" / f"{name}.py").write_text(TEXT.format(name=name))

    done = cdc(tmp_path, "run")

    assert done.returncode == EXIT_STOP_AND_SAY, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    status = json.loads(cdc(tmp_path, "status", "-o", "json").stdout)["projections"]
    assert sorted(one["name"] for one in status) == sorted(names)
    for one in status:
        why = f"DefinitionError: {one['name']}: no connector in connectors/debezium captures app.{one['name']}"
        assert f"{one['name']}-v1: {why}" in last
        assert (one["state"], one["given_up"]) == ("failed", True)
        assert one["attention"][0].startswith(
            f"{one['name']} has given up, and starting it again would not help: {why}"
        )


def test_a_worker_sends_no_column_to_a_sink_from_which_it_is_withheld(tmp_path: Path) -> None:
    (tmp_path / "projections").mkdir()
    (tmp_path / "projections/notes.py").write_text(TEXT.format(name="notes"))
    (tmp_path / "cdc.toml").write_text('[elasticsearch]\nwithheld = ["app.notes.id"]\n')

    done = cdc(tmp_path, "worker", "notes")

    assert done.returncode == EXIT_STOP_AND_SAY, done.stderr
    assert "app.notes.id is withheld from elasticsearch" in done.stderr
