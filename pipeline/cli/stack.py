"""`cdc stack`: the local stack of Postgres, Kafka, Kafka Connect and Elasticsearch."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.settings import load
from pipeline.stack import stack
from pipeline.stack.stack import StackStatus

app = typer.Typer(name="stack", help="The local stack: real services, without Docker or root.", no_args_is_help=True)
narration = Console(stderr=True)


class Output(StrEnum):
    table = "table"
    json = "json"


OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print the result.")]


@app.command()
def up(output: OutputOption = Output.table) -> None:
    """Start the stack, wait until every service answers, and print where they are."""
    settings = load()
    begun = time.monotonic()
    stack.up(settings, narration)
    narration.print(f"The stack is up ({time.monotonic() - begun:.0f} s).", highlight=False)
    _print(stack.status(settings), output)


@app.command()
def status(output: OutputOption = Output.table) -> None:
    """Ask every service and print how it is; exit 1 unless all are up."""
    found = stack.status(load())
    _print(found, output)
    if not found.ready:
        raise typer.Exit(1)


@app.command()
def down(
    erase: Annotated[bool, typer.Option("--erase", help="Delete the stack's data and logs as well.")] = False,
) -> None:
    """Stop the stack; its data stays unless told otherwise."""
    stopped = stack.down(load(), erase=erase)
    narration.print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing was running.", highlight=False)


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="postgres, kafka, connect or elasticsearch.")],
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 50,
) -> None:
    """Print the end of a service's log."""
    for line in stack.logs(load(), service, lines):
        typer.echo(line)


def _print(found: StackStatus, output: Output) -> None:
    if output is Output.json:
        typer.echo(found.model_dump_json(indent=2))
        return
    table = Table("service", "version", "state", "pid", box=None, pad_edge=False)
    # Whole even on a narrow screen or in a pipe: it is there to be copied.
    table.add_column("address", overflow="fold")
    for one in found.services:
        table.add_row(one.name, one.version, one.state, str(one.pid or ""), one.address or "")
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)
