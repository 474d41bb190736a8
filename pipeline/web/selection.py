"""The fields that a request asks for, out of a document's JSON; what is shown keeps its digits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from pipeline.authoring.leaves import Leaf

Tree = Mapping[str, Any]
_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def tree(leaves: Iterable[Leaf]) -> Tree:
    """Fields as nested names; a leaf is an empty mapping."""
    root: dict[str, Any] = {}
    for leaf in leaves:
        level = root
        for name in leaf.path:
            level = level.setdefault(name, {})
    return root


def select(document: bytes, wanted: Tree) -> bytes:
    """The document with the wanted members alone."""
    members = _object(document)
    return msgspec.json.encode(
        {name: _below(members[name], below) for name, below in wanted.items() if name in members}
    )


def _below(value: msgspec.Raw, wanted: Tree) -> msgspec.Raw:
    text = bytes(value)
    if not wanted or text == b"null":
        return value
    if text.startswith(b"["):
        return msgspec.Raw(msgspec.json.encode([_below(item, wanted) for item in _list(text)]))
    return msgspec.Raw(select(text, wanted))
