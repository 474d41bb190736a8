"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.authoring.catalog import Catalog
from pipeline.authoring.documents import Document
from tests.support.documents import Documents, Make, Records


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Documents] = []

    def of(document: type[Document], events: dict[str, Records], catalog: Catalog | None) -> Documents:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Documents(folder, document, catalog, events))
        return made[-1]

    yield of
    for one_ in made:
        one_.close()
