"""A fingerprint changes when the documents may, and only then."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline.authoring.fingerprint import fingerprint
from pipeline.authoring.shape import shape_of

FILE = '''
"""Orders."""
from decimal import Decimal
from pipeline import Document, derived, many

RATE = Decimal("1.19")

def taxed(amount: Decimal) -> Decimal:
    return amount * RATE

def unused() -> int:
    return 1

class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
    unit_price: Decimal

class Order(Document, source="shop.orders"):
    """An order."""
    id: int
    lines: tuple[Line, ...] = many(by="order_id")

    @derived
    def total(self) -> Decimal:
        return sum((taxed(line.unit_price) for line in self.lines), Decimal())
'''


def digest(folder: Path, text: str) -> str:
    name = f"orders_{uuid4().hex}"
    (folder / f"{name}.py").write_text(text)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return fingerprint(shape_of(module.Order))
    finally:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    id: int\n", "    id: int  # the number\n\n"),
        ('    """An order."""\n', '    """An order of a customer."""\n'),
        ('    """An order."""\n', ""),
        ('"""Orders."""', '"""All orders."""'),
        ("    return 1", "    return 2"),
        ("return amount * RATE", "return (\n        amount * RATE\n    )"),
    ],
)
def test_what_no_document_shows_leaves_the_fingerprint(tmp_path: Path, old: str, new: str) -> None:
    assert FILE.count(old) == 1
    assert digest(tmp_path, FILE.replace(old, new)) == digest(tmp_path, FILE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    id: int\n", "    id: int\n    status: str\n"),
        ("    unit_price: Decimal", "    unit_price: Decimal | None"),
        ('Decimal("1.19")', 'Decimal("1.20")'),
        ("return amount * RATE", "return amount + RATE"),
        ("taxed(line.unit_price)", "line.unit_price"),
        ('by="order_id")', 'by="order_id", order_by="unit_price")'),
        ("    id: int\n", "    id: int\n\n    def keep(self) -> bool:\n        return self.id > 1\n"),
    ],
)
def test_what_changes_documents_changes_the_fingerprint(tmp_path: Path, old: str, new: str) -> None:
    assert FILE.count(old) == 1
    assert digest(tmp_path, FILE.replace(old, new)) != digest(tmp_path, FILE)
