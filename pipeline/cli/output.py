"""What all commands share: settings, the two output formats, narration on stderr, and asking before a change."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import CdcError, OperationError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from pipeline.settings import Settings


class Format(StrEnum):
    table = "table"
    json = "json"


@dataclass(slots=True)
class Terminal:
    """The global options of this command line."""

    env_file: Path | None = None
    format: Format = Format.table
    quiet: bool = False
    verbose: int = 0
    color: bool = True

    def again(self) -> list[str]:
        """The options as a child process of this command is given them."""
        given = ["--env-file", str(self.env_file)] if self.env_file is not None else []
        given += ["--quiet"] * self.quiet + ["--verbose"] * self.verbose
        return given + ["--no-color"] * (not self.color)


terminal = Terminal()

As = Annotated[Format | None, typer.Option("--output", "-o", help="How data is written to stdout.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def load_settings() -> Settings:
    """The settings, with the variables of --env-file."""
    from pipeline.settings import load

    return load(terminal.env_file)


def as_json(chosen: Format | None = None) -> bool:
    """Whether data is printed as JSON: the command's own -o wins over the global one."""
    return (chosen or terminal.format) is Format.json


def out(*, wide: bool = True) -> Console:
    """The console of data, on stdout; made for each use, for stdout may have been replaced."""
    from rich.console import Console

    # In a pipe nothing is cut: it is there to be read by a program.
    width = 10_000 if wide and not sys.stdout.isatty() else None
    return Console(
        highlight=False, markup=False, emoji=False, soft_wrap=width is not None, no_color=_plain(), width=width
    )


def err() -> Console:
    """The console of narration and progress, on stderr."""
    from rich.console import Console

    return Console(
        stderr=True, highlight=False, markup=False, emoji=False, no_color=_plain(), quiet=terminal.quiet, soft_wrap=True
    )


def print_json(data: BaseModel | Sequence[BaseModel] | dict[str, Any]) -> None:
    """One JSON text on stdout."""
    import json

    plain: Any = data
    if hasattr(data, "model_dump"):
        plain = data.model_dump(mode="json")
    elif not isinstance(data, dict):
        plain = [item.model_dump(mode="json") for item in data]
    typer.echo(json.dumps(plain, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """An aligned table on stdout."""
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out().print(table)


def confirm(question: str, yes: bool) -> None:
    """Ask before a change; without a terminal nobody can answer, so --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise OperationError(f"{question} Nobody can be asked here: add --yes.")
    typer.confirm(question, abort=True, err=True)


def say_error(error: BaseException) -> None:
    """One red line on stderr; -vv adds the traceback."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False, no_color=_plain(), soft_wrap=True)
    if terminal.verbose >= 2:
        console.print_exception()
    hint = "" if isinstance(error, CdcError) or terminal.verbose >= 2 else " (run it again with -vv for the traceback)"
    console.print(Text.assemble((f"{type(error).__name__}: ", "bold red"), (f"{error}{hint}", "red")))


def _plain() -> bool:
    return not terminal.color or bool(os.environ.get("NO_COLOR"))
