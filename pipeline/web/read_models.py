"""The query API: documents by key, several at once, lists, counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from fastapi import FastAPI, Request
from starlette.responses import Response

from pipeline.authoring.catalog import did_you_mean
from pipeline.authoring.leaves import Leaf, leaves
from pipeline.errors import OperationError
from pipeline.operations.wait import Token, tokens_of
from pipeline.ports import Group, Measure
from pipeline.web.access import Access, Caller
from pipeline.web.asking import COUNTING, FRESHNESS, LISTING, asked, cursor, grouped, measured, shown
from pipeline.web.models import ReadModel, Seen
from pipeline.web.problems import Problem, bad
from pipeline.web.selection import Tree, select, tree
from pipeline.web.versions import HEADER, Versions

BATCH: Final = 500
JSON: Final = "application/json"


def install(app: FastAPI, models: Mapping[str, Versions], access: Access) -> None:
    """The routes of all read models; what they answer is told by `pipeline.web.openapi`."""

    async def listed(request: Request) -> Response:
        versions, model, _, known = model_of(request, models, access)
        wanted = asked(known, request.query_params.multi_items(), LISTING)
        tokens, patience = _freshness(request, model)
        version = versions.named(request.headers.get(HEADER))
        seen, page = await model.read(
            tokens, patience, lambda v: model.reader.search(v, wanted.query), search=True, version=version
        )
        chosen = chosen_of(model, known, wanted.fields)
        documents = page.documents if chosen is None else [select(one, chosen) for one in page.documents]
        following = None if page.next is None else cursor(wanted.digest, page.next)
        items = b",".join(documents)
        return _answer(b'{"items":[%b],"next":%b}' % (items, msgspec.json.encode(following)), seen)

    async def counted(request: Request) -> Response:
        versions, model, _, known = model_of(request, models, access)
        wanted = asked(known, request.query_params.multi_items(), COUNTING)
        tokens, patience = _freshness(request, model)
        by = grouped(known, request.query_params.get("by"))
        measures = measured(known, request.query_params.multi_items())

        async def count(version: str) -> dict[str, Any]:
            query = wanted.query
            if measures:
                (everything,) = await model.reader.groups(version, query, None, 1, measures)
            else:
                everything = Group(None, await model.reader.count(version, query))
            found = _told(everything, measures)
            if by is not None:
                groups = await model.reader.groups(version, query, by, query.limit, measures)
                found["by"] = [{"value": one.value, **_told(one, measures)} for one in groups]
            return found

        version = versions.named(request.headers.get(HEADER))
        seen, found = await model.read(tokens, patience, count, search=True, version=version)
        return _answer(msgspec.json.encode(found), seen)

    async def one(request: Request) -> Response:
        versions, model, _, known = model_of(request, models, access)
        parameters = only(request, "fields", *FRESHNESS)
        chosen = chosen_of(model, known, shown(known, parameters.get("fields")))
        id = model.id_of(_parts(request))
        tokens, patience = _freshness(request, model)
        seen, found = await versions.get(tokens, patience, [id], request.headers.get(HEADER))
        if id not in found:
            raise Problem(404, "no-such-document", f"{model.name} has no document of this key.", headers=seen.headers())
        etag = f'"{seen.version}-{found[id].revision:x}"'
        known_as = [part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(",")]
        if etag in known_as or known_as == ["*"]:
            return Response(status_code=304, headers={**seen.headers(), "ETag": etag})
        document = found[id].document
        return _answer(document if chosen is None else select(document, chosen), seen, ETag=etag)

    async def batch(request: Request) -> Response:
        versions, model, _, known = model_of(request, models, access)
        fields = shown(known, only(request, "fields", *FRESHNESS).get("fields"))
        chosen = chosen_of(model, known, fields)
        keys = await _keys(request)
        ids = [model.id_of(key if isinstance(key, list) else [key]) for key in keys]
        tokens, patience = _freshness(request, model)
        seen, found = await versions.get(tokens, patience, ids, request.headers.get(HEADER))
        items = []
        for key, id in zip(keys, ids, strict=True):
            document = found[id].document if id in found else b"null"
            if chosen is not None and id in found:
                document = select(document, chosen)
            items.append(b'{"key":%b,"document":%b}' % (msgspec.json.encode(key), document))
        return _answer(b'{"items":[%b]}' % b",".join(items), seen)

    app.add_api_route("/v1/{name}", listed, methods=["GET"], include_in_schema=False)
    app.add_api_route("/v1/{name}/count", counted, methods=["GET"], include_in_schema=False)
    app.add_api_route("/v1/{name}/batch", batch, methods=["POST"], include_in_schema=False)
    app.add_api_route("/v1/{name}/{key:path}", one, methods=["GET"], include_in_schema=False)


def model_of(
    request: Request, models: Mapping[str, Versions], access: Access
) -> tuple[Versions, ReadModel, Caller, Mapping[str, Leaf]]:
    """The read model with its versions, who asks, and what that one sees of its documents."""
    name = request.path_params["name"]
    caller = access.caller(request)
    if name not in models or not caller.may(name):
        if name in models:
            raise Problem(403, "not-in-scope", f"This key has no scope {name}.")
        readable = [one for one in models if caller.may(one)]
        raise Problem(404, "no-such-read-model", f"There is no read model {name[:100]!r}{_near(name, readable)}")
    model = models[name].model
    return models[name], model, caller, caller.seen(name, leaves(model.shape))


def _told(group: Group, measures: Sequence[Measure]) -> dict[str, Any]:
    found: dict[str, Any] = {"count": group.count}
    for measure, result in zip(measures, group.results, strict=True):
        found.setdefault(measure.function, {})[measure.leaf.name] = result
    return found


def chosen_of(model: ReadModel, known: Mapping[str, Leaf], fields: Sequence[Leaf] | None) -> Tree | None:
    """What to show of each document; None: all of it."""
    if fields is None and known is leaves(model.shape):
        return None
    return tree(known.values() if fields is None else fields)


def _near(name: str, known: list[str]) -> str:
    return did_you_mean(name, known) if known else "."


def _answer(body: bytes, seen: Seen, **headers: str) -> Response:
    return Response(body, headers={**seen.headers(), **headers}, media_type=JSON)


def _parts(request: Request) -> list[str]:
    """The key's parts as the path has them: a slash within one is written %2F."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    try:
        return [unquote_to_bytes(part).decode() for part in raw.split(b"?")[0].split(b"/")[3:]]
    except UnicodeDecodeError:
        raise bad("bad-key", "The path is no UTF-8.") from None


def only(request: Request, *names: str) -> dict[str, str]:
    """The request's parameters, which are these at most, each once; raises Problem."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in names or name in found:
            what = (
                f"{name[:100]} is given twice."
                if name in found
                else f"There is no parameter {name[:100]!r}{did_you_mean(name, names)}"
            )
            raise bad("unknown-parameter", what)
        found[name] = value
    return found


def _freshness(request: Request, model: ReadModel) -> tuple[tuple[Token, ...], float]:
    """The tokens of `after` or X-After, and how long to wait."""
    own = model.settings.web
    given = request.query_params.get("after", request.headers.get("x-after"))
    try:
        patience = float(request.query_params.get("wait") or own.wait)
        if not 0 <= patience <= own.wait_limit:
            raise ValueError
    except ValueError:
        raise bad("bad-value", f"wait is a number of seconds from 0 to {own.wait_limit:g}.") from None
    try:
        return (() if given is None else tokens_of(given)), patience
    except OperationError as error:
        raise bad("bad-token", str(error)) from None


async def _keys(request: Request) -> list[Any]:
    if request.headers.get("content-type", JSON).split(";")[0].strip().lower() != JSON:
        raise Problem(415, "unsupported-media-type", f"The body has to be {JSON}.")
    try:
        keys = msgspec.json.decode(await request.body(), type=dict[str, list[Any]])
    except msgspec.DecodeError:
        keys = {}
    if list(keys) != ["keys"] or not 1 <= len(keys["keys"]) <= BATCH:
        raise bad("bad-body", f'The body has to be {{"keys": […]}} with 1 to {BATCH} keys.')
    return keys["keys"]
