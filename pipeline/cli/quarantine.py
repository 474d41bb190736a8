"""`cdc quarantine`: documents that could not be built or that a sink refused."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from pipeline.authoring.discovery import find, live
from pipeline.cli.output import As, Yes, as_json, confirm, err, load_settings, print_json, print_table
from pipeline.errors import OperationError
from pipeline.operations import refused

app = typer.Typer(no_args_is_help=True, help="Documents that could not be built or were refused.")
Name = Annotated[str, typer.Argument(metavar="PROJECTION")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Each as JSON: 10, '\"a\"' or '[10,1]'.")]


def _parsed(keys: list[str]) -> list[list[Any]]:
    try:
        plain = [json.loads(key) for key in keys]
    except ValueError:
        raise OperationError("A key is JSON: 10, '\"a\"' or '[10,1]'.") from None
    return [key if isinstance(key, list) else [key] for key in plain]


@app.command("list")
def list_(output: As = None) -> None:
    """All of them, oldest first."""
    own = load_settings()
    found = [q for p in live(own) for q in refused.quarantined(own, p)]
    if as_json(output):
        print_json(found)
        return
    print_table(
        ("PROJECTION", "SINK", "KEY", "KIND", "ATTEMPTS", "ERROR"),
        [(q.projection, q.sink, json.dumps(q.key), q.kind, str(q.attempts), q.error) for q in found],
    )


@app.command()
def show(projection: Name, key: Annotated[str, typer.Argument(metavar="KEY")]) -> None:
    """One of them, with the whole error."""
    own = load_settings()
    for found in refused.quarantined(own, find(own, projection)):
        if [found.key] == _parsed([key]):
            print_json(found)
            return
    raise OperationError(f"{projection} has no key {key} in quarantine; see cdc quarantine list.")


@app.command()
def retry(projection: Name, keys: Keys = None) -> None:
    """Write them again as they are now; all of them where no key is given."""
    own = load_settings()
    done = refused.retry_quarantined(own, find(own, projection), _parsed(keys) if keys else None)
    err().print(f"{done} marked to be written again")


@app.command()
def discard(projection: Name, keys: Keys, yes: Yes = False) -> None:
    """Forget that they were refused; their next change is written as any other."""
    own = load_settings()
    confirm(f"Discard {len(keys or [])} keys of {projection}?", yes)
    err().print(f"{refused.discard_quarantined(own, find(own, projection), _parsed(keys or []))} discarded")
