"""`cdc state`: the mirrors' state snapshots."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.authoring import builds
from pipeline.authoring.discovery import find
from pipeline.cli.output import As, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import OperationError
from pipeline.operations.states import State, States
from pipeline.operations.status import mirror_file

app = typer.Typer(no_args_is_help=True, help="Copies of the mirrors, from which a lost machine's workers go on.")


@app.command("list")
def list_(output: As = None) -> None:
    """All of them, the newest of each build first."""
    states = States(load_settings())
    _print([state for build in states.builds() for state in states.of(build)], as_json(output))


@app.command()
def take(name: Annotated[str, typer.Argument(metavar="PROJECTION")], output: As = None) -> None:
    """Take one now of each build of a projection; its worker may run."""
    own = load_settings()
    states = States(own)
    parts = [part for build in builds.maintained(own, find(own, name)) for part in build.parts]
    there = [part for part in parts if mirror_file(own, part).exists()]
    if not there:
        raise OperationError(f"{name} has no mirror on this machine: nothing to take.")
    taken = []
    for part in there:
        taken.append(states.take(part))
        states.prune(part, own.state.keep)
    _print(taken, as_json(output))


@app.command()
def drop(
    build: Annotated[str, typer.Argument(metavar="BUILD", help="As `cdc state list` has it, orders-v1.2.")],
    yes: Yes = False,
) -> None:
    """Remove all of a build's: of one that is no more, or so that its worker begins with the log."""
    states = States(load_settings())
    if not (found := states.of(build)):
        raise OperationError(f"{build} has no state snapshot; see cdc state list.")
    confirm(f"Remove {len(found)} state snapshots of {build}?", yes)
    states.drop(build)
    err().print(f"{build}: {len(found)} state snapshots are gone")


def _print(found: list[State], json: bool) -> None:
    if json:
        print_json(found)
        return
    print_table(
        ("BUILD", "TAKEN", "SEQUENCE", "SIZE", "OF"),
        [(s.build, f"{s.at:%F %T}", f"{s.seq:,}", f"{s.bytes / 1e6:,.1f} MB", f"{s.mirror_bytes / 1e6:,.1f} MB") for s in found],
    )  # fmt: skip
