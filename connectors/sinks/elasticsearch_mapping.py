"""The strict mapping of an index, generated from a document's shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.authoring.json_columns import json_members
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape
from pipeline.errors import DefinitionError

OPTIONS = ("shards", "replicas", "refresh_interval", "nested", "gc_deletes", "settings")

# Lucene takes 32,766 bytes a term; a character has at most 4.
KEYWORD_LIMIT = 8191
KEYWORD: dict[str, Any] = {"type": "keyword", "ignore_above": KEYWORD_LIMIT}
DATE = {"type": "date", "format": "strict_date_optional_time", "ignore_malformed": True}
# The field limit of Elasticsearch's own default.
FIELDS_LIMIT = 1000

FIELDS: dict[Kind, dict[str, Any]] = {
    "int": {"type": "long", "ignore_malformed": True},
    "decimal": {"type": "double", "ignore_malformed": True},
    "float": {"type": "double", "ignore_malformed": True},
    "bool": {"type": "boolean"},
    "text": KEYWORD,
    "datetime": DATE,
    "date": DATE,
    "time": KEYWORD,
    "interval": KEYWORD,
    "uuid": KEYWORD,
    "bytes": {"type": "binary"},
    "json": {"type": "object", "enabled": False},
}


def mapping(shape: Shape, options: Mapping[str, object]) -> dict[str, Any]:
    """What `cdc preview --as mapping` shows and `prepare` sends."""
    known(options)
    properties = _properties(shape, nested=bool(options.get("nested", False)))
    return {"dynamic": "strict", "properties": {**properties, "_epoch": {"type": "long"}}}


def settings(shape: Shape, options: Mapping[str, object], *, gc_deletes: str) -> dict[str, Any]:
    """The settings that the index is created with; the author's `settings` win."""
    known(options)
    index: dict[str, Any] = {"gc_deletes": options.get("gc_deletes", gc_deletes)}
    for option, setting in (
        ("shards", "number_of_shards"),
        ("replicas", "number_of_replicas"),
        ("refresh_interval", "refresh_interval"),
    ):
        if option in options:
            index[setting] = options[option]
    fields = len(flat(mapping(shape, options)))
    if fields > FIELDS_LIMIT:
        index["mapping.total_fields.limit"] = fields + FIELDS_LIMIT
    extra = options.get("settings", {})
    if not isinstance(extra, Mapping):
        raise DefinitionError(f"The Elasticsearch option settings={extra!r} is no mapping: write settings={{...}}.")
    return {**index, **{str(key).removeprefix("index."): value for key, value in extra.items()}}


def known(options: Mapping[str, object]) -> None:
    """Refuse options that no one reads."""
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise DefinitionError(
            f"Elasticsearch targets have no option {', '.join(unknown)}; known are {', '.join(OPTIONS)}."
        )


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Fields that `wanted` adds to `stored`, and fields that it changes or no longer has."""
    old, new = flat(stored), flat(wanted)
    added = [path for path in new if path not in old]
    other = [path for path, definition in old.items() if new.get(path) != definition]
    return added, other


def flat(mapping: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"lines.product.name": {"type": "keyword", …}}`, as Elasticsearch would give it back."""
    return dict(_walk(mapping, ""))


def _properties(shape: Shape, *, nested: bool) -> dict[str, Any]:
    return {
        member.name: _field(member) if isinstance(member, FieldShape) else _relation(member, nested=nested)
        for member in shape.members
        if not member.hidden
    }


def _field(field: FieldShape, above: tuple[type[BaseModel], ...] = ()) -> dict[str, Any]:
    if field.kind == "text" and field.text is not None:
        return {"type": "text", "analyzer": field.text.analyzer}
    if field.model is not None:
        return _json(field, above)
    return dict(FIELDS[field.kind])


def _json(field: FieldShape, above: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """A JSON column by its model; what the JSON has besides is kept, and not searched."""
    assert field.model is not None
    above = (*above, field.model)
    return {
        "type": "object",
        "dynamic": False,
        "properties": {member.name: _field(member, above) for member in json_members(field.model, above)},
    }


def _relation(relation: RelationShape, *, nested: bool) -> dict[str, Any]:
    kind = "nested" if nested and relation.many else "object"
    # Inherits "strict" from the root.
    return {"type": kind, "properties": _properties(relation.item, nested=nested)}


def _walk(mapping: Mapping[str, Any], above: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, definition in mapping.get("properties", {}).items():
        path = above + name
        own = {key: value for key, value in definition.items() if key not in ("properties", "dynamic")}
        # As Elasticsearch gives it back: no type where there are properties, no analyzer that is the default.
        own.setdefault("type", "object")
        if own.get("analyzer") in ("default", "standard"):
            del own["analyzer"]
        yield path, own
        yield from _walk(definition, path + ".")
