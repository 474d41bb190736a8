"""`cdc check`: every definition error at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.authoring.catalog import Catalog, did_you_mean
from pipeline.authoring.discovery import Found, look
from pipeline.authoring.projection import Projection
from pipeline.cli.output import As, as_json, err, load_settings, out, print_json
from pipeline.errors import DefinitionError, SettingsError, SourceError
from pipeline.operations.check import Captures, CheckReport
from pipeline.operations.check import check as checked
from pipeline.operations.findings import Finding
from pipeline.settings import Settings

if TYPE_CHECKING:
    from connectors.sources.debezium import ConnectorDefinition

DIFFERENCES = 3
STYLES = {"error": "bold red", "warning": "yellow", "hint": "cyan"}


def check(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Only these.", show_default=False)] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Use the catalog file only, not the source.")] = False,
    output: As = None,
) -> None:
    """Find every error in the projections at once, with file and line; exit code 3 where there are errors."""
    from connectors.sources.debezium import load_definitions
    from connectors.sources.masks import masked
    from connectors.sources.topics import load_topics
    from pipeline.cli.sinks import RULES

    own = load_settings()
    found = look(own.projections)
    chosen = _chosen(found, names or [])
    definitions = load_definitions(own.connectors)
    live = None if offline else _live(own, definitions)
    lock = Catalog.load(own.catalog) if live is None or own.catalog.exists() else None
    catalog = live or lock
    assert catalog is not None
    catalog = masked(catalog, definitions.values(), own.mask.salt)
    connectors = [
        Captures(name, d.source, frozenset(d.tables), d.mask, d.kafka, _uncopied(d, catalog), kind=d.kind)
        for name, d in definitions.items()
    ]
    connectors += [
        Captures(name, f"topics {name}", frozenset(of.tables), foreign=True, kind="topics")
        for name, of in load_topics(own.topics).items()
    ]
    report = checked(
        chosen,
        catalog,
        sinks=RULES,
        problems=found.problems,
        connectors=connectors,
        lock=masked(lock, definitions.values(), own.mask.salt) if live is not None and lock is not None else None,
        source=live is not None,
        withheld={kind: own.withheld(kind) for kind in RULES},
        withheld_rows=own.withheld_rows,
        targets={f"{target.kind}:{target.name}" for each in found.projections.values() for target in each.to},
    )
    if as_json(output):
        print_json(report)
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(DIFFERENCES)


def _uncopied(definition: ConnectorDefinition, catalog: Catalog) -> frozenset[str]:
    if definition.snapshot.mode != "copy":
        return frozenset()
    from connectors.sources.postgres_documents import readable

    tables = (catalog.tables[name] for name in definition.tables if name in catalog.tables)
    return frozenset(f"{table.name}.{c.name}" for table in tables for c in table.columns if not readable(c))


def _chosen(found: Found, names: list[str]) -> list[Projection[Any]]:
    for name in names:
        if name not in found.projections and not found.problems:
            raise DefinitionError(f"There is no projection {name!r}{did_you_mean(name, found.projections)}")
    return [p for name, p in sorted(found.projections.items()) if not names or name in names]


def _live(own: Settings, definitions: Mapping[str, ConnectorDefinition]) -> Catalog | None:
    """The source's catalog as it is now; None, and a word about it, where the source is away."""
    from connectors.sources.catalogs import read_catalogs

    try:
        return read_catalogs(own, definitions)
    except (SettingsError, SourceError) as error:
        if not own.catalog.exists():
            raise
        err().print(f"Checked against {own.catalog} only: {error}", style="yellow")
        return None


def _print(report: CheckReport) -> None:
    console = out()
    for finding in report.findings:
        _print_one(finding)
    counts = {level: sum(f.level == level for f in report.findings) for level in STYLES}
    said = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in counts.items() if n) or "no errors"
    console.print(f"{len(report.projections)} projections checked against the {_against(report)}: {said}.")


def _against(report: CheckReport) -> str:
    return "source" if report.catalog == "source" else "catalog file"


def _print_one(finding: Finding) -> None:
    console = out()
    console.print(f"{finding.file}:{finding.line}  ", end="")
    console.print(f"{finding.level} {finding.error}", style=STYLES[finding.level], end="")
    console.print(f"  {finding.subject}")
    console.print(f"    {finding.message}")
    if finding.suggestion:
        console.print(f"    → {finding.suggestion}")
