"""`cdc init`: what is written works as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from connectors.sources.debezium import load_definitions
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.discovery import look
from pipeline.cli.init import EXAMPLE
from pipeline.cli.sinks import RULES
from pipeline.errors import OperationError
from pipeline.operations.check import Captures, check
from pipeline.operations.scaffold import index_name, scaffold
from pipeline.settings import load

ODD = Table(
    name="Sales.Order-Items",
    columns=(
        Column(name="order id", type="bigint", nullable=False),
        Column(name="class", type="text"),
        Column(name="copy", type="jsonb"),
        Column(name="_hidden", type="boolean", nullable=False),
        Column(name="2nd", type="timestamp(3) with time zone"),
        Column(name="price", type="numeric(10,2)", nullable=False),
        Column(name="tags", type="character varying(10)[]"),
        Column(name="mood", type="sales.mood", base="enum"),
        Column(name="total", type="numeric", generated=True),
        Column(name="code", type="uuid", nullable=False),
        Column(name="took", type="interval"),
    ),
    primary_key=("order id", "code"),
)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CDC_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("table", [EXAMPLE, ODD], ids=lambda table: table.name)
def test_a_new_project_passes_its_own_check(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    done = scaffold(tmp_path, table, project="mine", name=index_name(table.name), catalog=Catalog.of([table]))
    own = load()
    found = look(own.projections)
    connectors = [Captures(c.name, c.source, frozenset(c.tables)) for c in load_definitions(own.connectors).values()]
    report = check(
        list(found.projections.values()),
        Catalog.load(own.catalog),
        sinks=RULES,
        problems=found.problems,
        connectors=connectors,
    )

    assert own.project == "mine"
    assert all((tmp_path / file).is_file() for file in done.files)
    assert report.findings == ()
    assert len(report.projections) == 1
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=tmp_path, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout
    assert "8 passed" in tests.stdout  # three of the projection, five generated histories


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "cdc.toml").write_text("mine")

    with pytest.raises(OperationError, match=r"cdc\.toml"):
        scaffold(tmp_path, EXAMPLE, project="mine", name="customers", catalog=Catalog.of([EXAMPLE]))

    assert [path.name for path in tmp_path.iterdir()] == ["cdc.toml"]


def test_a_name_that_can_not_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperationError, match="--name"):
        scaffold(tmp_path, EXAMPLE, project="9 lives", name="customers", catalog=Catalog.of([EXAMPLE]))
