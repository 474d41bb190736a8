"""What holds for the whole repository: layers, the lock, public names, the written commands."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipeline
from pipeline.cli import reference

ROOT = Path(__file__).parents[2]
GENERATED = {"requirements.lock", "pipeline/stack/artefacts.lock.json"}
MACHINE_PATH = re.compile(r"(?<![\w./$}-])/(?:work|root|home|Users)/\w+")


def tracked() -> Iterator[tuple[str, str]]:
    """Every text file of the repository that git knows."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        try:
            yield name, (ROOT / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    return dict(tracked())


def test_each_floor_stands_on_the_floors_below_it() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout


def test_the_lock_names_no_host_and_has_a_hash_for_everything() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^[a-z0-9].*==.*$", lock, re.MULTILINE | re.IGNORECASE)

    assert "://" not in lock
    assert "--index-url" not in lock
    assert pins
    assert all(pin.endswith("\\") for pin in pins)


def test_the_artefacts_lock_names_no_host() -> None:
    assert "://" not in (ROOT / "pipeline/stack/artefacts.lock.json").read_text()


def test_no_file_has_a_path_of_somebodys_machine(sources: dict[str, str]) -> None:
    found = [
        f"{name}: {match[0]}"
        for name, text in sources.items()
        if name not in GENERATED
        for match in MACHINE_PATH.finditer(text)
    ]

    assert found == []


def test_every_public_name_is_sorted_there_and_documented() -> None:
    assert pipeline.__all__ == sorted(pipeline.__all__)
    assert dir(pipeline) == pipeline.__all__
    assert [name for name in pipeline.__all__ if not getattr(pipeline, name).__doc__] == []


def test_every_module_says_what_it_is_for(sources: dict[str, str]) -> None:
    silent = [
        name
        for name, text in sources.items()
        if name.endswith(".py") and text.strip() and not text.lstrip().startswith(('"""', "#!"))
    ]

    assert silent == []


def test_no_module_outgrows_its_subject(sources: dict[str, str]) -> None:
    long = {
        name: lines
        for name, text in sources.items()
        if name.startswith(("pipeline/", "connectors/", "projections/")) and name.endswith(".py")
        if (lines := text.count("\n")) > 400
    }

    assert long == {}


def test_the_written_commands_are_those_that_there_are() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text() == reference.text(), "run `make docs`"
