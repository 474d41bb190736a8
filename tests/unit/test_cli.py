"""The command line: what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.output import Terminal
from pipeline.cli.root import COMMANDS, run


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CDC_")]:
        monkeypatch.delenv(name)


def test_the_first_page_imports_no_command_and_no_client() -> None:
    heavy = ("pydantic", "psycopg", "httpx", "elasticsearch", "faust", "connectors", "rich.markdown")
    code = (
        "import sys; from pipeline.cli.root import run; status = run(['--help']);"
        f"print('loaded', status, [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "loaded 0 []"


def test_the_first_page_has_every_command_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0

    page = capsys.readouterr().out
    assert all(f" {entry.name} " in page and entry.group in page for entry in COMMANDS)


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_every_command_has_a_page(entry: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = entry.name  # type: ignore[attr-defined]

    assert run([name, "--help"]) == 0
    assert f"cdc {name}" in capsys.readouterr().out


def test_an_error_is_one_line_on_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")

    assert run(["check", "--offline"]) == 1

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("SettingsError: There is no folder projections")
    assert said.err.count("\n") == 1


def test_very_verbose_adds_the_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert run(["-vv", "check", "--offline"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_misspelt_command_is_a_wrong_usage_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tabels"]) == 2
    assert "tables" in capsys.readouterr().err


def test_settings_come_as_json_by_either_option_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").write_text("CDC_SOURCE__DSN=postgresql://reader:hunter2@db/shop\nCDC_PROJECT=mine\n")

    assert run(["--env-file", "env", "-o", "json", "config", "show"]) == 0
    first = capsys.readouterr().out
    assert run(["--env-file", "env", "config", "show", "-o", "json"]) == 0
    second = capsys.readouterr().out
    assert run(["--env-file", "env", "config", "show"]) == 0
    table = capsys.readouterr().out

    assert first == second
    assert json.loads(first)["project"] == "mine"
    assert "hunter2" not in first + table


def test_children_get_the_global_options_again() -> None:
    assert Terminal().again() == []
    assert Terminal(env_file=Path("env"), verbose=2, color=False).again() == [
        "--env-file",
        "env",
        "--verbose",
        "--verbose",
        "--no-color",
    ]


def test_check_ends_with_3_where_there_are_errors_and_prints_them_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", ".", "--name", "mine"]) == 0
    assert run(["check", "--offline"]) == 0
    projection = tmp_path / "projections" / "customers.py"
    projection.write_text(projection.read_text().replace("email: str", "emial: str"))
    capsys.readouterr()

    assert run(["check", "--offline", "-o", "json"]) == 3

    report = json.loads(capsys.readouterr().out)
    assert [(f["error"], f["subject"]) for f in report["findings"]] == [("UnknownColumn", "CustomerDocument.emial")]


def test_nothing_is_changed_unasked_where_nobody_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["init", ".", "--name", "mine"]) == 0
    file = tmp_path / "projections" / "customers.py"
    text = file.read_text().replace("import Document, elasticsearch,", "import Document, Projection")
    file.write_text(text.replace(" projection\n", "\n").split("customers =")[0] + MEMORY)

    assert run(["apply"]) == 1

    assert "add --yes" in capsys.readouterr().err
    assert not (tmp_path / ".cdc" / "applied.json").exists()
    assert run(["apply", "--yes"]) == 0
    assert (tmp_path / ".cdc" / "applied.json").exists()


MEMORY = """
from pipeline.authoring.projection import Target

customers = Projection(CustomerDocument, (Target("memory", "customers"),), "customers")
"""
