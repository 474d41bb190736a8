"""The page of `cdc --help`: the options, and the commands by group."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import ROUNDED
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.cli.output import out


def root_help(
    about: str, path: str, options: Sequence[tuple[str, str]], commands: Sequence[tuple[str, str, str]]
) -> None:
    """Print the page; `commands` are (group, name, sentence) in the order to show."""
    console = out(wide=False)
    console.print(f"\n Usage: {path} [OPTIONS] COMMAND [ARGS]…\n\n {about}\n")
    console.print(_panel("Options", options))
    for group in dict.fromkeys(group for group, _, _ in commands):
        console.print(_panel(group, [(name, sentence) for own, name, sentence in commands if own == group]))
    console.print(f" One command's own page: {path} COMMAND --help\n")


def _panel(title: str, lines: Sequence[tuple[str, str]]) -> Panel:
    table = Table(box=None, show_header=False, expand=True, pad_edge=False)
    table.add_column(style="bold cyan", width=30 if title == "Options" else 12)
    table.add_column(ratio=1)
    for name, sentence in lines:
        table.add_row(Text(name), Text(sentence))
    return Panel(table, title=title, title_align="left", border_style="dim", box=ROUNDED)
