"""The bulk request: documents' text to ready bytes, and Elasticsearch's answers to outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from pipeline.errors import SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, Throttled, Write

# Whole words of the server; longer ones begin to quote the document.
REASON_LIMIT = 400
FILTER = "errors,items.*.status,items.*.error"


def encode(writes: Sequence[Write], epoch: int) -> tuple[list[bytes], dict[int, Outcome]]:
    """The lines of each write, and the outcome of those that can't be sent at all (their lines are empty)."""
    lines: list[bytes] = []
    refused: dict[int, Outcome] = {}
    tail = f'"_epoch":{epoch}}}\n'
    for position, write in enumerate(writes):
        document = write.document
        try:
            action = f'_id":{quoted(write.id)},"version":{write.revision},"version_type":"external"}}}}\n'
            if document is None:
                lines.append(f'{{"delete":{{"{action}'.encode())
            elif document[-2:-1] in _INNER and "\n" not in document and document[-1:] == "}":
                lines.append(f'{{"index":{{"{action}{document[:-1]},{tail}'.encode())
            else:
                lines.append(f'{{"index":{{"{action}{_opened(document)}{tail}'.encode())
        except ValueError as error:
            refused[position] = Rejected(f"The document can't be sent: {_short(str(error))}.")
            lines.append(b"")
    return lines, refused


# What stands before the final brace of an object that has members and no white space there.
_INNER = frozenset('"]}0123456789el')


def _opened(document: str) -> str:
    """The document in one line, open for one more member."""
    # A raw newline stands between tokens only, and would end the line of the bulk request.
    text = document.replace("\n", " ").strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise ValueError("it is no JSON object")
    inner = text[:-1].rstrip()
    return inner if inner == "{" else inner + ","


def split_bulk(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Positions in requests of at most `limit` bytes; a single larger one goes alone, an empty one nowhere."""
    chunk: list[int] = []
    total = 0
    for position, size in enumerate(sizes):
        if chunk and total + size > limit:
            yield chunk
            chunk, total = [], 0
        if size:
            chunk.append(position)
            total += size
    if chunk:
        yield chunk


def outcomes(answer: Mapping[str, Any], count: int, sink: str) -> list[Outcome]:
    """One outcome per item of a bulk answer; raises where the answer concerns the whole target."""
    if len(answer["items"]) != count:
        raise SinkUnavailable(
            f"{sink}: the bulk answer has {len(answer['items'])} items for {count} writes; try again."
        )
    if not answer["errors"]:
        return [APPLIED] * count
    found: list[Outcome] = []
    for item in answer["items"]:
        (result,) = item.values()
        status = result["status"]
        if status == 409:
            found.append(STALE)
        elif "error" in result:
            found.append(_outcome(status, result["error"], sink))
        else:
            found.append(APPLIED)
    return found


def _outcome(status: int, error: Mapping[str, Any], sink: str) -> Outcome:
    kind = error.get("type", "")
    if kind == "index_not_found_exception":
        raise TargetMissing(f"{sink}: the index is missing: run `cdc apply`.")
    if kind == "index_closed_exception":
        raise SinkUnavailable(f"{sink}: the index is closed: open it.")
    if kind == "cluster_block_exception":
        return Throttled(words(error), retry_after=5.0)
    if status in (401, 403):
        raise SinkError(f"{sink}: not allowed to write ({words(error)}): give the user the index privilege `write`.")
    # Of a server error nobody knows that the document is at fault.
    if status == 429 or status >= 500:
        return Throttled(words(error))
    return Rejected(words(error))


def words(error: object) -> str:
    """`type: reason; caused by type: reason` of a server's error, cut short."""
    said: list[str] = []
    while isinstance(error, Mapping) and len(said) < 4:
        # Jackson adds the document's bytes here.
        reason = str(error.get("reason", "")).partition("\n at [Source")[0]
        if not said or reason not in said[-1]:
            said.append(f"{error.get('type', 'error')}: {_short(reason)}")
        error = error.get("caused_by")
    return "; caused by ".join(said) if said else _short(str(error))


def _short(text: str) -> str:
    return text if len(text) <= REASON_LIMIT else text[:REASON_LIMIT] + "…"
