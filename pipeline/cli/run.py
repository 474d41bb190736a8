"""`cdc run` and `cdc worker`: the processes that keep read models current."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import logs
from pipeline.cli.output import load_settings, terminal


def run(
    projections: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Only these projections.", show_default=False)
    ] = None,
) -> None:
    """Run a worker process for each projection, and start again the ones that stop; ctrl-C ends all."""
    from pipeline.runtime import supervisor

    own = load_settings()
    logs.start(own)
    raise typer.Exit(supervisor.run(own, list(projections or ()), global_options=terminal.again()))


def worker(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The projection.")],
    build: Annotated[
        int | None, typer.Option("--build", min=1, help="Not the build that readers see, but this.", show_default=False)
    ] = None,
    number: Annotated[int, typer.Option("--number", min=1, help="Which of its workers, where it has several.")] = 1,
) -> None:
    """Run the worker of one projection in this process, or one of its workers."""
    from pipeline.runtime import process, tracing

    own = load_settings()
    logs.start(own, projection=name)
    tracing.start(own, f"worker {name}")
    raise typer.Exit(process.run(own, name, build, number))
