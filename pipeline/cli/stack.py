"""`cdc stack`: the local stack of Postgres, Kafka, Kafka Connect and Elasticsearch."""

from __future__ import annotations

import json
import time
from enum import StrEnum
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

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
def down() -> None:
    """Stop the stack; its data stays."""
    stopped = stack.down(load())
    narration.print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing was running.", highlight=False)


@app.command()
def logs(
    service: Annotated[str, typer.Argument(help="postgres, kafka, connect or elasticsearch.")],
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 50,
) -> None:
    """Print the end of a service's log."""
    for line in stack.logs(load(), service, lines):
        typer.echo(line)


def masked(address: str) -> str:
    """An address that may be shown: its password as `***`."""
    parts = urlsplit(address)
    if parts.password is None:
        return address
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def _print(found: StackStatus, output: Output) -> None:
    shown = found.model_dump()
    for service in shown["services"]:
        service["address"] = service["address"] and masked(service["address"])
    if output is Output.json:
        typer.echo(json.dumps(shown, indent=2))
        return
    table = Table("service", "version", "state", "pid", "address", box=None, pad_edge=False)
    for service in shown["services"]:
        table.add_row(*(str(service[key] or "") for key in ("name", "version", "state", "pid", "address")))
    Console().print(table)
