"""Reads what the Elasticsearch sink wrote: documents by id in real time, searches as of the last refresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch

from connectors.sinks.elasticsearch_client import call, kind, reason
from connectors.sinks.elasticsearch_records import stored_records
from connectors.sinks.parts import named, whole
from pipeline.authoring.aggregate_shape import AggregateShape
from pipeline.authoring.leaves import Leaf, leaves
from pipeline.authoring.shape import Shape
from pipeline.errors import QueryRefused, SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import Condition, Found, Group, Measure, Order, Page, Query, SinkRecord

# How documents spell a time, its microseconds written out.
FORMATS = {"date": "uuuu-MM-dd", "datetime": "uuuu-MM-dd'T'HH:mm:ss.SSSSSSX"}


class _Hit(msgspec.Struct):
    """What an answer has of one document."""

    _source: msgspec.Raw = msgspec.Raw(b"null")
    _version: int = 0
    _id: str = ""
    found: bool = True
    sort: list[Any] = []
    error: dict[str, Any] | None = None


class _Hits(msgspec.Struct):
    hits: list[_Hit]


_hits, _docs = msgspec.json.Decoder(_Hits).decode, msgspec.json.Decoder(list[_Hit]).decode
_plain = msgspec.json.decode


class ElasticsearchReader:
    """Reads one alias. Its client leaves the parts of an answer as they came (`connect(…, shallow=True)`)."""

    def __init__(self, *, client: AsyncElasticsearch, alias: str, shape: Shape, checkpoints: str) -> None:
        self._client, self._alias, self._checkpoints = client, alias, checkpoints
        known = leaves(shape)
        # what tells documents apart, as `_id` does, by which Elasticsearch doesn't sort
        key = shape.key if isinstance(shape, AggregateShape) else _fields(shape)
        self._tie = [known[name] for name in key if name in known and known[name].compared and not known[name].several]
        self._told_apart = len(self._tie) == len(key)

    @property
    def name(self) -> str:
        return f"elasticsearch:{self._alias}"

    def version(self, projection: str) -> str:
        return projection

    async def seen(self) -> str:
        answer = await self._call("GET", f"/_alias/{self._alias}")
        if len(answer) != 1:
            raise SinkError(f"{self.name}: readers see {len(answer)} indices through the alias: run `cdc apply`.")
        return str(next(iter(answer)))

    async def record(self, version: str) -> SinkRecord | None:
        where = self._client, self.name, self._checkpoints
        try:
            found = await stored_records(*where, [version, f"{version}@0"])
            return whole(version, await stored_records(*where, names) if (names := named(found)) else found)
        except ApiError as error:
            if error.meta.status == 404:
                return None
            raise self._failed(error) from None

    async def get(self, version: str, ids: Sequence[str]) -> Mapping[str, Found]:
        answer = await self._call("POST", f"/{version}/_mget", {"ids": list(ids)})
        found = {}
        for hit in _docs(answer["docs"]):
            if hit.error is not None:
                if hit.error.get("type") == "index_not_found_exception":
                    raise TargetMissing(f"{self.name}: the index {version} is gone.")
                raise SinkUnavailable(f"{self.name}: a document can't be read ({hit.error.get('reason')}).")
            if hit.found:
                found[hit._id] = Found(hit._version, _document(hit._source))
        return found

    async def search(self, version: str, query: Query) -> Page:
        if not self._told_apart:
            raise QueryRefused("Its documents don't show their whole key, so there is no order to list them in.")
        order = [*query.order, *(Order(leaf) for leaf in self._tie if leaf not in [o.leaf for o in query.order])]
        body: dict[str, Any] = {
            "query": self._query(query), "size": query.limit + 1, "sort": [_sort(one) for one in order],
            "track_total_hits": False,
        }  # fmt: skip
        if query.after is not None:
            body["search_after"] = list(query.after)
        hits = _hits((await self._call("POST", f"/{version}/_search", body))["hits"]).hits
        documents = [_document(hit._source) for hit in hits[: query.limit]]
        return Page(documents, tuple(hits[query.limit - 1].sort) if len(hits) > query.limit else None)

    async def count(self, version: str, query: Query) -> int:
        return int(_plain((await self._call("POST", f"/{version}/_count", {"query": self._query(query)}))["count"]))

    async def groups(
        self, version: str, query: Query, by: Leaf | None, limit: int, measures: Sequence[Measure] = ()
    ) -> Sequence[Group]:
        stats = {f"of {measure.leaf.name}": {"stats": _formatted(measure.leaf)} for measure in measures}
        if by is None:
            answer = await self._aggregated(version, query, {"all": {"filter": {"match_all": {}}, "aggs": stats}})
            return [_group(None, answer["all"], measures)]
        terms = {"terms": {**_formatted(by), "size": limit}, "aggs": stats}
        none = {"missing": {"field": by.name}, "aggs": stats}
        answer = await self._aggregated(version, query, {"values": terms, "none": none})
        found = [_group(_value(bucket, by), bucket, measures) for bucket in answer["values"]["buckets"]]
        if answer["none"]["doc_count"]:
            found.append(_group(None, answer["none"], measures))
        return sorted(found, key=lambda one: -one.count)[:limit]

    async def _aggregated(self, version: str, query: Query, aggregations: Mapping[str, Any]) -> Any:
        body = {"query": self._query(query), "size": 0, "track_total_hits": False, "aggs": aggregations}
        return _plain((await self._call("POST", f"/{version}/_search", body))["aggregations"])

    async def refresh(self, version: str) -> None:
        await self._call("POST", f"/{version}/_refresh")

    async def close(self) -> None:
        await self._client.close()

    def _query(self, query: Query) -> dict[str, Any]:
        must = []
        if query.text:
            words = {
                "query": query.text,
                "fields": [leaf.name for leaf in query.texts],
                "type": "cross_fields",
                "operator": "and",
            }
            must.append({"multi_match": words})
        return {"bool": {"filter": [_filter(one) for one in query.conditions], "must": must}}

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return await call(self._client, self.name, method, path, body=body)
        except ApiError as error:
            raise self._failed(error) from None

    def _failed(self, error: ApiError) -> SinkError:
        if error.meta.status == 404:
            return TargetMissing(f"{self.name}: there is no such alias or index: run `cdc apply`.")
        if error.meta.status == 400:
            return QueryRefused(f"{self.name} refuses: {kind(error)}.")
        return SinkUnavailable(f"{self.name}: Elasticsearch answers {error.meta.status} ({reason(error)}); try again.")


def _fields(shape: Shape) -> list[str]:
    """The fields that show the key's columns."""
    shown = {field.column: field.name for field in shape.copied}
    return [shown.get(column, "") for column in shape.key]


def _document(source: msgspec.Raw) -> bytes:
    """As it was written: numbers keep their digits."""
    members = msgspec.json.decode(source, type=dict[str, msgspec.Raw])
    members.pop("_epoch", None)
    return msgspec.json.encode(members)


def _filter(condition: Condition) -> dict[str, Any]:
    name, values = condition.leaf.name, [str(v) if isinstance(v, Decimal) else v for v in condition.values]
    if condition.operator == "eq":
        return {"terms": {name: values}}
    if condition.operator == "null":
        return {"bool": {"must_not" if values[0] else "must": {"exists": {"field": name}}}}
    return {"range": {name: {condition.operator: values[0]}}}


def _sort(order: Order) -> dict[str, Any]:
    way = "desc" if order.descending else "asc"
    if order.leaf is None:
        return {"_score": {"order": "desc"}}
    return {order.leaf.name: {"order": way, "missing": "_last"}}


def _value(bucket: Mapping[str, Any], by: Leaf) -> Any:
    if by.kind == "bool":
        return bool(bucket["key"])
    return bucket["key_as_string"] if by.kind == "date" else bucket["key"]


def _formatted(leaf: Leaf) -> dict[str, Any]:
    return {"field": leaf.name, **({"format": FORMATS[leaf.kind]} if leaf.kind in FORMATS else {})}


def _group(value: Any, bucket: Mapping[str, Any], measures: Sequence[Measure]) -> Group:
    results = tuple(_result(measure, bucket[f"of {measure.leaf.name}"]) for measure in measures)
    return Group(value, bucket["doc_count"], results)


def _result(measure: Measure, stats: Mapping[str, Any]) -> Any:
    """A statistic as documents spell it: Elasticsearch computes all of them as doubles, which hold 15 digits."""
    if not stats["count"]:
        return None
    if measure.leaf.kind in FORMATS:
        return str(stats[f"{measure.function}_as_string"]).replace(".000000Z", "Z")
    value = stats[measure.function]
    if measure.leaf.kind == "decimal":
        return f"{Decimal(f'{value:.15g}'):f}"
    return int(value) if measure.leaf.kind == "int" and measure.function != "avg" else value
