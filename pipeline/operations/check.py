"""Check: every error in the projections' definitions at once, against the source's catalog."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.authoring.catalog import Catalog, Table
from pipeline.authoring.discovery import Problem
from pipeline.authoring.masks import complaint as unmaskable
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import Shape, shape_of
from pipeline.authoring.withheld import taken
from pipeline.engine.layout import lay_out
from pipeline.engine.withholding import Rules, unkept
from pipeline.errors import UnknownColumn, UnknownTable
from pipeline.operations.check_shapes import check_level, check_root_key
from pipeline.operations.findings import Checked, Finding, sort_key, split
from pipeline.operations.in_parts import costs, in_parts
from pipeline.operations.layouts import unreadable
from pipeline.operations.sinks import SinkRules

NAME = re.compile(r"^[a-z][a-z0-9_-]{0,99}$")


@dataclass(frozen=True, slots=True)
class Captures:
    """The tables that a connector captures, and from which source."""

    connector: str
    source: str
    tables: frozenset[str]
    mask: Mapping[str, str] = field(default_factory=dict)
    """How it masks columns, by their names."""
    kafka: str = ""
    """The Kafka cluster that it writes to."""
    uncopied: frozenset[str] = frozenset()
    """Of tables that workers copy, the columns whose values SQL does not give as events do, `schema.table.column`."""
    foreign: bool = False
    """It stands for topics that others produce, which are read from `[kafka]`."""
    kind: str = "postgres"
    """Of the source; `topics` where others produce them."""


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


def check(
    projections: Sequence[Projection[Any]],
    catalog: Catalog,
    *,
    sinks: Mapping[str, SinkRules],
    problems: Sequence[Problem] = (),
    connectors: Sequence[Captures] | None = None,
    lock: Catalog | None = None,
    source: bool = False,
    withheld: Mapping[str, Sequence[str]] | None = None,
    withheld_rows: Mapping[str, Rules] | None = None,
    targets: Collection[str] = (),
) -> CheckReport:
    """Look at every projection and say everything that is wrong.

    `problems` are those of discovery; `lock` is the catalog in git where `catalog` was just read from the source.
    `withheld`: by kind of sink the columns that must not go there; `withheld_rows`: by kind, or kind and name, the rows.
    `targets`: all that there are, `redis:orders`, of projections that are not looked at, too.
    """
    withheld, withheld_rows = withheld or {}, withheld_rows or {}
    of_connectors = (*_masks(connectors or (), catalog), *_one_name(connectors or ()))
    findings = [_from_problem(problem) for problem in (*problems, *_rules(withheld, catalog), *of_connectors)]
    findings += map(_from_problem, _row_rules(withheld_rows, catalog, sinks, targets))
    for projection in projections:
        checked = Checked(projection, catalog)
        shape = shape_of(projection.shape)
        _names(checked)
        _targets(checked, shape, sinks)
        _withheld(checked, shape, withheld)
        _withheld_rows(checked, shape, withheld_rows)
        _tables(checked, shape, lock)
        for table, column in unreadable(shape, catalog):
            checked.add(
                "UnsupportedType",
                f"{table}.{column.name} is {column.type}, and its events do not have it right; leave it out, or store it in"
                " another type (docs/concepts/types.md).",
                next(level for level in shape.walk() if level.table == table),
            )
        if connectors is not None:
            _captured(checked, shape, connectors)
        for level in dict.fromkeys(shape.shown()):
            if level.table in catalog.tables:
                check_level(checked, level, catalog.tables[level.table])
        check_root_key(checked, shape.source)
        _workers(checked, shape, connectors or ())
        findings += checked.findings
    findings += _clashes(projections, sinks)
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


def _names(checked: Checked) -> None:
    own = checked.projection
    if not NAME.match(own.name):
        checked.add(
            "BadName", f"{own.name!r} can't name a projection; write small letters, digits, - and _, a letter first."
        )
    if own.version < 1:
        checked.add("BadName", f"The version {own.version} of {own.name!r} is below 1; count from 1.")
    if not own.to:
        checked.add("BadShape", f"{own.name!r} has no target; write to=elasticsearch({own.name!r}).")


def _targets(checked: Checked, shape: Shape, sinks: Mapping[str, SinkRules]) -> None:
    for target in checked.projection.to:
        rules = sinks.get(target.kind)
        if rules is None:
            known = ", ".join(sorted(sinks))
            checked.add("UnknownSink", f"No sink is called {target.kind!r}; known are {known}.")
            continue
        for complaint in rules.complaints(target, shape, checked.projection.id):
            checked.add("BadTarget", complaint)


def _workers(checked: Checked, shape: Shape, connectors: Sequence[Captures]) -> None:
    own = checked.projection
    if own.workers < 1:
        checked.add("BadWorkers", f"{own.name!r} has {own.workers} workers; count from 1.")
    if own.workers <= 1 or not set(shape.columns()) <= checked.catalog.tables.keys():
        return
    layout = lay_out(shape, checked.catalog)
    of_tables = [c for c in connectors if c.tables & layout.tables.keys()]
    complaints = [*in_parts(own, layout, {c.kind for c in of_tables})]
    for complaint in complaints:
        checked.add("BadWorkers", f"{own.name!r} can't have {own.workers} workers: {complaint}")
    if not complaints:
        with_images = {name for c in of_tables if c.kind == "mariadb" for name in c.tables}
        for error, message in costs(own, layout, checked.catalog, with_images):
            checked.add(error, message, level="hint")


def _withheld(checked: Checked, shape: Shape, withheld: Mapping[str, Sequence[str]]) -> None:
    for kind in dict.fromkeys(target.kind for target in checked.projection.to):
        for found in taken(shape, withheld.get(kind, ())):
            used = "is used, hidden, by the code of" if found.hidden else "is in" if found.member else "is the key of"
            checked.add(
                "Withheld",
                f"{found.column} {used} documents that go to {kind}, from which {kind}.withheld keeps it; leave it out, or"
                " make another document for that target.",
                found.shape,
                found.member,
            )


def _withheld_rows(checked: Checked, shape: Shape, withheld: Mapping[str, Rules]) -> None:
    for target in checked.projection.to:
        for sink in (target.kind, f"{target.kind}:{target.name}"):
            if rules := withheld.get(sink):
                for why, level in unkept(lay_out(shape, checked.catalog), rules):
                    checked.add("Withheld", f"{why} (withheld_rows, {sink}).", level)


def _row_rules(
    withheld: Mapping[str, Rules], catalog: Catalog, sinks: Mapping[str, SinkRules], targets: Collection[str]
) -> Iterator[Problem]:
    """A rule that keeps no row back because of what it names."""
    for sink, rules in withheld.items():
        subject, kind = f"withheld_rows.{sink}", sink.partition(":")[0]
        if kind not in sinks or (sink not in sinks and sink not in targets):
            known = ", ".join(sorted({*sinks, *targets}))
            yield Problem("UnknownSink", f"Nothing goes to {sink!r}; known are {known}.", "cdc.toml", 1, subject)
        for name in rules:
            table, _, column = name.rpartition(".")
            try:
                if catalog.table(table).column(column).masked is not None:
                    said = f"{name} is masked by its connector, so that no row has such a value; take it out of `mask`."
                    yield Problem("BadMask", said, "cdc.toml", 1, subject)
            except (UnknownTable, UnknownColumn) as error:
                yield Problem(type(error).__name__, str(error), "cdc.toml", 1, subject)


def _rules(withheld: Mapping[str, Sequence[str]], catalog: Catalog) -> Iterator[Problem]:
    """A rule that keeps nothing back because of how it is written."""
    for kind, columns in withheld.items():
        for name in columns:
            table, _, column = name.rpartition(".")
            try:
                if table in catalog.tables and column != "*":
                    catalog.tables[table].column(column)
            except UnknownColumn as error:
                yield Problem("UnknownColumn", str(error), "cdc.toml", 1, f"{kind}.withheld")


def _masks(connectors: Sequence[Captures], catalog: Catalog) -> Iterator[Problem]:
    """A column that its connector can't mask."""
    for connector in connectors:
        for name, way in connector.mask.items():
            if (wrong := unmaskable(catalog, name, way)) is not None:
                yield Problem("BadMask", f"{wrong}.", "connectors", 1, f"{connector.connector}.mask")


def _one_name(connectors: Sequence[Captures]) -> Iterator[Problem]:
    """Foreign topics that have a connector's name."""
    own = {of.connector for of in connectors if not of.foreign}
    for name in sorted(own & {of.connector for of in connectors if of.foreign}):
        said = f"A connector and the topics of others are both named {name!r}: give the topics another `name`."
        yield Problem("DuplicateName", said, "connectors", 1, name)


def _clashes(projections: Sequence[Projection[Any]], sinks: Mapping[str, SinkRules]) -> Iterator[Finding]:
    """Two projections that would write the same target, or name one as the other's index."""
    taken: dict[tuple[str, str], Projection[Any]] = {}
    for projection in sorted(projections, key=lambda p: (p.file, p.line)):
        for target in projection.to:
            names = sinks[target.kind].names(target) if target.kind in sinks else (target.name,)
            for name in (*names, projection.id):
                other = taken.setdefault((target.kind, name), projection)
                if other is not projection:
                    clash = Checked(projection, Catalog())
                    clash.add(
                        "DuplicateTarget",
                        f"{target.kind} {name!r} belongs to projection {other.name!r} already; choose another name.",
                    )
                    yield from clash.findings


# ---- tables -----------------------------------------------------------------------------------------------


def _tables(checked: Checked, shape: Shape, lock: Catalog | None) -> None:
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
        if table.replica_identity == "index":
            checked.add(
                "NoReplicaIdentity",
                f"{table.name} has REPLICA IDENTITY USING INDEX, so its deletes come without the primary key; "
                f"run ALTER TABLE {table.name} REPLICA IDENTITY DEFAULT.",
                level,
            )
        if lock is not None and lock.tables.get(table.name) != table:
            checked.add(
                "CatalogDrift",
                f"{_drift(lock.tables.get(table.name), table)}; run `cdc tables pull` and commit the catalog.",
                level,
                level="warning",
            )


def _captured(checked: Checked, shape: Shape, connectors: Sequence[Captures]) -> None:
    """Each table is captured, from one source, and all of them by one connector."""
    levels = {level.table: level for level in shape.walk()}
    by: dict[str, list[Captures]] = {table: [c for c in connectors if table in c.tables] for table in levels}
    for table, level in levels.items():
        if not by[table] and table in checked.catalog.tables:
            checked.add(
                "NotCaptured",
                f"No connector captures {table}; add it to `tables` of one in connectors/debezium "
                "and run `cdc connector apply NAME`.",
                level,
                level="warning",
            )
        if len({c.source for c in by[table]}) > 1:
            checked.add(
                "AmbiguousTable",
                f"{table} is captured from several sources, by {_listed(c.connector for c in by[table])}; "
                "capture it from one, or give the other source a project of its own.",
                level,
            )
    for table, level in levels.items():
        for column in shape.columns()[table]:
            if any(f"{table}.{column}" in c.uncopied for c in by[table]):
                checked.add(
                    "UncopiedColumn",
                    f"{table}.{column} can't be copied from the source, for SQL does not give it as events do; leave it out, or "
                    'take snapshot.mode = "copy" out of its connector\'s definition.',
                    level,
                )
    captured = {table: found for table, found in by.items() if found}
    for table, level in levels.items():
        if theirs := next((c for c in by[table] if c.foreign), None):
            checked.add(
                "ForeignTopic",
                f"{table} is of a topic that others produce ({theirs.connector}): each row is applied as it comes, never a"
                " transaction as a whole; nothing waits for it, verifies or rebuilds it; a topic without its beginning"
                " stops the worker, and one that is compacted has of each row the last state only.",
                level,
                level="hint",
            )
    if captured and not set.intersection(*({c.kafka for c in found} for found in captured.values())):
        places = ", ".join(f"{table} by {_listed(c.connector for c in found)}" for table, found in captured.items())
        checked.add(
            "SeveralKafkas",
            f"Its tables are in the topics of several Kafka clusters, {places}, and a worker reads one; give their"
            " connectors the same `kafka`.",
        )
        return
    if checked.projection.across_sources:
        checked.add(
            "AcrossSources",
            "Its tables may be in several sources: a document shows each row as it was last, and may show half a transaction.",
            level="hint",
        )
        return
    if captured and not any(set(captured) <= c.tables for c in connectors):
        places = ", ".join(f"{table} by {_listed(c.connector for c in found)}" for table, found in captured.items())
        checked.add(
            "SeveralConnectors",
            f"Its tables are captured by several connectors, {places}; a projection reads the tables of one "
            "connector, hence of one source, unless it says across_sources=True: then rows are of no common moment.",
        )


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


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
