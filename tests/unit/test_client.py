"""The client of the query API, against a server that answers as a test says."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pipeline import Document, derived, elasticsearch, hidden, many, projection
from pipeline.authoring.discovery import discover
from pipeline.authoring.reading import document_of
from pipeline.client import AsyncClient, Client
from pipeline.errors import NotThereYet, ReadFailed, UnsupportedValue
from pipeline.operations.client_models import client_models
from tests.support.project import REPOSITORY


class Line(Document, source="shop.lines", key=("order_id", "line_no")):
    line_no: int
    cost: Decimal = hidden()

    @derived
    def margin(self) -> Decimal:
        return 10 - self.cost


class Order(Document, source="shop.orders"):
    id: int
    placed_at: datetime
    raw: bytes | None
    lines: tuple[Line, ...] = many(by="order_id")

    @derived
    def margin(self) -> Decimal:
        return sum((line.margin for line in self.lines), Decimal())


orders = projection(Order, to=elasticsearch("orders"))
STORED = {
    "id": 7, "placed_at": "2024-01-01T00:05:00Z", "raw": "AP8Q", "lines": [{"line_no": 1, "margin": "2.50"}], "margin": "2.50",
}  # fmt: skip
Answers = list[tuple[int, dict[str, Any]]]


@contextmanager
def server(answers: Answers) -> Iterator[tuple[str, list[str]]]:
    """Gives one answer after the other; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            version = self.headers.get("x-read-model-version")
            asked.append(self.path if version is None else f"{self.path} of {version}")
            status, body = answers.pop(0)
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("retry-after", "0")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}", asked
        finally:
            http.shutdown()
            thread.join()


def test_a_document_is_of_its_class_with_derived_fields_as_stored() -> None:
    order = document_of(Order, json.dumps(STORED).encode())
    assert isinstance(order, Order) and isinstance(order.lines[0], Line)
    assert (order.placed_at.year, order.raw, order.margin, order.lines[0].margin) == (
        2024,
        b"\0\xff\x10",
        Decimal("2.50"),
        Decimal("2.50"),
    )
    assert document_of(Order, STORED | {"raw": None}).raw is None
    with pytest.raises(AttributeError):
        _ = order.lines[0].cost


def test_a_decimal_that_is_nan_or_infinite_is_read_as_one() -> None:
    class Price(Document, source="shop.prices"):
        id: int
        amount: Decimal

    assert document_of(Price, {"id": 1, "amount": "NaN"}).amount.is_nan()
    assert document_of(Price, {"id": 1, "amount": "-Infinity"}).amount == Decimal("-Infinity")
    assert document_of(Line, {"line_no": 1, "margin": "NaN"}).margin.is_nan()


def test_a_value_that_python_cannot_hold_is_named() -> None:
    with pytest.raises(UnsupportedValue, match=r"Order\.placed_at: 'infinity'"):
        document_of(Order, STORED | {"placed_at": "infinity"})


def test_it_asks_again_where_that_may_help() -> None:
    with server([(503, {}), (429, {}), (200, STORED)]) as (url, asked), Client(url) as client:
        found = client.get(orders, 7, after="txid:742", wait=3)
    assert found is not None and found.id == 7
    assert asked == ["/v1/orders/7?after=txid%3A742&wait=3"] * 3


def test_it_asks_for_the_version_that_it_is_made_for() -> None:
    with server([(200, STORED)]) as (url, asked), Client(url, key="k", version="next") as client:
        assert client.get(orders, 7) is not None
    assert asked == ["/v1/orders/7 of next"]


async def test_the_async_client_does_so_too() -> None:
    with server([(503, {}), (200, STORED), (404, {})]) as (url, asked):
        async with AsyncClient(url) as client:
            assert (await client.get(orders, 7)) is not None
            assert (await client.get(orders, "a/b")) is None
    assert asked[-1] == "/v1/orders/a%2Fb"


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ([(400, {"detail": "There is no field."})], ReadFailed, "400: There is no field."),
        ([(504, {"detail": "In 5 s …", "watermark": "lsn:0/1"})], NotThereYet, "504"),
        ([(500, {})], ReadFailed, "no reason"),
        ([(503, {"detail": "Away."})] * 2, ReadFailed, "503: Away."),
    ],
)
def test_what_is_refused_is_an_error_with_the_servers_words(
    answers: Answers, error: type[ReadFailed], said: str
) -> None:
    with server(answers) as (url, _), Client(url, retries=1) as client, pytest.raises(error, match=said) as raised:
        client.get(orders, 7)
    assert not isinstance(raised.value, NotThereYet) or raised.value.watermark == "lsn:0/1"


def test_a_server_that_is_not_there_is_named() -> None:
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(ReadFailed, match=r"127\.0\.0\.1: no answer"):
        client.get(orders, 7)


def test_filters_are_written_as_the_api_takes_them_and_pages_are_followed() -> None:
    pages: Answers = [(200, {"items": [STORED], "next": "c"}), (200, {"items": [STORED | {"id": 8}], "next": None})]
    where = {"id.in": [7, 8], "placed_at.lt": datetime(2025, 1, 1), "status": "a,b", "paid": True}
    with server(pages) as (url, asked), Client(url) as client:
        assert [order.id for order in client.iterate(orders, where, sort="-id")] == [7, 8]
    first, second = (parse_qs(urlsplit(one).query) for one in asked)
    assert first == {
        "id.eq": ["7", "8"], "placed_at.lt": ["2025-01-01T00:00:00"], "status": ["a,b"], "paid": ["true"], "limit": ["500"], "sort": ["-id"],
    }  # fmt: skip
    assert second == first | {"cursor": ["c"]}


def test_a_class_alone_finds_its_read_model() -> None:
    described = {"components": {"schemas": {"shop-orders": {"title": "Order"}, "Problem": {}}}}
    with server([(200, described), (200, STORED), (200, STORED)]) as (url, asked), Client(url) as client:
        assert client.get(Order, 7) == client.get(Order, 7)
    assert asked == ["/openapi.json", "/v1/shop-orders/7", "/v1/shop-orders/7"]


def test_the_module_for_another_project_reads_what_is_stored(tmp_path: Path) -> None:
    text = client_models([orders, *discover(REPOSITORY / "projections")])
    assert text.count("class OrderLine(BaseModel)") == 1
    file = tmp_path / "read_models.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("read_models_of_a_test", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with server([(200, STORED)]) as (url, asked), Client(url) as client:
        found = client.get(module.Order, 7)
    assert (found.raw, found.margin, found.lines[0].margin) == (b"\0\xff\x10", Decimal("2.50"), Decimal("2.50"))
    assert asked == ["/v1/orders/7"] and not hasattr(found.lines[0], "cost")
    with pytest.raises(UnsupportedValue, match=r"Order\.placed_at"):
        document_of(module.Order, STORED | {"placed_at": "infinity"})
