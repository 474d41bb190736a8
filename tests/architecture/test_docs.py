"""The Python of the guides: every snippet runs, and every test in it passes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def guide(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ModuleType]:
    """A guide's snippets, one after the other, as a module beside the shop's catalog; its lines are the guide's."""
    text = request.param.read_text()
    lines = [""] * (text.count("\n") + 1)
    for found in SNIPPET.finditer(text):
        first = text.count("\n", 0, found.start(1))
        code = found[1].splitlines()
        lines[first : first + len(code)] = code
    name = f"guide_{request.param.stem.replace('-', '_')}"
    file = tmp_path / f"{name}.py"
    file.write_text("\n".join(lines))
    shutil.copy(ROOT / "projections" / "catalog.lock.json", tmp_path)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[name]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem, indirect=True)
def test_the_snippets_of_a_guide_run_and_their_tests_pass(guide: ModuleType) -> None:
    for name, test in list(vars(guide).items()):
        if name.startswith("test_"):
            test()


def test_every_link_between_pages_leads_somewhere() -> None:
    pages = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        ROOT / "projections/README.md",
        ROOT / "connectors/README.md",
    ]
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / link).exists()
    ]

    assert broken == []
