"""Where a document's class or field was written: file and line, for errors that an author can click."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel

from pipeline.authoring.aggregates import Aggregate
from pipeline.authoring.documents import Document, Many, One
from pipeline.authoring.event_documents import EventDocument

BASES = (Document, Aggregate, EventDocument)
_LOCATED = re.compile(r"^[^\s:]+:\d+: (?P<rest>(?P<document>\w+)(?:\.(?P<field>\w+))?.*)$", re.DOTALL)


def place(document: type[BaseModel], field: str | None = None) -> tuple[str, int]:
    """The file and the line of a field, or of its class where there is no such line."""
    for owner in document.__mro__:
        if not issubclass(owner, (Document, Aggregate)) or owner in BASES:
            continue
        file = inspect.getsourcefile(owner)
        lines = _lines(file, Path(file).stat().st_mtime_ns).get(owner.__qualname__) if file else None
        if file and lines and (field is None or field in lines):
            return file, lines[field or ""]
    if field is not None:
        return place(document)
    return document.__module__, 0


def place_of_message(root: type[BaseModel], message: str) -> tuple[str, int, str, str]:
    """File, line, text and subject of a BadShape's line, which names a class and perhaps a field of it."""
    found = _LOCATED.match(message)
    if found is not None:
        for document in _below(root):
            if document.__name__ == found["document"]:
                field = found["field"] if found["field"] in document.model_fields else None
                subject = document.__name__ + (f".{found['field']}" if found["field"] else "")
                return *place(document, field or found["field"]), found["rest"], subject
    return *place(root), message, root.__name__


def _below(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The document and those in its fields, each once; works on shapes that do not compile."""
    seen: set[type[BaseModel]] = set()
    waiting = [root]
    while waiting:
        document = waiting.pop()
        if document in seen:
            continue
        seen.add(document)
        yield document
        if issubclass(document, Aggregate) and isinstance(document.__of__, type):
            waiting.append(document.__of__)
        for info in document.model_fields.values():
            if any(isinstance(mark, (One, Many)) for mark in info.metadata):
                waiting.extend(_documents_in(info.annotation))


def _documents_in(annotation: object) -> Iterator[type[Document]]:
    if isinstance(annotation, type) and issubclass(annotation, Document):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _documents_in(argument)


@cache
def _lines(file: str, changed: int) -> dict[str, dict[str, int]]:
    """Per class the line of each field and derived method; the class's own under the empty name."""
    found: dict[str, dict[str, int]] = {}

    def visit(node: ast.AST, above: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                name = above + child.name
                found[name] = {"": child.lineno, **dict(_members(child))}
                visit(child, name + ".")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                visit(child, f"{above}{child.name}.<locals>.")
            else:
                visit(child, above)

    try:
        visit(ast.parse(Path(file).read_bytes()), "")
    except (OSError, SyntaxError):
        pass
    return found


def _members(node: ast.ClassDef) -> Iterator[tuple[str, int]]:
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            yield item.target.id, item.lineno
        elif isinstance(item, ast.FunctionDef):
            yield item.name, item.lineno
