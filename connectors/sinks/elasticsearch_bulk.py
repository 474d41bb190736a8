"""The bulk request: documents' text to ready bytes, and Elasticsearch's answers to outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring as quoted
from typing import Any

from pipeline.errors import SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import APPLIED, STALE, Outcome, Rejected, Throttled, Write

# Whole words of the server; longer ones begin to quote the document.
REASON_LIMIT = 400
PRESSURE = re.compile(r"(coordinating|primary)_operation_bytes=(\d+), max_\w+_bytes=(\d+)")
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


def oversized(reason: str, size: int) -> bool:
    """Whether "no room now" is for ever: `size` bytes need more than the server has when it is idle."""
    found = PRESSURE.search(reason)
    if found is None:
        return False
    stage, operation, most = found.groups()
    # On the primary the bytes of the request itself stand beside those of the operation.
    return int(operation) + (size if stage == "primary" else 0) > int(most)


def outcomes(answer: Mapping[str, Any], count: int, size: int, sink: str) -> list[Outcome]:
    """One outcome per item of the answer to `size` bytes; raises where it concerns the whole target."""
    if len(answer["items"]) != count:
        raise SinkUnavailable(
            f"{sink}: the bulk answer has {len(answer['items'])} items for {count} writes; try again."
        )
    if not answer["errors"]:
        return [APPLIED] * count
    found: list[Outcome] = []
    alone = size if count == 1 else 0
    for item in answer["items"]:
        (result,) = item.values()
        status = result["status"]
        if status == 409:
            found.append(STALE)
        elif "error" in result:
            found.append(_outcome(status, result["error"], alone, sink))
        else:
            found.append(APPLIED)
    return found


def _outcome(status: int, error: Mapping[str, Any], alone: int, sink: str) -> Outcome:
    kind = error.get("type", "")
    if kind == "index_not_found_exception":
        raise TargetMissing(f"{sink}: the index is missing: run `cdc apply`.")
    if kind == "index_closed_exception":
        raise SinkUnavailable(f"{sink}: the index is closed: open it.")
    if kind == "cluster_block_exception":
        return Throttled(words(error), retry_after=5.0)
    if status in (401, 403):
        raise SinkError(f"{sink}: not allowed to write ({words(error)}): give the user the index privilege `write`.")
    if alone and status == 429 and oversized(words(error), alone):
        return Rejected(f"{words(error)} ({alone} bytes)")
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
