"""`cdc deadletters`: changes that could not be decoded."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.authoring.discovery import find, live
from pipeline.cli.output import As, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import OperationError
from pipeline.operations import refused

app = typer.Typer(no_args_is_help=True, help="Changes that could not be decoded.")
Name = Annotated[str, typer.Argument(metavar="PROJECTION")]
Ids = Annotated[list[int], typer.Argument(metavar="ID")]


@app.command("list")
def list_(output: As = None) -> None:
    """All of them, oldest first."""
    own = load_settings()
    found = [letter for p in live(own) for letter in refused.dead_letters(own, p)]
    if as_json(output):
        print_json(found)
        return
    print_table(
        ("PROJECTION", "ID", "WHERE", "AT", "ERROR"),
        [(d.projection, str(d.id), f"{d.topic}/{d.partition}@{d.offset}", f"{d.at:%F %T}", d.error) for d in found],
    )


@app.command()
def show(projection: Name, number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """One of them, with its bytes."""
    own = load_settings()
    for letter in refused.dead_letters(own, find(own, projection)):
        if letter.id == number:
            print_json(letter)
            return
    raise OperationError(f"{projection} has no dead letter {number}; see cdc deadletters list.")


@app.command()
def retry(
    projection: Name,
    ids: Annotated[list[int] | None, typer.Argument(metavar="ID", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    output: As = None,
) -> None:
    """Read the rows behind them again from the source, and forget them; an old message is never applied again."""
    if every == bool(ids):
        raise OperationError("Which ones? Give their ids, or --all.")
    own = load_settings()
    done = refused.retry_dead_letters(own, find(own, projection), ids or None)
    if as_json(output):
        print_json(done)
    for letter in done.left:
        err().print(f"{letter.id}: {letter.reason}", style="yellow")
    err().print(f"{len(done.retried)} retried, {len(done.left)} left")
    if done.left:
        raise typer.Exit(1)


@app.command()
def discard(projection: Name, ids: Ids, yes: Yes = False) -> None:
    """Forget them; what they said is lost to the read model until the row changes again."""
    own = load_settings()
    confirm(f"Discard {len(ids)} dead letters of {projection}?", yes)
    err().print(f"{refused.discard_dead_letters(own, find(own, projection), ids)} discarded")
