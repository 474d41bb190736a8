"""`cdc config`: the settings in force, without secrets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import typer

from pipeline.cli.output import As, as_json, load_settings, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="The settings in force.")


@app.callback()
def _group() -> None:
    """The settings in force."""


@app.command()
def show(output: As = None) -> None:
    """Every setting with its value; secrets are masked."""
    shown = load_settings().shown()
    if as_json(output):
        print_json(shown)
    else:
        print_table(("SETTING", "VALUE"), ((key, "" if value is None else str(value)) for key, value in _flat(shown)))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield above + key, value
