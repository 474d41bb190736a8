"""A digest of what a projection says: another one means other documents."""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.documents import Document
from pipeline.authoring.shape import FieldShape, RelationShape, Shape

Definitions = dict[str, ast.stmt]


def fingerprint(shape: Shape) -> str:
    """A digest of the declaration and the Python code that its file has for it, as 16 hex digits.

    Comments, docstrings and layout do not count; nor does code that the file imports.
    """
    parts = []
    for level in shape.walk():
        parts.append(repr((level.table, level.key, level.keeps, [_said(member) for member in level.members])))
        for of in level.document.__mro__:
            if issubclass(of, Document) and of is not Document:
                parts += _sources(of)
    if isinstance(shape, AggregateShape):
        parts += [repr([_said(member) for member in shape.members]), *_sources(shape.aggregate)]
    return hashlib.sha256("\n".join(dict.fromkeys(parts)).encode()).hexdigest()[:16]


def _said(member: FieldShape | RelationShape) -> tuple[Any, ...]:
    # without a mask all is as it was before there were masks
    left_out = ("annotation", "shape", *(("mask",) if getattr(member, "mask", None) is None else ()))
    return tuple(getattr(member, of.name) for of in fields(member) if of.name not in left_out)


def _sources(document: type[BaseModel]) -> Iterator[str]:
    """The class and all that it names of its own module, directly or not, each once."""
    try:
        file = inspect.getsourcefile(document)
    except TypeError:  # made at a prompt
        file = None
    known = _definitions(Path(file)) if file is not None and Path(file).exists() else {}
    waiting, seen = [document.__name__], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        yield ast.unparse(known[name])
        waiting += sorted({n.id for n in ast.walk(known[name]) if isinstance(n, ast.Name)}, reverse=True)


@cache
def _definitions(file: Path) -> Definitions:
    """A module's top-level definitions by name, without their docstrings."""
    found: Definitions = {}
    for statement in ast.parse(file.read_text()).body:
        for node in ast.walk(statement):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {n.id: statement for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found
