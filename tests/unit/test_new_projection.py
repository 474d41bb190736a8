"""`cdc new projection`: what is written is checked, formatted, typed and tested as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.cli.root import run

WIDE = Table(
    name="shop.wide-things",
    columns=(
        Column(name="class", type="bigint", nullable=False),
        Column(name="order id", type="uuid", nullable=False),
        Column(name="price", type="numeric(10,2)", nullable=False, toastable=True),
        Column(name="ratio", type="real"),
        Column(name="open", type="boolean"),
        Column(name="code", type="character(4)"),
        Column(name="mood", type="shop.mood", base="enum"),
        Column(name="at", type="timestamp(3) with time zone"),
        Column(name="local", type="timestamp without time zone"),
        Column(name="day", type="date"),
        Column(name="hour", type="time without time zone"),
        Column(name="took", type="interval"),
        Column(name="photo", type="bytea", toastable=True),
        Column(name="extra", type="jsonb", toastable=True),
        Column(name="tags", type="text[]", toastable=True),
        Column(name="prices", type="numeric(10,2)[]", toastable=True),
        Column(name="total", type="numeric", generated=True),
    ),
    primary_key=("class", "order id"),
)
PLAIN = Table(name="shop.plain", columns=(Column(name="id", type="bigint", nullable=False),), primary_key=("id",))
KEYLESS = Table(name="shop.notes", columns=(Column(name="body", type="text"),))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one's own, with more tables in its catalog than projections."""
    for name in [name for name in os.environ if name.startswith("CDC_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert run(["init", ".", "--name", "mine"]) == 0
    lock = tmp_path / "projections" / "catalog.lock.json"
    Catalog.of([*Catalog.load(lock).tables.values(), WIDE, PLAIN, KEYLESS]).save(lock)
    return tmp_path


def done(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True)


def test_a_new_projection_is_ready_to_go_on_with(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["new", "projection", "wide-things", "--table", "shop.wide-things"]) == 0
    assert run(["new", "projection", "plain", "--table", "shop.plain"]) == 0

    said = capsys.readouterr()
    assert "projections/wide_things.py\ntests/projections/test_wide_things.py\n" in said.out
    assert "cdc preview plain" in said.err and "add shop.plain to `tables`" in said.err
    connector = project / "connectors" / "debezium" / "mine.toml"
    connector.write_text(connector.read_text().replace("]", '    "shop.plain",\n    "shop.wide-things",\n]', 1))
    assert run(["check", "--offline"]) == 0, capsys.readouterr()

    formatted = done("ruff", "format", "--check", "--line-length=120", "projections", "tests", folder=project)
    assert formatted.returncode == 0, formatted.stdout
    linted = done("ruff", "check", "--select=E,F,I,UP,RUF", "--ignore=E501", "projections", "tests", folder=project)
    assert linted.returncode == 0, linted.stdout
    typed = done("mypy", "--strict", "projections", "tests", folder=project)
    assert typed.returncode == 0, typed.stdout
    tested = done("pytest", "-q", "--cdc-histories=1", "-p", "no:cacheprovider", folder=project)
    assert tested.returncode == 0, tested.stdout
    assert "12 passed" in tested.stdout


def test_a_project_from_before_gets_what_its_tests_need(project: Path) -> None:
    for file in ("pytest.ini", "projections/__init__.py", "tests/projections/test_convergence.py"):
        (project / file).unlink()
    (project / "projections" / "__init__.py").write_text('"""Mine."""\n')

    assert run(["new", "projection", "plain", "--table", "shop.plain"]) == 0

    assert (project / "pytest.ini").is_file() and (project / "tests/projections/test_convergence.py").is_file()
    assert (project / "projections" / "__init__.py").read_text() == '"""Mine."""\n'


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("customers", "--table", "shop.plain"), "There is a projection 'customers' already"),
        (("mine", "--table", "shop.plian"), "did you mean 'shop.plain'"),
        (("Mine", "--table", "shop.plain"), "can't name a projection"),
        (("notes", "--table", "shop.notes"), "has no primary key"),
        (("there", "--table", "shop.plain"), "tests/projections/test_there.py is there already"),
    ],
)
def test_nothing_is_written_over_and_nothing_wrong_is_written(
    command: tuple[str, ...], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "tests" / "projections" / "test_there.py").write_text("mine")
    before = sorted(project.rglob("*.py"))
    capsys.readouterr()

    assert run(["new", "projection", *command]) == 1

    assert said in " ".join(capsys.readouterr().err.split())
    assert sorted(project.rglob("*.py")) == before
    assert (project / "tests" / "projections" / "test_there.py").read_text() == "mine"


def test_a_projection_that_is_broken_fails_without_a_test_of_its_own(project: Path) -> None:
    (project / "projections" / "counted.py").write_text(
        "import itertools\n\nfrom pipeline import Document, derived, elasticsearch, projection\n\nN = itertools.count()\n\n\n"
        'class Counted(Document, source="shop.plain"):\n    id: int\n\n    @derived\n    def n(self) -> int:\n'
        '        return next(N)\n\n\ncounted = projection(Counted, to=elasticsearch("counted"))\n'
    )

    tested = done("pytest", "-q", "--cdc-histories=2", "-p", "no:cacheprovider", folder=project)

    assert tested.returncode == 1
    assert "test_any_delivery_of_any_history_gives_the_same_documents[counted-0]" in tested.stdout
    assert "when it is computed again" in tested.stdout and "2 failed" in tested.stdout
