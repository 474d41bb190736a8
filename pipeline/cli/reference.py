"""`python -m pipeline.cli.reference`: every command and option as Markdown, for docs/reference/cli.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from pipeline.cli.root import COMMANDS, app

HEAD = """\
# Commands

<!-- Written by `make docs` from the commands themselves; a test compares. -->

Data goes to stdout, narration to stderr. Exit codes: 0 done · 1 failed · 2 wrong usage · 3 errors found (`check`) or documents that differ (`verify`) ·
4 unhealthy · 130 interrupted.
"""


def text() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_lines()]).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield from _command("cdc", get_command(app), 2)
    for group in dict.fromkeys(entry.group for entry in COMMANDS):
        yield f"## {group}\n"
        for entry in COMMANDS:
            if entry.group == group:
                yield from _command(f"cdc {entry.name}", entry.load(), 3)


def _command(path: str, command: Any, level: int) -> Iterator[str]:
    below: dict[str, Any] = {} if path == "cdc" else getattr(command, "commands", {})
    ctx = command.make_context(path, [], resilient_parsing=True)
    usage = re.sub(r"[{}]", "", " ".join(command.collect_usage_pieces(ctx)))
    yield f"{'#' * level} `{path}`\n"
    yield inspect.cleandoc(command.help or "").partition("\n\n")[0].replace("\n", " ") + "\n"
    yield f"    {path} {usage}\n"
    rows = [_row(param, ctx) for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    rows = [row for row in rows if row and not row.startswith("- `-h, --help") and not row.startswith("- `--help")]
    if rows:
        yield "\n".join(rows) + "\n"
    for name, one in below.items():
        yield from _command(f"{path} {name}", one, level + 1)


def _row(param: Any, ctx: Any) -> str:
    record = param.get_help_record(ctx)
    if record is None:
        return ""
    name, sentence = record
    return f"- `{name}`: {' '.join(sentence.split())}" if sentence else f"- `{name}`"


if __name__ == "__main__":
    print(text(), end="")
