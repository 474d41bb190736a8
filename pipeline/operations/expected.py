"""The documents that there should be: the source's rows as values, through the author's own class where he wrote code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, SecretStr

from pipeline.authoring.catalog import Catalog, Column
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape
from pipeline.engine.withholding import Rules, withheld
from pipeline.errors import OperationError
from pipeline.operations.canonical import canonical, parsed

ABSENT: Final = "(no such field)"
LONGEST_ID: Final = 512
"""Bytes of a document's id; a longer key is hashed."""


class Unbuildable(Exception):
    """The author's code fails on these rows, or a row that it needs is missing: no document is expected, none refused."""


class FieldDifference(BaseModel):
    """One place in a document where the two differ; values as they are compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """`lines[2].product.title`."""
    source: Any
    document: Any


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: Kind
    """As values are compared: a text over a timestamp column is a timestamp."""
    repeated: bool
    field: FieldShape | None
    relation: RelationShape | None
    below: _Level | None = None


@dataclass(frozen=True, slots=True)
class _Level:
    shape: Shape
    members: tuple[_Member, ...]


class Expectation:
    """What a document of this shape must be, given rows; raises OperationError where that can't be told.

    `unreadable` names the columns (`schema.table.column`) whose values SQL can't give as events have them: plain fields
    over them are left out, and listed in `not_compared`.
    """

    def __init__(
        self,
        shape: Shape,
        catalog: Catalog,
        unreadable: frozenset[str] = frozenset(),
        salt: SecretStr | None = None,
    ) -> None:
        self.shape, self._salt, self._masked = shape, salt or SecretStr(""), bool(shape.masks)
        self._rules: Rules = {}
        self.not_compared: list[str] = []
        self._unreadable = unreadable
        self._level = self._compiled(shape, catalog, "")
        if shape.python and self.not_compared:
            raise OperationError(
                f"{shape.name} can't be verified: its Python code may use {', '.join(self.not_compared)}, whose column"
                " has a type that verify can't read as events have it."
            )

    def for_sink(self, rules: Rules) -> Self:
        """What is expected in a sink that must not have such rows."""
        own = copy(self)
        own._rules = rules
        return own

    @property
    def width(self) -> int:
        return len(self.shape.key)

    def document(self, raw: Mapping[str, Any]) -> dict[str, Any] | None:
        """The document in canonical values, None where there is to be none; raises Unbuildable."""
        if self._rules and withheld(self.shape, raw, self._rules):
            return None
        raw = self.masked(raw)
        if not self.shape.python:
            return self._from_rows(self._level, raw)
        try:
            made, kept = _made(self._level, raw)
            return self._from_python(self._level, made, kept) if made.keep() else None
        except Exception as error:  # the author's code: the worker quarantines this document
            raise Unbuildable(f"{type(error).__name__}: {error}") from None

    def masked(self, raw: Mapping[str, Any]) -> Mapping[str, Any]:
        """The rows as documents show them."""
        return _masked(self._level, raw, self._salt) if self._masked else raw

    def made(self, raw: Mapping[str, Any]) -> Any:
        """The author's own object of masked rows, None where `keep()` says no; raises Unbuildable."""
        try:
            made, _ = _made(self._level, raw)
            return made if made.keep() else None
        except Exception as error:  # the author's code: the worker quarantines this document
            raise Unbuildable(f"{type(error).__name__}: {error}") from None

    def stored(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A sink's document in canonical values, with what it has too many."""
        return _stored(self._level, document)

    # ---- compiling ----------------------------------------------------------------------------------------

    def _compiled(self, shape: Shape, catalog: Catalog, above: str) -> _Level:
        table = catalog.table(shape.table)
        members: list[_Member] = []
        for member in shape.members:
            path = above + member.name
            if isinstance(member, RelationShape):
                below = self._compiled(member.item, catalog, path + ".")
                members.append(_Member(member.name, "json", member.many, None, member, below))
            elif member.column is not None and f"{table.name}.{member.column}" in self._unreadable:
                self.not_compared.append(path)
            else:
                column = table.column(member.column) if member.column is not None else None
                kind, repeated = _compared_as(member, column)
                members.append(_Member(member.name, kind, repeated, member, None))
        return _Level(shape, tuple(members))

    # ---- both ways to a document --------------------------------------------------------------------------

    def _from_rows(self, level: _Level, raw: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for member in _shown(level):
            fixed = member.field.fixed if member.field is not None else None
            value = raw[member.name] if fixed is None else fixed.value
            if member.below is None:
                as_json = member.kind == "json" and isinstance(value, str)
                found[member.name] = canonical(
                    json.loads(value) if as_json else value, member.kind, repeated=member.repeated
                )
            elif member.repeated:
                found[member.name] = [self._from_rows(member.below, one) for one in value]
            else:
                if value is None and member.relation is not None and not member.relation.nullable:
                    raise Unbuildable(f"{member.name}: the row it refers to is missing")
                found[member.name] = None if value is None else self._from_rows(member.below, value)
        return found

    def _from_python(self, level: _Level, made: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for member in _shown(level):
            value = getattr(made, member.name)
            if member.field is not None and member.field.model is not None:
                # what a model does not know is in the document all the same
                found[member.name] = canonical(
                    parsed(raw[member.name], member.kind), member.kind, repeated=member.repeated
                )
            elif member.below is None:
                found[member.name] = canonical(value, member.kind, repeated=member.repeated)
            elif member.repeated:
                pairs = zip(value, raw[member.name], strict=True)
                found[member.name] = [self._from_python(member.below, one, of) for one, of in pairs]
            else:
                of = raw[member.name]
                found[member.name] = None if value is None else self._from_python(member.below, value, of)
        return found


def _masked(level: _Level, raw: Mapping[str, Any], salt: SecretStr) -> dict[str, Any]:
    found = dict(raw)
    for member in level.members:
        if member.field is not None and member.field.mask is not None:
            found[member.name] = member.field.mask.of(raw[member.name], salt)
        elif member.below is not None and raw[member.name] is not None:
            below, rows = member.below, raw[member.name]
            found[member.name] = (
                [_masked(below, one, salt) for one in rows] if member.repeated else _masked(below, rows, salt)
            )
    return found


def _compared_as(field: FieldShape, column: Column | None) -> tuple[Kind, bool]:
    if column is None:
        return field.kind, field.repeated
    natural = kinds_of(column)
    if natural.repeated:
        return natural.kinds[0], True
    if field.kind == "text" and natural.kinds[0] != "json":
        return natural.kinds[0], False
    return field.kind, field.repeated


def _shown(level: _Level) -> Iterator[_Member]:
    return (m for m in level.members if not (m.field or m.relation).hidden)  # type: ignore[union-attr]


def _made(level: _Level, raw: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The rows as the author's class, and as they came; rows below whose own `keep()` says no are left out of both."""
    left = dict(raw)
    found: dict[str, Any] = {}
    for member in level.members:
        if member.below is not None:
            below = member.below
            rows = raw[member.name] if member.repeated else [raw[member.name]]
            made = [_made(below, one) for one in rows if one is not None]
            kept = [(one, of) for one, of in made if not below.shape.keeps or one.keep()]
            found[member.name] = tuple(one for one, _ in kept) if member.repeated else kept[0][0] if kept else None
            left[member.name] = [of for _, of in kept] if member.repeated else kept[0][1] if kept else None
        elif member.field is not None and member.field.left_out_of is not None:
            found[member.name] = raw[member.name]
        elif member.field is not None and member.field.column is not None:
            found[member.name] = parsed(raw[member.name], member.field.kind)
    return level.shape.document.model_validate(found), left


def _stored(level: _Level, document: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for member in _shown(level):
        value = document.get(member.name, ABSENT)
        if member.below is None:
            found[member.name] = canonical(value, member.kind, repeated=member.repeated)
        elif isinstance(value, Mapping):
            found[member.name] = _stored(member.below, value)
        elif member.repeated and isinstance(value, list):
            below = member.below
            found[member.name] = [_stored(below, one) if isinstance(one, Mapping) else one for one in value]
        else:
            found[member.name] = value
    known = {m.name for m in level.shape.members}
    return found | {name: document[name] for name in document if name not in known}


# ---- ids, hashes, differences ---------------------------------------------------------------------------------


def document_id(key: Sequence[Any]) -> str:
    """The id of the document of this key, its values as in events."""
    parts = [int(part) if isinstance(part, bool) else part for part in key]
    text = str(parts[0]) if len(parts) == 1 else "[" + ",".join(json.dumps(p, ensure_ascii=False) for p in parts) + "]"
    if len(text.encode()) <= LONGEST_ID:
        return text
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def key_of(id: str, width: int) -> tuple[str, ...] | None:
    """The key's columns as text, out of an id; None where it has none, or was hashed."""
    if width == 1:
        return None if id.startswith("sha256:") else (id,)
    try:
        parts = json.loads(id)
    except ValueError:
        return None
    if not isinstance(parts, list) or len(parts) != width:
        return None
    return tuple(part if isinstance(part, str) else json.dumps(part) for part in parts)


def digest(document: Mapping[str, Any] | None) -> bytes:
    """128 bits of a canonical document; none is the empty digest."""
    if document is None:
        return b""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def differences(source: Any, document: Any, path: str = "") -> Iterator[FieldDifference]:
    """Every place where two canonical documents differ."""
    if isinstance(source, dict) and isinstance(document, dict):
        for name in (*source, *(name for name in document if name not in source)):
            own = f"{path}.{name}" if path else name
            yield from differences(source.get(name, ABSENT), document.get(name, ABSENT), own)
    elif isinstance(source, list) and isinstance(document, list) and len(source) == len(document):
        for n, (left, right) in enumerate(zip(source, document, strict=True)):
            yield from differences(left, right, f"{path}[{n}]")
    elif source != document or type(source) is not type(document):
        yield FieldDifference(path=path, source=source, document=document)
