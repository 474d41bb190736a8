"""`cdc stack`: the local stack of Postgres, Kafka, Kafka Connect and Elasticsearch."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from pipeline.cli.output import As, Format, as_json, err, load_settings, print_table
from pipeline.stack import stack
from pipeline.stack.stack import StackStatus

app = typer.Typer(name="stack", help="The local stack: real services, without Docker or root.", no_args_is_help=True)


@app.command()
def up(
    also: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="SERVICE", help="A part that not every stack has: mariadb.", show_default=False),
    ] = None,
    output: As = None,
) -> None:
    """Start the stack, wait until every service answers, and print where they are."""
    settings = load_settings()
    begun = time.monotonic()
    stack.up(settings, err(), also=also or ())
    err().print(f"The stack is up ({time.monotonic() - begun:.0f} s).")
    _print(stack.status(settings), output)


@app.command()
def status(output: As = None) -> None:
    """Ask every service and print how it is; exit 1 unless all are up."""
    found = stack.status(load_settings())
    _print(found, output)
    if not found.ready:
        raise typer.Exit(1)


@app.command()
def down(
    erase: Annotated[bool, typer.Option("--erase", help="Delete the stack's data and logs as well.")] = False,
) -> None:
    """Stop the stack; its data stays unless told otherwise."""
    stopped = stack.down(load_settings(), erase=erase)
    err().print(f"Stopped: {', '.join(stopped)}." if stopped else "Nothing was running.")


@app.command()
def logs(
    service: Annotated[
        str, typer.Argument(metavar="SERVICE", help="postgres, kafka, connect, elasticsearch, redis or mariadb.")
    ],
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 50,
) -> None:
    """Print the end of a service's log."""
    for line in stack.logs(load_settings(), service, lines):
        typer.echo(line)


def _print(found: StackStatus, output: Format | None) -> None:
    if as_json(output):
        typer.echo(found.model_dump_json(indent=2))
        return
    rows = ((one.name, one.version, one.state, str(one.pid or ""), one.address or "") for one in found.services)
    print_table(("service", "version", "state", "pid", "address"), rows)
