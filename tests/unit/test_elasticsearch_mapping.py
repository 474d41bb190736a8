"""What the index looks like follows from the document alone."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest

from connectors.sinks.elasticsearch import mapping, split_bulk
from connectors.sinks.elasticsearch_bulk import encode, outcomes, words
from connectors.sinks.elasticsearch_mapping import difference, settings
from pipeline.authoring.documents import Document, Text, derived, hidden, many, one
from pipeline.authoring.shape import shape_of
from pipeline.errors import DefinitionError, SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import APPLIED, STALE, Rejected, Throttled, Write

KEYWORD = {"type": "keyword", "ignore_above": 8191}
LONG = {"type": "long", "ignore_malformed": True}
DOUBLE = {"type": "double", "ignore_malformed": True}
DATE = {"type": "date", "format": "strict_date_optional_time", "ignore_malformed": True}


class Product(Document, source="shop.products"):
    id: int
    name: str


class Line(Document, source="shop.lines"):
    id: int
    product: Product | None = one(via="product_id")


class Order(Document, source="shop.orders"):
    id: int
    total: Decimal
    ratio: float
    paid: bool
    status: str
    essay: Annotated[str, Text("whitespace")]
    at: datetime
    day: date
    clock: time
    span: timedelta
    uid: UUID
    blob: bytes
    extra: dict[str, Any]
    tags: tuple[str, ...]
    secret: str = hidden()
    lines: tuple[Line, ...] = many(by="order_id")
    unseen: tuple[Line, ...] = many(by="order_id", hidden=True)

    @derived
    def doubled(self) -> Decimal:
        return self.total * 2


SHAPE = shape_of(Order)
LINES = {"properties": {"id": LONG, "product": {"type": "object", "properties": {"id": LONG, "name": KEYWORD}}}}


def test_every_kind_has_its_mapping_and_what_is_hidden_has_none() -> None:
    assert mapping(SHAPE, {}) == {
        "dynamic": "strict",
        "properties": {
            "id": LONG, "total": DOUBLE, "ratio": DOUBLE, "paid": {"type": "boolean"}, "status": KEYWORD,
            "essay": {"type": "text", "analyzer": "whitespace"}, "at": DATE, "day": DATE, "clock": KEYWORD,
            "span": KEYWORD, "uid": KEYWORD, "blob": {"type": "binary"}, "extra": {"type": "object", "enabled": False},
            "tags": KEYWORD, "lines": {"type": "object", **LINES}, "doubled": DOUBLE, "_epoch": {"type": "long"},
        },
    }  # fmt: skip


def test_lists_of_rows_are_nested_only_where_the_target_says_so() -> None:
    lines = mapping(SHAPE, {"nested": True})["properties"]["lines"]
    assert lines == {"type": "nested", **LINES}


def test_the_settings_are_the_targets_options() -> None:
    options: dict[str, object] = {
        "shards": 3,
        "replicas": 0,
        "refresh_interval": "5s",
        "settings": {"index.codec": "x"},
    }
    assert settings(SHAPE, {}, gc_deletes="15m") == {"gc_deletes": "15m"}
    assert settings(SHAPE, options, gc_deletes="1h") == {
        "gc_deletes": "1h",
        "number_of_shards": 3,
        "number_of_replicas": 0,
        "refresh_interval": "5s",
        "codec": "x",
    }


def test_an_option_that_no_one_reads_is_refused() -> None:
    with pytest.raises(DefinitionError, match="no option replica; known are shards, replicas"):
        mapping(SHAPE, {"replica": 1})
    with pytest.raises(DefinitionError, match="settings=5"):
        settings(SHAPE, {"settings": 5}, gc_deletes="1h")


def test_a_difference_names_added_and_other_fields_by_their_path() -> None:
    old = mapping(SHAPE, {})
    new = json.loads(json.dumps(old))
    assert difference(old, new) == ([], [])
    del new["properties"]["day"]
    new["properties"]["lines"]["properties"]["product"]["properties"]["name"] = {"type": "text", "analyzer": "standard"}
    new["properties"]["lines"]["properties"]["more"] = KEYWORD
    assert difference(old, new) == (["lines.more"], ["day", "lines.product.name"])


@pytest.mark.parametrize(
    ("sizes", "chunks"),
    [
        ([], []),
        ([5], [[0]]),
        ([50, 5], [[0], [1]]),
        ([5, 5, 5], [[0, 1], [2]]),
        ([5, 0, 5, 1], [[0, 2], [3]]),
        ([0, 0], []),
    ],
)
def test_a_bulk_is_split_by_bytes(sizes: list[int], chunks: list[list[int]]) -> None:
    assert list(split_bulk(sizes, 10)) == chunks


@pytest.mark.parametrize(
    ("document", "sent"),
    [
        ("{}", '{"_epoch":7}'),
        (" { } ", '{"_epoch":7}'),
        ('{"a":"}"}', '{"a":"}","_epoch":7}'),
        ('{"a":{}}\n', '{"a":{},"_epoch":7}'),
        ('{"a":\n[1]}', '{"a": [1],"_epoch":7}'),
        ('{"a":null}', '{"a":null,"_epoch":7}'),
    ],
)
def test_the_epoch_is_the_last_member_of_any_document(document: str, sent: str) -> None:
    (line,), refused = encode([Write('a"b', 3, document)], 7)
    assert line.decode() == '{"index":{"_id":"a\\"b","version":3,"version_type":"external"}}\n' + sent + "\n"
    assert not refused


def test_a_delete_is_one_line() -> None:
    (line,), _ = encode([Write("1", 3, None)], 7)
    assert line == b'{"delete":{"_id":"1","version":3,"version_type":"external"}}\n'


def answer(status: int, kind: str | None = None, reason: str = "why") -> dict[str, Any]:
    error = {} if kind is None else {"error": {"type": kind, "reason": reason}}
    return {"errors": True, "items": [{"index": {"status": status, **error}}]}


@pytest.mark.edge_case(49)
@pytest.mark.parametrize(
    ("status", "kind", "outcome"),
    [
        (201, None, APPLIED),
        (404, None, APPLIED),
        (409, "version_conflict_engine_exception", STALE),
        (429, "es_rejected_execution_exception", Throttled("es_rejected_execution_exception: why")),
        (429, "circuit_breaking_exception", Throttled("circuit_breaking_exception: why")),
        (503, "unavailable_shards_exception", Throttled("unavailable_shards_exception: why")),
        (500, "node_closed_exception", Throttled("node_closed_exception: why")),
        (403, "cluster_block_exception", Throttled("cluster_block_exception: why", 5.0)),
        (400, "document_parsing_exception", Rejected("document_parsing_exception: why")),
        (400, "strict_dynamic_mapping_exception", Rejected("strict_dynamic_mapping_exception: why")),
    ],
)
def test_each_answer_of_the_server_is_one_outcome(status: int, kind: str | None, outcome: object) -> None:
    assert outcomes(answer(status, kind), 1, 100, "sink") == [outcome]


@pytest.mark.edge_case(49)
@pytest.mark.parametrize(
    ("stage", "operation", "never"),
    [("primary", 1000, True), ("primary", 850, True), ("primary", 700, False), ("coordinating", 850, False)],
)
def test_no_room_for_a_document_that_never_fits_is_a_rejection(stage: str, operation: int, never: bool) -> None:
    reason = f"rejected [{stage}_operation_bytes={operation}, max_{stage}_bytes=900]"
    (outcome,) = outcomes(answer(429, "es_rejected_execution_exception", reason), 1, 100, "sink")
    assert isinstance(outcome, Rejected if never else Throttled)


@pytest.mark.parametrize(
    ("status", "kind", "error"),
    [
        (404, "index_not_found_exception", TargetMissing),
        (400, "index_closed_exception", SinkUnavailable),
        (403, "security_exception", SinkError),
    ],
)
def test_what_concerns_the_whole_index_is_raised(status: int, kind: str, error: type[SinkError]) -> None:
    with pytest.raises(error, match="sink"):
        outcomes(answer(status, kind), 1, 100, "sink")


def test_an_answer_with_too_few_items_is_not_trusted() -> None:
    with pytest.raises(SinkUnavailable, match="0 items for 1 writes"):
        outcomes({"errors": False, "items": []}, 1, 100, "sink")


def test_words_follow_the_causes_and_leave_the_document_out() -> None:
    cause = {"type": "b", "reason": 'bad\n at [Source: (byte[])"{secret}"; line: 1]'}
    assert words({"type": "a", "reason": "x" * 1000, "caused_by": cause}) == f"a: {'x' * 400}…; caused by b: bad"
