"""The root of `cdc`: its global options, the list of commands by group, and what becomes of an error."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from pipeline.cli.output import Format, say_error, terminal
from pipeline.errors import CdcError, VerificationFailed


@dataclass(frozen=True, slots=True)
class Entry:
    """One command: `home` names its module and object, imported only when the command runs."""

    name: str
    home: str
    group: str
    sentence: str

    def load(self) -> Any:
        module, _, attribute = self.home.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(self.name)(found)
            found = single
        found._add_completion = False
        command = get_command(found)
        command.name = self.name
        return command


COMMANDS = (
    Entry("init", "pipeline.cli.init:init", "Author", "Write a new project into a folder, ready to run."),
    Entry("new", "pipeline.cli.new:app", "Author", "Write a new projection and its test, from a table."),
    Entry("tables", "pipeline.cli.tables:app", "Author", "The source's tables, columns and keys."),
    Entry("check", "pipeline.cli.check:check", "Author", "Find every error in the projections at once."),
    Entry("preview", "pipeline.cli.preview:preview", "Author", "Show documents from live rows, before anything runs."),
    Entry("plan", "pipeline.cli.apply:plan", "Change", "What differs between what runs and what the files say."),
    Entry("apply", "pipeline.cli.apply:apply", "Change", "Create what the projections need in their sinks."),
    Entry("run", "pipeline.cli.run:run", "Run", "Run a worker for each projection until stopped."),
    Entry("worker", "pipeline.cli.run:worker", "Run", "Run the worker of one projection."),
    Entry("web", "pipeline.cli.web:app", "Run", "Serve the read models over HTTP."),
    Entry("stack", "pipeline.cli.stack:app", "Run", "The local stack: real services, without Docker or root."),
    Entry("status", "pipeline.cli.status:status", "Operate", "How far each projection is, and what holds it up."),
    Entry("rebuild", "pipeline.cli.rebuild:rebuild", "Operate", "Build a read model anew beside the one that readers see."),
    Entry("cutover", "pipeline.cli.rebuild:cutover", "Operate", "Let readers see the build that is ready."),
    Entry("rollback", "pipeline.cli.rebuild:rollback", "Operate", "Let readers see the build before again."),
    Entry("connector", "pipeline.cli.connector:app", "Operate", "Debezium's connectors: what they read, and whether they do."),
    Entry("deadletters", "pipeline.cli.deadletters:app", "Operate", "Changes that could not be decoded."),
    Entry("quarantine", "pipeline.cli.quarantine:app", "Operate", "Documents that could not be built or were refused."),
    Entry("backfill", "pipeline.cli.backfill:backfill", "Operate", "Read a table's rows again from the source."),
    Entry("replay", "pipeline.cli.replay:replay", "Operate", "Hold kept history against the mirror, and mend what differs."),
    Entry("sweep", "pipeline.cli.sweep:sweep", "Operate", "Let rows go that a new snapshot of the source left out."),
    Entry("state", "pipeline.cli.state:app", "Operate", "Copies of the mirrors, from which a lost machine's workers go on."),
    Entry("erase", "pipeline.cli.erase:erase", "Operate", "Remove a deleted row everywhere, and show that it is gone."),
    Entry("explain", "pipeline.cli.explain:explain", "Trust", "Why a document looks as it does."),
    Entry("verify", "pipeline.cli.verify:verify", "Trust", "Whether the documents are what the source says."),
    Entry("wait", "pipeline.cli.verify:wait", "Trust", "Wait until a read model is complete up to a position."),
    Entry("doctor", "pipeline.cli.doctor:doctor", "Trust", "What is wrong around the pipeline, each with its fix."),
    Entry("bench", "pipeline.cli.bench:bench", "Trust", "How fast the pipeline is here, beside Elasticsearch alone."),
    Entry("config", "pipeline.cli.config:app", "Operate", "The settings in force."),
)  # fmt: skip


class Commands(TyperGroup):
    """The root group; `cdc --help` shows the sentences above and imports no command."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {e.name: TyperCommand(e.name, callback=None, help=e.sentence) for e in COMMANDS}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Typer's own way of showing it takes twice as long to import as all the rest."""
        from pipeline.cli.help import root_help

        options = [record for param in self.get_params(ctx) if (record := param.get_help_record(ctx)) is not None]
        commands = [(e.group, e.name, e.sentence) for e in COMMANDS]
        root_help(self.help or "", ctx.command_path, options, commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        entry = next((e for e in COMMANDS if e.name == name), None)
        return (name, entry.load(), rest) if entry is not None else (name, command, rest)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"cdc {version('cdc-pipeline')}")
        raise typer.Exit


app = typer.Typer(cls=Commands, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def _root(
    env_file: Annotated[
        Path | None,
        typer.Option("--env-file", exists=True, dir_okay=False, help="Read CDC_… variables from this file."),
    ] = None,
    output: Annotated[
        Format, typer.Option("--output", "-o", envvar="CDC_OUTPUT", help="How data is written to stdout.")
    ] = Format.table,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on stderr but errors.")] = False,
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="Say more; -vv adds tracebacks to errors.")
    ] = 0,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (as NO_COLOR does).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Keep read models in step with databases: Debezium, Kafka and Faust to Elasticsearch."""
    terminal.env_file, terminal.format = env_file, output
    terminal.quiet, terminal.verbose, terminal.color = quiet, verbose, not no_color


def run(arguments: Sequence[str]) -> int:
    """Run one command line; every error on purpose becomes one line on stderr and the exit status 1."""
    try:
        get_command(app).main(list(arguments), prog_name="cdc")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except CdcError as error:
        say_error(error)
        return 3 if isinstance(error, VerificationFailed) else 1
    except Exception as error:  # a defect of ours, or a service's client: the reader needs the line, not our frames
        say_error(error)
        return 1
    return 0
