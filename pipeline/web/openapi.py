"""The OpenAPI description of the query API, made from the documents' shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from pipeline.authoring.leaves import Leaf, leaves
from pipeline.authoring.shape import FieldShape, Kind, RelationShape, Shape
from pipeline.ports import Function
from pipeline.web import problems
from pipeline.web.access import Access
from pipeline.web.asking import COMPARED, FUNCTIONS, GROUPED, LIMIT, MOST, TEXT, measurable
from pipeline.web.feeds import feed_target
from pipeline.web.models import ReadModel

BATCH: Final = 500
NUMBER: Final = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}
SCHEMAS: Final[dict[Kind, dict[str, Any]]] = {
    "int": {"type": "integer"},
    "decimal": {"type": "string", "description": "A decimal number, all its digits; NaN, Infinity or -Infinity."},
    "float": NUMBER,
    "bool": {"type": "boolean"},
    "text": {"type": "string"},
    "datetime": {"type": "string", "description": "ISO 8601; infinity or -infinity."},
    "date": {"type": "string", "description": "ISO 8601; infinity or -infinity."},
    "time": {"type": "string", "description": "ISO 8601."},
    "interval": {"type": "string", "description": "An ISO 8601 duration."},
    "uuid": {"type": "string", "format": "uuid"},
    "bytes": {"type": "string", "contentEncoding": "base64"},
    "json": {},
}
PARAMETERS: Final[dict[Kind, dict[str, Any]]] = {
    "int": {"type": "integer", "format": "int64", "minimum": -(1 << 63), "maximum": (1 << 63) - 1},
    "decimal": {"type": "string", "pattern": r"^-?[0-9]{1,60}(\.[0-9]{1,60})?$"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "text": {"type": "string", "maxLength": COMPARED},
    "datetime": {"type": "string", "format": "date-time"},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "uuid": {"type": "string", "format": "uuid"},
}
HEADERS: Final = {
    "X-Read-Model-Version": {"schema": {"type": "string"}, "description": "The version that was read."},
    "X-Read-Model-As-Of": {
        "schema": {"type": "string", "format": "date-time"},
        "description": "All that the source committed until then is in the answer.",
    },
    "X-Read-Model-Watermark": {
        "schema": {"type": "string"},
        "description": "The same as a place in the source's log; a token that `after` takes.",
    },
}
AFTER: Final = "^([a-z][a-z0-9_-]*:)?(txid|lsn|gtid):.+$"
WAITING: Final = [
    {
        "name": "after", "in": "query", "schema": {"type": "string", "pattern": AFTER},
        "description": "Wait until the answer has this transaction: txid:742, lsn:0/16B3748, gtid:0-1-42 (MariaDB), or a watermark;"
        " of several databases crm:gtid:0-1-42.",
    },
    {
        "name": "X-After", "in": "header", "schema": {"type": "string", "pattern": AFTER},
        "description": "The same.",
    },
    {
        "name": "wait", "in": "query", "schema": {"type": "number", "minimum": 0},
        "description": "Seconds to wait at most; then the answer is 504, with the watermark reached.",
    },
    {
        "name": "X-Read-Model-Version", "in": "header", "schema": {"type": "string"},
        "description": "The version to read: live, next (it waits for its cut-over), previous (kept for a rollback), or its name.",
    },
]  # fmt: skip
FIELDS: Final = {
    "name": "fields", "in": "query", "schema": {"type": "string"}, "description": "Only these: id,customer.name",
}  # fmt: skip
FUNCTIONS_SAID: Final[dict[Function, str]] = {
    "sum": "The sum", "avg": "The average", "min": "The least", "max": "The greatest",
}  # fmt: skip
COMPARISONS: Final = {"gt": "greater", "gte": "greater or equal", "lt": "less", "lte": "less or equal"}


def install(app: FastAPI, models: Mapping[str, ReadModel], access: Access) -> None:
    """`/openapi.json`: of the read models that the key may read."""

    async def described(request: Request) -> Response:
        caller = access.caller(request)
        readable = {
            name: (model, caller.seen(name, leaves(model.shape))) for name, model in models.items() if caller.may(name)
        }
        return Response(msgspec.json.encode(_described(access, readable)), media_type="application/json")

    app.add_api_route("/openapi.json", described, methods=["GET"], include_in_schema=False)


def _described(access: Access, readable: Mapping[str, tuple[ReadModel, Mapping[str, Leaf]]]) -> dict[str, Any]:
    schemas = {name: _schema(model.shape, known) for name, (model, known) in readable.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Read models of {access.settings.project}", "version": version("cdc-pipeline")},
        "paths": {path: one for model, known in readable.values() for path, one in _paths(model, known).items()},
        "components": {
            "schemas": {"Problem": problems.SCHEMA, **schemas},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [] if access.public else [{"key": []}],
    }


def _paths(model: ReadModel, known: Mapping[str, Leaf]) -> dict[str, Any]:
    name, at = model.name, f"/v1/{model.name}"
    document = {"$ref": f"#/components/schemas/{name}"}
    key = [{"name": part, "in": "path", "required": True, "schema": _key(kind)} for part, kind in model.key]
    match = {
        "name": "If-None-Match", "in": "header", "schema": {"type": "string"}, "description": "The ETag that is known.",
    }  # fmt: skip
    filters = _filters(known)
    page = {
        "type": "object", "required": ["items", "next"],
        "properties": {
            "items": {"type": "array", "items": _partial(document)},
            "next": {"type": ["string", "null"], "description": "The cursor of the next page."},
        },
    }  # fmt: skip
    told: dict[str, Any] = {"count": {"type": "integer"}}
    told |= {function: _results(known, function) for function in FUNCTIONS}
    counts = {
        "type": "object", "required": ["count"],
        "properties": {**told, "by": {"type": "array", "items": {
            "type": "object", "required": ["value", "count"], "properties": {"value": {}, **told},
        }}},
    }  # fmt: skip
    batch = {
        "type": "object", "required": ["items"],
        "properties": {"items": {"type": "array", "items": {
            "type": "object", "required": ["key", "document"],
            "properties": {"key": {}, "document": {"anyOf": [_partial(document), {"type": "null"}]}},
        }}},
    }  # fmt: skip
    keys = {
        "type": "object", "required": ["keys"], "additionalProperties": False,
        "properties": {"keys": {"type": "array", "minItems": 1, "maxItems": BATCH, "items": _batch_key(model.key)}},
    }  # fmt: skip
    one = _operation(
        f"One document of {name}", f"{name}-get", [*key, FIELDS, match, *WAITING], _partial(document), "400 404 504"
    )
    one["responses"]["200"]["headers"] = {**HEADERS, "ETag": {"schema": {"type": "string"}}}
    one["responses"]["304"] = {"description": "It is as the ETag says."}
    listing = _operation(
        f"Documents of {name}", f"{name}-list", [*_listing(known), *filters, *WAITING], page, "400 504"
    )
    counting = _operation(
        f"How many of {name}", f"{name}-count", [*_counting(known), *filters, *WAITING], counts, "400 504"
    )
    several = _operation(f"Several documents of {name}", f"{name}-batch", [FIELDS, *WAITING], batch, "400 413 415 504")
    several["requestBody"] = {"required": True, "content": {"application/json": {"schema": keys}}}
    followed = {f"{at}/changes": {"get": _following(name)}} if feed_target(model.projection) is not None else {}
    return {
        **followed, at: {"get": listing}, f"{at}/count": {"get": counting}, f"{at}/batch": {"post": several},
        f"{at}/{'/'.join(f'{{{part}}}' for part, _ in model.key)}": {"get": one},
    }  # fmt: skip


def _operation(
    summary: str, id: str, parameters: Sequence[Mapping[str, Any]], answer: Mapping[str, Any], statuses: str
) -> dict[str, Any]:
    said = {
        "description": "What is wrong.",
        "content": {problems.MEDIA: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    return {
        "summary": summary,
        "operationId": id,
        "parameters": list(parameters),
        "responses": {
            "200": {"description": "Found.", "headers": HEADERS, "content": {"application/json": {"schema": answer}}},
            **dict.fromkeys([*statuses.split(), "401", "403", "409", "429", "503"], said),
        },
    }


def _following(name: str) -> dict[str, Any]:
    place = {
        "name": "Last-Event-ID", "in": "header", "schema": {"type": "string"},
        "description": "The id of the last event that is known; a browser sends it by itself.",
    }  # fmt: skip
    begin = _string("from", "now (if it is not said), start (all documents first), or the id of an event.")
    found = _operation(
        f"Documents of {name} as they change", f"{name}-changes", [begin, FIELDS, place], {}, "400 404 410"
    )
    events = {
        "type": "string",
        "description": "Events document, gone and version; of the former data is an object with id, revision and document.",
    }
    found["responses"]["200"] = {
        "description": "Server-sent events without end.", "content": {"text/event-stream": {"schema": events}},
    }  # fmt: skip
    return found


def _partial(document: Mapping[str, Any]) -> dict[str, Any]:
    """Of the document some fields, where `fields` says so."""
    return {"anyOf": [document, {"type": "object"}]}


def _listing(known: Mapping[str, Leaf]) -> list[dict[str, Any]]:
    return [
        *_words(known),
        _string("sort", "Fields in order, -placed_at descends. Without it by q, or by key."),
        FIELDS,
        _limit("Documents of a page."),
        _string("cursor", "`next` of the page before; filters, q and sort as they were."),
    ]


def _counting(known: Mapping[str, Leaf]) -> list[dict[str, Any]]:
    by = [leaf.name for leaf in known.values() if leaf.kind in GROUPED and leaf.compared]
    grouped = {"name": "by", "in": "query", "schema": {"enum": by}, "description": "How many have each value of it."}
    measures = [
        _string(function, f"{said} of these fields, with commas between: {', '.join(names)}.")
        for function, said in FUNCTIONS_SAID.items()
        if (names := _measurable(known, function))
    ]
    return [*_words(known), *([grouped] if by else []), *measures, _limit("Values, the most frequent first.")]


def _measurable(known: Mapping[str, Leaf], function: Function) -> list[str]:
    return [leaf.name for leaf in known.values() if measurable(leaf, function)]


def _results(known: Mapping[str, Leaf], function: Function) -> dict[str, Any]:
    """Spelled as the document's field; an average of whole numbers has a fraction."""
    found: dict[str, Any] = {}
    for name in _measurable(known, function):
        whole = known[name].kind == "int" and function == "avg"
        found[name] = _nullable(NUMBER if whole else SCHEMAS[known[name].kind])
    return {"type": "object", "properties": found}


def _words(known: Mapping[str, Leaf]) -> list[dict[str, Any]]:
    texts = [leaf.name for leaf in known.values() if leaf.text]
    if not texts:
        return []
    schema = {"type": "string", "maxLength": TEXT}
    return [{"name": "q", "in": "query", "schema": schema, "description": f"All these words, in {', '.join(texts)}."}]


def _string(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": {"type": "string"}, "description": description}


def _limit(description: str) -> dict[str, Any]:
    schema = {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}
    return {"name": "limit", "in": "query", "schema": schema, "description": description}


def _filters(known: Mapping[str, Leaf]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for leaf in known.values():
        if leaf.compared:
            schema, what = PARAMETERS[leaf.kind], f"of some {leaf.name}" if leaf.several else f"of {leaf.name}"
            found.append({"name": leaf.name, "in": "query", "schema": schema, "description": f"The value {what}."})
            found.append(_string(f"{leaf.name}.in", f"One of several values {what}, with commas between."))
            found += [
                {
                    "name": f"{leaf.name}.{sign}",
                    "in": "query",
                    "schema": schema,
                    "description": f"The value {what} is {said}.",
                }
                for sign, said in COMPARISONS.items()
            ]
        if not (leaf.compared or leaf.text):
            continue
        schema = PARAMETERS["bool"]
        found.append(
            {"name": f"{leaf.name}.null", "in": "query", "schema": schema, "description": "It has none, or has one."}
        )
    return found


def _key(kind: Kind | None) -> dict[str, Any]:
    return PARAMETERS["int"] if kind == "int" else {"type": "string", "minLength": 1}


def _batch_key(key: Sequence[tuple[str, Kind | None]]) -> dict[str, Any]:
    parts = [{"type": "integer"} if kind == "int" else {"type": ["string", "integer"]} for _, kind in key]
    several = {"type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts)}
    return several if len(parts) > 1 else parts[0]


# ---- documents ----------------------------------------------------------------------------------------------


def _schema(shape: Shape, known: Mapping[str, Leaf], above: str = "") -> dict[str, Any]:
    """The JSON Schema of a document as it is stored, of what is known: derived fields are in it, hidden ones are not."""
    properties = {}
    for member in shape.members:
        path = above + member.name
        if isinstance(member, FieldShape) and path in known:
            properties[member.name] = _field(member)
        elif isinstance(member, RelationShape) and any(name.startswith(f"{path}.") for name in known):
            below = _schema(member.item, known, f"{path}.")
            many = {"type": "array", "items": below}
            properties[member.name] = many if member.many else {"anyOf": [below, {"type": "null"}]}
    return {"type": "object", "title": shape.name, "required": list(properties), "properties": properties}


def _field(field: FieldShape) -> dict[str, Any]:
    schema = {"type": "array", "items": _nullable(SCHEMAS[field.kind])} if field.repeated else SCHEMAS[field.kind]
    return _nullable(schema) if field.nullable else schema


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}
