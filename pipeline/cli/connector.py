"""`cdc connector`: the Debezium connectors, from their definitions in git to what Connect runs."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.table import Table

from connectors.sources import lifecycle
from connectors.sources.debezium import ConnectorDefinition, load_definition, load_definitions
from connectors.sources.grants import grants
from connectors.sources.masks import unsalted
from pipeline.addresses import ConnectAddress
from pipeline.cli.output import As, DryRun, Format, Yes, as_json, confirm, err, load_settings, out
from pipeline.reports import connectors as reports
from pipeline.reports.connectors import ConnectorLine
from pipeline.settings import Settings
from pipeline.stack.connect import password_key, secrets_file

UNHEALTHY = 4
app = typer.Typer(no_args_is_help=True, help="Debezium's connectors: what they read, and whether they do.")


Name = Annotated[str, typer.Argument(metavar="NAME", help="The connector's name, as in its definition.")]


@app.command("list")
def list_(output: As = None) -> None:
    """Every connector defined here or known to Connect."""
    settings = load_settings()
    lines = reports.connectors(settings)
    _print(lines, output)
    if any(line.state == "not known" for line in lines):
        raise typer.Exit(1)


@app.command()
def show(name: Name) -> None:
    """The configuration that Connect gets from the definition, as JSON."""
    settings = load_settings()
    definition = _definition(settings, name)
    config = _config(settings, definition)
    out().print_json(data={unsalted(key): lifecycle.masked(key, value) for key, value in config.items()})


@app.command("grants")
def grants_(
    name: Name,
    user: Annotated[str, typer.Option("--user", help="The role it reads as; else the definition's or the DSN's.")] = "",
) -> None:
    """The SQL that gives the connector's user what it needs in the source, and no more; changes nothing."""
    settings = load_settings()
    definition = _definition(settings, name)
    config = _config(settings, definition)
    text = grants(definition, user or config["database.user"], config.get("database.dbname", ""))
    out().print(text, markup=False, highlight=False, soft_wrap=True)


@app.command()
def apply(
    name: Name,
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin anew, by a new slot and snapshot: after a restore, or a lost slot.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    output: As = None,
) -> None:
    """Make Connect run the definition, and wait until it does; nothing changes where it already does."""
    settings = load_settings()
    definition = _definition(settings, name)
    password, kafka = _password(settings, definition), reports.kafka(settings, definition.kafka)
    url, salt = settings.connect_address(definition.kafka), settings.mask.salt
    dsn = settings.source_dsn(definition.source)
    if anew:
        if not _go(f"begin connector {name} anew, by a new slot and a new snapshot of all its tables", dry_run, yes):
            return
        asyncio.run(lifecycle.delete(name, connect_at=url, definition=definition, source_dsn=dsn, kafka=kafka))
    plan = asyncio.run(
        lifecycle.plan(definition, connect_at=url, source_dsn=dsn, password=password, kafka=kafka, salt=salt)
    )
    if dry_run or (plan.outcome == "updated" and not yes):
        _print_plan(plan, output, asking=not dry_run)
    if dry_run:
        return
    if plan.outcome == "updated":
        confirm(f"Change connector {name}?", yes)
    with err().status(f"Applying connector {name} …"):
        done = asyncio.run(
            lifecycle.apply(definition, connect_at=url, source_dsn=dsn, password=password, kafka=kafka, salt=salt)
        )
    _print_applied(done, output)


@app.command()
def status(name: Name, output: As = None) -> None:
    """The connector, its tasks and its slot; exit code 4 where one has failed."""
    settings = load_settings()
    found = asyncio.run(lifecycle.status(name, connect_at=_connect(settings, name)))
    _print([reports.line(settings, name, load_definitions(settings.connectors).get(name), found)], output)
    if found.failed:
        err().print(f"Connector {name} has failed: {found.reason}", markup=False, style="red")
        raise typer.Exit(UNHEALTHY)


@app.command()
def restart(name: Name, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Start the connector and its tasks again; events since its last confirmed position come twice."""
    settings = load_settings()
    if _go(f"restart connector {name}", dry_run, yes):
        with err().status(f"Restarting connector {name} …"):
            done = asyncio.run(
                lifecycle.restart(
                    name,
                    connect_at=_connect(settings, name),
                    dsn=reports.source_dsn(settings, load_definitions(settings.connectors).get(name)),
                )
            )
        out().print(f"{name} {done.state.lower()}")


@app.command()
def pause(name: Name, dry_run: DryRun = False, yes: Yes = False) -> None:
    """Stop reading the source; it keeps its log on disk until `resume`."""
    settings = load_settings()
    if _go(f"pause connector {name} (the source keeps its log meanwhile)", dry_run, yes):
        done = asyncio.run(lifecycle.pause(name, connect_at=_connect(settings, name)))
        out().print(f"{name} {done.state.lower()}")


@app.command()
def resume(name: Name, dry_run: DryRun = False) -> None:
    """Go on reading where `pause` stopped."""
    settings = load_settings()
    if _go(f"resume connector {name}", dry_run, yes=True):
        done = asyncio.run(lifecycle.resume(name, connect_at=_connect(settings, name)))
        out().print(f"{name} {done.state.lower()}")


@app.command()
def delete(
    name: Name,
    drop: Annotated[bool, typer.Option("--drop-slot", help="Drop its slot and publication in the source too.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Remove the connector from Connect; its topics stay. Without --drop-slot the source goes on keeping its log."""
    settings = load_settings()
    what = f"delete connector {name}" + (" and drop its slot and publication" if drop else "")
    if not _go(what, dry_run, yes):
        return
    definition = _definition(settings, name) if drop else None
    dsn = settings.source_dsn(definition.source) if definition else None
    at = _connect(settings, name)
    kafka = reports.kafka(settings, definition.kafka) if definition else None
    done = asyncio.run(lifecycle.delete(name, connect_at=at, definition=definition, source_dsn=dsn, kafka=kafka))
    removed = [part for part in ("connector", "slot", "publication") if getattr(done, part)]
    out().print(f"{name} deleted: {', '.join(removed)}" if removed else f"{name}: there was nothing to delete")


def _connect(settings: Settings, name: str) -> ConnectAddress:
    """That which the connector's definition names; the first where there is none."""
    definition = load_definitions(settings.connectors).get(name)
    return settings.connect_address(definition.kafka if definition is not None else "")


def _definition(settings: Settings, name: str) -> ConnectorDefinition:
    defined = load_definitions(settings.connectors)
    return defined[name] if name in defined else load_definition(settings.connectors / f"{name}.toml")


def _config(settings: Settings, definition: ConnectorDefinition) -> dict[str, str]:
    kafka = str(reports.kafka(settings, definition.kafka) or "")
    dsn, password = settings.source_dsn(definition.source), _password(settings, definition)
    return definition.config(dsn, password, kafka, settings.mask.salt)


def _password(settings: Settings, definition: ConnectorDefinition) -> str | None:
    """The reference to the source's password in the local stack; a definition's own wins over it."""
    if settings.endpoints() is None:
        return None
    return f"${{file:{secrets_file(settings)}:{password_key(definition.source)}}}"


def _print(lines: list[ConnectorLine], output: Format | None) -> None:
    for problem in dict.fromkeys(line.problem for line in lines if line.problem):
        err().print(problem, markup=False, style="yellow")
    for line in lines:
        if line.attention:
            err().print(line.attention, markup=False, style="yellow")
    if as_json(output):
        out().print_json(data=[line.model_dump(mode="json") for line in lines])
        return
    table = Table("CONNECTOR", "STATE", "TASKS", "TABLES", "SLOT", "BEHIND", "LOG KEPT", box=None, pad_edge=False)
    for line in lines:
        reads = {None: "", True: ", read", False: ", not read"}[line.slot_active]
        table.add_row(
            line.name,
            line.state,
            ", ".join(line.tasks),
            str(len(line.tables)),
            f"{line.slot or ''}{reads}",
            _size(line.behind_bytes),
            _size(line.kept_bytes),
        )
    out().print(table)


def _print_plan(plan: lifecycle.ConnectorPlan, output: Format | None, *, asking: bool) -> None:
    if as_json(output) and not asking:
        out().print_json(plan.model_dump_json())
        return
    to = err() if asking else out()
    to.print(f"{plan.name}: {_would(plan.outcome)}")
    for change in plan.changes:
        if change.before is not None:
            to.print(f"  - {change.key} = {change.before}", markup=False, highlight=False, soft_wrap=True)
        if change.after is not None:
            to.print(f"  + {change.key} = {change.after}", markup=False, highlight=False, soft_wrap=True)


def _print_applied(done: lifecycle.ConnectorApplied, output: Format | None) -> None:
    for table in done.created_tables:
        err().print(f"Created {table} in the source.")
    if done.restarted:
        err().print(f"Connector {done.name} had failed: started again.")
    for warning in done.warnings:
        err().print(warning, markup=False, style="yellow")
    if done.added_tables:
        err().print(f"Newly captured: {', '.join(done.added_tables)}; their old rows come with `cdc backfill TABLE`.")
    if as_json(output):
        out().print_json(done.model_dump_json())
    else:
        out().print(f"{done.name} {done.outcome}, {done.status.state.lower()}")


def _would(outcome: lifecycle.Outcome) -> str:
    return {"created": "would be created", "updated": "would be updated", "unchanged": "no change"}[outcome]


def _go(what: str, dry_run: bool, yes: bool) -> bool:
    if dry_run:
        err().print(f"Would {what}.")
        return False
    confirm(f"{what[0].upper()}{what[1:]}?", yes)
    return True


def _size(count: int | None) -> str:
    if count is None:
        return ""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}"
