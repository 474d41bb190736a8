"""Check: every error in the projections' definitions at once, against the source's catalog."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.column_types import kinds_of
from pipeline.authoring.discovery import Problem
from pipeline.authoring.locate import place
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import FieldShape, RelationShape, Shape, shape_of
from pipeline.errors import UnknownColumn, UnknownTable
from pipeline.operations.findings import Finding, Level, sort_key, split
from pipeline.operations.sinks import SinkRules

NAME = re.compile(r"^[a-z][a-z0-9_-]{0,99}$")


class CheckReport(BaseModel):
    """What `check` found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projections: tuple[str, ...]
    catalog: Literal["source", "lock"]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def ok(self) -> bool:
        return not self.errors


@dataclass(slots=True)
class _Checked:
    """One projection under check, and what was found so far."""

    projection: Projection[Any]
    catalog: Catalog
    findings: list[Finding] = field(default_factory=list)

    def add(
        self, error: str, message: str, shape: Shape | None = None, member: str = "", level: Level = "error"
    ) -> None:
        said, suggestion = split(message)
        file, line = self.projection.file, self.projection.line
        subject = self.projection.name
        if shape is not None:
            file, line = place(shape.document, member or None)
            subject = f"{shape.name}.{member}" if member else shape.name
        self.findings.append(
            Finding(
                level=level,
                error=error,
                projection=self.projection.name,
                file=file,
                line=line,
                subject=subject,
                message=said,
                suggestion=suggestion,
            )
        )


def check(
    projections: Sequence[Projection[Any]],
    catalog: Catalog,
    *,
    sinks: Mapping[str, SinkRules],
    problems: Sequence[Problem] = (),
    captured: Mapping[str, str] | None = None,
    lock: Catalog | None = None,
    source: bool = False,
) -> CheckReport:
    """Look at every projection and say everything that is wrong.

    `problems` are those of discovery; `captured` says which connector reads a table; `lock` is the catalog in git
    where `catalog` was just read from the source.
    """
    findings = [_from_problem(problem) for problem in problems]
    for projection in projections:
        checked = _Checked(projection, catalog)
        shape = shape_of(projection.shape)
        _names(checked)
        _targets(checked, shape, sinks)
        _tables(checked, shape, captured, lock)
        for level in dict.fromkeys(shape.walk()):
            if level.table in catalog.tables:
                _level(checked, level, catalog.tables[level.table])
        _root_key(checked, shape)
        findings += checked.findings
    findings += _clashes(projections)
    return CheckReport(
        projections=tuple(sorted(p.name for p in projections)),
        catalog="source" if source else "lock",
        findings=tuple(sorted(dict.fromkeys(findings), key=sort_key)),
    )


def _from_problem(problem: Problem) -> Finding:
    said, suggestion = split(problem.message)
    return Finding(
        level="error",
        error=problem.error,
        projection="",
        file=problem.file,
        line=problem.line,
        subject=problem.subject,
        message=said,
        suggestion=suggestion,
    )


# ---- names and targets ------------------------------------------------------------------------------------


def _names(checked: _Checked) -> None:
    own = checked.projection
    if not NAME.match(own.name):
        checked.add(
            "BadName", f"{own.name!r} can't name a projection; write small letters, digits, - and _, a letter first."
        )
    if own.version < 1:
        checked.add("BadName", f"The version {own.version} of {own.name!r} is below 1; count from 1.")
    if not own.to:
        checked.add("BadShape", f"{own.name!r} has no target; write to=elasticsearch({own.name!r}).")


def _targets(checked: _Checked, shape: Shape, sinks: Mapping[str, SinkRules]) -> None:
    for target in checked.projection.to:
        rules = sinks.get(target.kind)
        if rules is None:
            known = ", ".join(sorted(sinks))
            checked.add("UnknownSink", f"No sink is called {target.kind!r}; known are {known}.")
            continue
        for complaint in rules.complaints(target, shape):
            checked.add("BadTarget", complaint)


def _clashes(projections: Sequence[Projection[Any]]) -> Iterator[Finding]:
    """Two projections that would write the same target, or name one as the other's index."""
    taken: dict[tuple[str, str], Projection[Any]] = {}
    for projection in sorted(projections, key=lambda p: (p.file, p.line)):
        for target in projection.to:
            for name in (target.name, projection.id):
                other = taken.setdefault((target.kind, name), projection)
                if other is not projection:
                    clash = _Checked(projection, Catalog())
                    clash.add(
                        "DuplicateTarget",
                        f"{target.kind} {name!r} belongs to projection {other.name!r} already; choose another name.",
                    )
                    yield from clash.findings


# ---- tables -----------------------------------------------------------------------------------------------


def _tables(checked: _Checked, shape: Shape, captured: Mapping[str, str] | None, lock: Catalog | None) -> None:
    for level in {level.table: level for level in shape.walk()}.values():
        try:
            table = checked.catalog.table(level.table)
        except UnknownTable as error:
            checked.add("UnknownTable", str(error), level)
            continue
        if not table.primary_key:
            checked.add(
                "NoPrimaryKey",
                f"{table.name} has no primary key, so its updates and deletes can't be followed; add one.",
                level,
            )
        if table.replica_identity == "nothing":
            checked.add(
                "NoReplicaIdentity",
                f"{table.name} has REPLICA IDENTITY NOTHING, so its updates and deletes are not sent; "
                f"run ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT.",
                level,
            )
        if captured is not None and table.name not in captured:
            checked.add(
                "NotCaptured",
                f"No connector captures {table.name}; add it to `tables` of one in connectors/debezium "
                "and run `cdc connector apply NAME`.",
                level,
                level="warning",
            )
        if lock is not None and lock.tables.get(table.name) != table:
            checked.add(
                "CatalogDrift",
                f"{_drift(lock.tables.get(table.name), table)}; run `cdc tables pull` and commit the catalog.",
                level,
                level="warning",
            )


def _drift(old: Table | None, new: Table) -> str:
    if old is None:
        return f"{new.name} is not in the catalog file"
    before, after = ({c.name: c for c in table.columns} for table in (old, new))
    changes = [f"new column {name}" for name in after if name not in before]
    changes += [f"no column {name} any more" for name in before if name not in after]
    changes += [
        f"{name} is {after[name].type}{'' if after[name].nullable else ' not null'} now"
        for name in after
        if name in before and before[name] != after[name]
    ]
    return f"{new.name} differs from the catalog file: {', '.join(changes) or 'its keys, indexes or replica identity'}"


# ---- one level of a document ------------------------------------------------------------------------------


def _level(checked: _Checked, shape: Shape, table: Table) -> None:
    _key(checked, shape, table)
    for member in shape.members:
        if isinstance(member, RelationShape):
            _relation(checked, shape, table, member)
        elif member.column is not None:
            _field(checked, shape, table, member, member.column)


def _key(checked: _Checked, shape: Shape, table: Table) -> None:
    missing = [name for name in shape.key if not _has(table, name)]
    if not missing:
        return
    try:
        table.column(missing[0])
    except UnknownColumn as error:
        advice = (
            f"{table.name} has no column {missing[0]!r}, {shape.name}'s key; write key={_written(table.primary_key)}."
        )
        checked.add("UnknownColumn", advice if table.primary_key else str(error), shape)


def _has(table: Table, name: str) -> bool:
    return any(column.name == name for column in table.columns)


def _column(checked: _Checked, shape: Shape, table: Table, name: str, member: str) -> bool:
    try:
        table.column(name)
    except UnknownColumn as error:
        checked.add("UnknownColumn", str(error), shape, member)
        return False
    return True


def _columns(checked: _Checked, shape: Shape, table: Table, names: Sequence[str], member: str) -> bool:
    found = [_column(checked, shape, table, name, member) for name in names]
    return all(found)


def _field(checked: _Checked, shape: Shape, table: Table, own: FieldShape, name: str) -> None:
    if not _column(checked, shape, table, name, own.name):
        return
    column = table.column(name)
    allowed = kinds_of(column)
    if not allowed.allows(own.kind, own.repeated):
        declared = f"a list of {own.kind}" if own.repeated else own.kind
        checked.add(
            "WrongType",
            f"{table.name}.{name} is {column.type}, which can't be read as {declared}; write {allowed.said()}.",
            shape,
            own.name,
        )
    if column.nullable and not own.nullable and name not in table.primary_key:
        checked.add(
            "WrongType",
            f"{table.name}.{name} may be null, and the field may not; "
            f"write {allowed.annotation(nullable=True)}, or make the column NOT NULL.",
            shape,
            own.name,
        )
    if column.generated:
        checked.add(
            "GeneratedColumn",
            f"{table.name}.{name} is generated by the source and not in its events, so documents would wait for it "
            "for ever; compute it with @derived.",
            shape,
            own.name,
        )


def _relation(checked: _Checked, shape: Shape, table: Table, own: RelationShape) -> None:
    remote = checked.catalog.tables.get(own.shape.table)
    known = _columns(checked, shape, table, own.local, own.name)
    if remote is None:
        return
    known = _columns(checked, shape, remote, own.remote, own.name) and known
    if own.many and own.order_by != own.shape.key:
        for name in own.order_by:
            _column(checked, shape, remote, name, own.name)
    if not known:
        return
    _comparable(checked, shape, table, remote, own)
    if own.many:
        _many(checked, shape, remote, own)
    else:
        _one(checked, shape, table, remote, own)


def _comparable(checked: _Checked, shape: Shape, table: Table, remote: Table, own: RelationShape) -> None:
    for here, there in zip(own.local, own.remote, strict=True):
        ours, theirs = table.column(here), remote.column(there)
        if not set(kinds_of(ours).kinds) & set(kinds_of(theirs).kinds):
            checked.add(
                "WrongType",
                f"{table.name}.{here} ({ours.type}) is joined with {remote.name}.{there} ({theirs.type}), "
                "which it never equals; join columns of one type.",
                shape,
                own.name,
            )


def _one(checked: _Checked, shape: Shape, table: Table, remote: Table, own: RelationShape) -> None:
    if remote.primary_key and not set(remote.primary_key) <= set(own.remote):
        joined = ", ".join(own.remote)
        checked.add(
            "BadShape",
            f"one(…) joins {remote.name} by ({joined}), and its primary key is ({', '.join(remote.primary_key)}): "
            f"there may be several; use many(…), or give {own.shape.name} key={_written(remote.primary_key)}.",
            shape,
            own.name,
        )
    if not own.nullable and any(table.column(name).nullable for name in own.local):
        checked.add(
            "WrongType",
            f"{table.name}.{', '.join(own.local)} may be null, and the field may not; write {own.shape.name} | None.",
            shape,
            own.name,
        )


def _many(checked: _Checked, shape: Shape, remote: Table, own: RelationShape) -> None:
    own_key = own.shape.key
    if all(_has(remote, name) for name in own_key) and set(own_key) != set(remote.primary_key or own_key):
        checked.add(
            "KeyDiffers",
            f"{own.shape.name} has the key ({', '.join(own.shape.key)}), and {remote.name} the primary key "
            f"({', '.join(remote.primary_key)}); write key={_written(remote.primary_key)}.",
            own.shape,
            level="warning",
        )
    if not remote.indexed(own.remote):
        columns = ", ".join(own.remote)
        checked.add(
            "MissingIndex",
            f"{remote.name} has no index on ({columns}), so preview and verify read it whole; "
            f"CREATE INDEX ON {remote.name} ({columns}).",
            shape,
            own.name,
            level="hint",
        )


def _root_key(checked: _Checked, shape: Shape) -> None:
    table = checked.catalog.tables.get(shape.table)
    if table is None or not table.primary_key or set(shape.key) == set(table.primary_key):
        return
    if not all(_has(table, name) for name in shape.key):
        return
    checked.add(
        "KeyDiffers",
        f"{shape.name} has the key ({', '.join(shape.key)}), and {table.name} the primary key "
        f"({', '.join(table.primary_key)}): a document is a row; write key={_written(table.primary_key)}.",
        shape,
    )


def _written(key: tuple[str, ...]) -> str:
    return repr(key[0]) if len(key) == 1 else repr(key)
