"""`cdc explain`: the rows behind one document, and what each sink holds of it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipeline.authoring.discovery import find
from pipeline.cli.output import As, as_json, load_settings, out, print_json, print_table
from pipeline.operations.explain import SHOWN, DocumentStory
from pipeline.reports import explain as reports


def explain(
    projection: Annotated[str, typer.Argument(metavar="NAME")],
    key: Annotated[list[str], typer.Argument(metavar="KEY", help="The key's values: 10, or a text.")],
    output: As = None,
) -> None:
    """Why a document looks as it does: its rows with their positions, its revision, and what each sink holds."""
    own = load_settings()
    story = reports.explain(own, find(own, projection), key)
    if as_json(output):
        print_json(story)
        return
    _print(story)


def _print(story: DocumentStory) -> None:
    print_table(
        ("WHERE", "TABLE", "SOURCE LOG", "COMMIT", "ORDER", "COLUMNS"),
        [
            (r.path, r.table, r.source_log, str(r.commit), str(r.order), json.dumps(r.columns, ensure_ascii=False))
            for r in story.rows
        ],
    )
    out().print()
    if story.contributions is not None:
        out().print(f"{story.contributions} documents are in this group; the rows are those of the first {SHOWN}")
    out().print(f"document {story.id}: {json.dumps(story.document, ensure_ascii=False)}")
    for sink in story.sinks:
        state = "equal" if sink.equal else "differs" if sink.equal is False else "not known"
        notes = [state, *(["is to be written"] if sink.dirty else []), *filter(None, (sink.quarantined, sink.error))]
        out().print(f"{sink.sink}: epoch {sink.epoch}, sequence {sink.sequence}: {'; '.join(notes)}")
        for one in sink.differences:
            was, now = (json.dumps(value, ensure_ascii=False) for value in (one.document, one.source))
            out().print(f"    {one.path}: {was}, and would be {now}")
