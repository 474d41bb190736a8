"""The query API on the real stack: read models in Elasticsearch and in Postgres, asked over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from random import Random
from threading import Thread
from typing import Any
from urllib.parse import quote

import httpx
import hypothesis
import psycopg
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipeline.client import Client
from pipeline.demo import truth
from pipeline.errors import NotThereYet
from pipeline.operations import web_keys
from pipeline.settings import Settings
from pipeline.web.app import create_app
from tests.support.project import REPOSITORY, Project
from tests.support.web import expected, served, settings_of, whole

pytestmark = pytest.mark.stack

GUIDE = REPOSITORY / "docs/guides/query-api.md"
LINES = """
from pipeline import Document, elasticsearch, projection

class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
    order_id: int
    line_no: int
    quantity: int

lines = projection(Line, to=elasticsearch("lines"))
"""


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_web")
    # a killed worker's partitions are given to the next one soon
    project.settings |= {"CDC_WORKER__SESSION_TIMEOUT": "8", "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "5"}
    text = (REPOSITORY / "projections/orders.py").read_text().replace("elasticsearch,", "postgres,", 1)
    in_postgres = 'postgres("read.placed", indexes=["status", "lines.product.sku"])'
    own = {"placed": text.replace('elasticsearch("orders")', in_postgres), "lines": LINES}
    project.create(orders=150, projections=("orders", "sales"), own=own)
    project.start_run()
    lsn = f"{truth.position(project.dsn):X}"
    for name in (f"{project.name}-orders", f"{project.name}-lines", f"{project.name}-sales", "placed"):
        done = project.cdc("wait", name, "--lsn", f"0/{lsn}", "--timeout", "90", check=False)
        assert done.returncode == 0, f"{done.stderr}\n{project.log()}"
    yield project


@pytest.fixture
async def api(shop: Project) -> AsyncIterator[httpx.AsyncClient]:
    async with served(settings_of(shop, wait_limit=90)) as client:
        yield client


@pytest.fixture(params=["orders", "placed"])
def orders(request: pytest.FixtureRequest, shop: Project) -> str:
    """The path of the same documents in Elasticsearch, and in Postgres."""
    return "/v1/placed" if request.param == "placed" else f"/v1/{shop.name}-orders"


# ---- by key -------------------------------------------------------------------------------------------------


async def test_a_document_is_what_the_source_says_and_304_while_it_stays_so(
    shop: Project, api: httpx.AsyncClient, orders: str
) -> None:
    answer = await api.get(f"{orders}/7")
    assert whole(answer) == expected(shop)["7"]
    again = await api.get(f"{orders}/7", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    lsn = shop.sql(f"UPDATE shop.orders SET status = 'of {orders}' WHERE id = 7")
    changed = await api.get(f"{orders}/7?after=lsn:{lsn}&wait=60", headers={"if-none-match": answer.headers["etag"]})
    assert whole(changed)["status"] == f"of {orders}"


async def test_keys_of_several_parts_and_groups_are_parts_of_the_path(shop: Project, api: httpx.AsyncClient) -> None:
    assert whole(await api.get(f"/v1/{shop.name}-lines/7/1"))["order_id"] == 7
    for document in whole(await api.get(f"/v1/{shop.name}-sales?limit=3"))["items"]:
        assert (
            whole(await api.get(f"/v1/{shop.name}-sales/{document['day']}/{quote(document['status'], safe='')}"))
            == document
        )


async def test_several_documents_come_in_the_order_asked_for(
    shop: Project, api: httpx.AsyncClient, orders: str
) -> None:
    found = whole(await api.post(f"{orders}/batch?fields=id,lines.product.sku", json={"keys": [9, 99999, 3]}))["items"]
    assert [(item["key"], item["document"] and item["document"]["id"]) for item in found] == [
        (9, 9),
        (99999, None),
        (3, 3),
    ]
    assert set(found[0]["document"]) == {"id", "lines"} and set(found[0]["document"]["lines"][0]) == {"product"}


# ---- lists --------------------------------------------------------------------------------------------------


async def test_filters_find_what_they_say(shop: Project, api: httpx.AsyncClient, orders: str) -> None:
    documents = expected(shop)
    some, now = documents["5"], {"after": f"lsn:{truth.position(shop.dsn)}", "wait": 60}
    sku, moment = some["lines"][0]["product"]["sku"], some["placed_at"]
    cases: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
        ({"id": 5}, lambda d: d["id"] == 5),
        ({"id.in": "5,6,7"}, lambda d: d["id"] in (5, 6, 7)),
        ({"status": some["status"], "id.gt": 5}, lambda d: d["status"] == some["status"] and d["id"] > 5),
        ({"total.gte": some["total"]}, lambda d: float(d["total"]) >= float(some["total"])),
        ({"placed_at.lt": moment}, lambda d: d["placed_at"] < moment),
        ({"placed_at": moment}, lambda d: d["placed_at"] == moment),
        ({"customer.id": some["customer"]["id"]}, lambda d: d["customer"]["id"] == some["customer"]["id"]),
        ({"lines.product.sku": sku}, lambda d: any(line["product"]["sku"] == sku for line in d["lines"])),
        ({"lines.quantity.gte": 3}, lambda d: any(line["quantity"] >= 3 for line in d["lines"])),
        ({"customer.id.null": "false"}, lambda d: d["customer"] is not None),
        ({"lines.line_no.null": "true"}, lambda d: not d["lines"]),
        ({"lines.product.title.null": "false"}, lambda d: any(line["product"]["title"] for line in d["lines"])),
        ({"q": some["customer"]["name"]}, lambda d: some["customer"]["name"] in (d["customer"]["name"],)),
    ]
    for parameters, holds in cases:
        wanted = sorted(document["id"] for document in documents.values() if holds(document))
        found = whole(await api.get(orders, params={**parameters, **now, "limit": 1000}))
        assert (parameters, sorted(d["id"] for d in found["items"])) == (parameters, wanted)
        assert whole(await api.get(f"{orders}/count", params={**parameters, **now})) == {"count": len(wanted)}


async def test_pages_have_every_document_once_in_order_while_others_write(
    shop: Project, api: httpx.AsyncClient, orders: str
) -> None:
    for sort in ("", "status,-placed_at", "-total", "customer.id"):
        seen: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            parameters = {"limit": 40, "sort": sort, **({"cursor": cursor} if cursor else {})}
            page = whole(await api.get(orders, params=parameters))
            seen += page["items"]
            cursor = page["next"]
            shop.sql("UPDATE shop.order_lines SET quantity = quantity WHERE order_id = 1")
        assert sorted(d["id"] for d in seen) == list(range(1, 151))
        if sort == "-total":
            totals = [float(d["total"]) for d in seen]
            assert totals == sorted(totals, reverse=True)
        if sort == "status,-placed_at":
            assert [d["status"] for d in seen] == sorted(d["status"] for d in seen)


async def test_counts_by_a_field_are_those_of_the_source(shop: Project, api: httpx.AsyncClient, orders: str) -> None:
    with psycopg.connect(shop.dsn) as db:
        wanted = dict(db.execute("SELECT status, count(*) FROM shop.orders GROUP BY 1").fetchall())
        sums = dict(db.execute("SELECT status, sum(charged) FROM shop.orders GROUP BY 1").fetchall())
    now = {"after": f"lsn:{truth.position(shop.dsn)}", "wait": 60}
    found = whole(await api.get(f"{orders}/count", params={"by": "status", "sum": "charged", "max": "id", **now}))
    assert found["count"] == 150 and {one["value"]: one["count"] for one in found["by"]} == wanted
    assert {one["value"]: Decimal(one["sum"]["charged"]) for one in found["by"]} == sums
    assert Decimal(found["sum"]["charged"]) == sum(sums.values()) and found["max"] == {"id": 150}
    days = whole(await api.get(f"/v1/{shop.name}-sales/count", params={"by": "day"}))["by"]
    assert all(len(one["value"]) == 10 for one in days)


# ---- what is refused ----------------------------------------------------------------------------------------

REFUSED = [
    ("?statsu=paid", 400, "did you mean 'status'"),
    ("?status.gtee=paid", 400, "did you mean"),
    ("?id=abc", 400, "is no int"),
    ("?id=99999999999999999999", 400, "is no int"),
    ("?total.gte=1e5", 400, "is no decimal"),
    ("?placed_at.lt=yesterday", 400, "is no datetime"),
    ("?customer.name=Ada", 400, "full text"),
    ("?status=%00", 400, "is no text"),
    ("?sort=lines.quantity", 400, "several"),
    ("?sort=nothing", 400, "no field"),
    ("?fields=id,_epoch", 400, "no field"),
    ("?limit=0", 400, "1 to 1000"),
    ("?limit=99999", 400, "1 to 1000"),
    ("?cursor=bm9uZQ", 400, "no cursor"),
    ("?q=" + "a" * 600, 400, "500 characters"),
    ("?id.in=" + ",".join(map(str, range(200))), 400, "more than 100"),
    ("?after=soon", 400, "no token"),
    ("/1?after=", 400, "no token"),
    ("?after=lsn:0/1&wait=-1", 400, "number of seconds"),
    ("?after=txid:9223372036854775807", 409, ""),
    ("?status=a&status.eq=b&status=c&limit=1&limit=2", 400, "given twice"),
    ("/x", 400, "whole number"),
    ("/1/2", 400, "The key of"),
    ("/1?field=id", 400, "did you mean 'fields'"),
    ("/99999", 404, "no document"),
    ("/count?by=total", 400, "too many values"),
    ("/count?by=customer.name", 400, "full text"),
    ("/count?sum=status", 400, "it is text"),
    ("/count?max=lines.quantity", 400, "several"),
    ("/count?avg=placed_at", 400, "it is datetime"),
    ("/count?sum=nothing", 400, "no field"),
    ("/count?sum=total&sum=total", 400, "given twice"),
]


async def test_a_wrong_question_is_told_what_is_wrong_with_it(api: httpx.AsyncClient, orders: str) -> None:
    for asked, status, said in REFUSED:
        answer = await api.get(orders + asked)
        got = answer.status_code, answer.headers["content-type"], answer.json()["status"]
        assert (asked, *got) == (asked, status, "application/problem+json", status), answer.text
        assert said in answer.json()["detail"]


async def test_what_looks_like_code_is_a_value_like_any_other(
    shop: Project, api: httpx.AsyncClient, orders: str
) -> None:
    nasty = [
        "' OR 1=1 --",
        "%s %(p0)s",
        '{"match_all":{}}',
        "*",
        "$.x",
        "\\",
        'a"b',
        "paid; DROP TABLE shop.orders",
        "\u2028",
    ]
    for text in nasty:
        for parameters in ({"status": text}, {"lines.product.sku": text}, {"status.gte": text, "status.lt": text}):
            assert whole(await api.get(orders, params=parameters))["items"] == []
        assert "items" in whole(await api.get(orders, params={"q": text}))
        for place in ("sort", "fields", "cursor", text):
            assert (await api.get(orders, params={place: text})).status_code == 400
    assert whole(await api.get(f"{orders}/count"))["count"] == 150


async def test_a_cursor_that_somebody_changed_is_refused(api: httpx.AsyncClient, orders: str) -> None:
    following = whole(await api.get(orders, params={"limit": 1, "sort": "id"}))["next"]
    digest = json.loads(base64.urlsafe_b64decode(following + "=="))[0]
    for place in ([], ["x"], ["x", "y"], [None, None], [1, 2, 3], ["9" * 400, "1"], [{}, 1], [[1], 1], [True, 1e300]):
        text = base64.urlsafe_b64encode(json.dumps([digest, *place]).encode()).decode().rstrip("=")
        answer = await api.get(orders, params={"limit": 1, "sort": "id", "cursor": text})
        assert answer.status_code in (200, 400), (place, answer.text)
    other = await api.get(orders, params={"sort": "-id", "cursor": following})
    assert (other.status_code, other.json()["type"]) == (400, "urn:cdc:problem:bad-cursor")


async def test_bodies_are_checked_and_bounded(shop: Project, orders: str) -> None:
    async with served(settings_of(shop, body_bytes=1000)) as api:
        for body in (
            b"",
            b"[1]",
            b"{}",
            b'{"keys":[]}',
            b'{"keys":[1.5]}',
            b'{"keys":[null]}',
            b'{"keys":["\\ud800"]}',
            b'{"keys":1}',
        ):
            answer = await api.post(f"{orders}/batch", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, (body, answer.text)
        assert (await api.post(f"{orders}/batch", content=b"x" * 1001)).status_code == 413
        pieces = (b"x" * 400 for _ in range(4))
        assert (await api.post(f"{orders}/batch", content=_stream(pieces))).status_code == 413
        assert (
            await api.post(f"{orders}/batch", content=b"keys=1", headers={"content-type": "text/plain"})
        ).status_code == 415
        assert (await api.delete(f"{orders}/1")).status_code == 405
        assert (await api.get("/v1/odrers")).status_code == (await api.get("/nothing")).status_code == 404


async def _stream(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


# ---- read your writes ---------------------------------------------------------------------------------------


async def test_hundreds_of_writes_are_read_by_whoever_has_their_token_also_when_a_worker_is_killed(
    shop: Project, api: httpx.AsyncClient
) -> None:
    paths = [f"/v1/{shop.name}-orders", "/v1/placed"]

    async def writer(number: int) -> list[str]:
        stale, random = [], Random(number)
        db = await psycopg.AsyncConnection.connect(shop.dsn)
        async with db:
            for n in range(30):
                if (number, n) == (0, 10):
                    os.kill(shop.said()["pid"], signal.SIGKILL)
                order, status = number * 12 + random.randrange(1, 13), f"w{number} {n}"
                await db.execute("UPDATE shop.orders SET status = %s WHERE id = %s", (status, order))
                token = f"txid:{(await (await db.execute('SELECT pg_current_xact_id()::text')).fetchone() or [''])[0]}"
                await db.commit()
                if n % 2:
                    cursor = await db.execute("SELECT pg_current_wal_insert_lsn()::text")
                    token = f"lsn:{(await cursor.fetchone() or [''])[0]}"
                    await db.commit()
                path = paths[n // 2 % 2]
                if n % 5:
                    found = whole(await api.get(f"{path}/{order}", headers={"x-after": token}, params={"wait": 90}))
                else:
                    parameters = {"id": order, "after": token, "wait": 90}
                    (found,) = whole(await api.get(path, params=parameters))["items"]
                if found["status"] != status:
                    stale.append(f"{path}/{order} {token}: {found['status']}, not {status}")
        return stale

    async def load() -> None:
        async with await psycopg.AsyncConnection.connect(shop.dsn, autocommit=True) as db:
            while True:
                await db.execute("UPDATE shop.customers SET name = name || '.' WHERE id = 1 + (random() * 29)::int")
                await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        loading = group.create_task(load())
        tasks = [group.create_task(writer(number)) for number in range(8)]
        await asyncio.wait(tasks)
        loading.cancel()
    assert [line for task in tasks for line in task.result()] == []


async def test_a_wait_that_is_over_says_how_far_it_came(shop: Project, api: httpx.AsyncClient, orders: str) -> None:
    answer = await api.get(f"{orders}/1", params={"after": "lsn:FFFFFFF/0", "wait": 0.1})
    assert answer.status_code == 504 and answer.json()["watermark"].startswith("lsn:0/")
    token = answer.json()["watermark"]
    assert whole(await api.get(f"{orders}/1", params={"after": token}))["id"] == 1
    if "@" in token:
        other = await api.get(f"{orders}/1", params={"after": token.split("@")[0] + "@42/1"})
        assert (other.status_code, other.json()["type"]) == (409, "urn:cdc:problem:another-log")


async def test_a_transaction_that_is_open_is_nothing_to_wait_for(
    shop: Project, api: httpx.AsyncClient, orders: str
) -> None:
    with shop.connection() as db:
        (txid,) = db.execute("SELECT pg_current_xact_id()::text").fetchone() or ("",)
        answer = await api.get(f"{orders}/1", params={"after": f"txid:{txid}"})
        db.rollback()
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:cdc:problem:not-committed")


# ---- who may ------------------------------------------------------------------------------------------------


async def test_nothing_is_read_without_a_key_of_the_scope(
    shop: Project, orders: str, caplog: pytest.LogCaptureFixture
) -> None:
    name, settings = orders.removeprefix("/v1/"), settings_of(shop, rate=20)
    known = ["placed", f"{shop.name}-orders"]
    other = next(one for one in known if one != name)
    key = web_keys.add(settings, f"reader of {name}", [name], known)
    file = web_keys.file(settings)
    assert file.stat().st_mode & 0o777 == 0o600 and key not in file.read_text()
    caplog.set_level("INFO", logger="cdc.web")
    async with served(settings, public=False) as api:
        for path in (orders, f"{orders}/1", f"{orders}/count", "/openapi.json", "/v1/nothing"):
            for headers in ({}, {"authorization": "Bearer cdc_wrong"}, {"authorization": f"Basic {key}"}):
                answer = await api.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        api.headers["authorization"] = f"Bearer {key}"
        assert whole(await api.get(f"{orders}/1"))["id"] == 1
        refused = await api.get(f"/v1/{other}/1")
        assert (refused.status_code, refused.json()["type"]) == (403, "urn:cdc:problem:not-in-scope")
        assert set((await api.get("/openapi.json")).json()["components"]["schemas"]) == {"Problem", name}
        answers = await asyncio.gather(*(api.get("/openapi.json") for _ in range(60)))
        limited = [answer for answer in answers if answer.status_code == 429]
        assert limited and int(limited[0].headers["retry-after"]) >= 1
        web_keys.remove(settings, f"reader of {name}")
        assert (await api.get(f"{orders}/1")).status_code == 401
    assert f"key='reader of {name}'" in caplog.text and key not in caplog.text and "cdc_wrong" not in caplog.text


# ---- the description ----------------------------------------------------------------------------------------


async def test_derived_fields_are_described_and_the_sinks_own_are_not(shop: Project, api: httpx.AsyncClient) -> None:
    described = (await api.get("/openapi.json")).json()
    document = described["components"]["schemas"][f"{shop.name}-orders"]
    assert list(document["properties"]) == ["id", "status", "placed_at", "charged", "customer", "lines", "total"]
    assert f"/v1/{shop.name}-lines/{{order_id}}/{{line_no}}" in described["paths"]


@contextmanager
def listening(settings: Settings, *, public: bool) -> Iterator[str]:
    """The app behind a real server; its address."""
    config = uvicorn.Config(create_app(settings, public=public), port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    with config.bind_socket() as bound:
        thread = Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


def test_no_request_that_the_description_allows_or_forbids_breaks_it(shop: Project) -> None:
    with listening(settings_of(shop), public=True) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json", wait_for_schema=20)
        tried = [_tried(found.ok()) for found in schema.get_all_operations()]
    assert len(tried) == 16 and min(tried) > 5


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    response_headers_conformance,
]  # fmt: skip


def _tried(operation: Any) -> int:
    """Ask an operation in many ways, right and wrong; how often."""
    calls = 0

    @hypothesis.settings(
        max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @hypothesis.given(operation.as_strategy(), operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(right: Any, wrong: Any) -> None:
        nonlocal calls
        for case in (right, wrong):
            calls += 1
            answer = case.call()
            # a header's name that is no token, an address of 64 kB: the server itself refuses them, the app is not asked
            unread = answer.content == b"Invalid HTTP request received."
            case.validate_response(answer, checks=[not_a_server_error] if unread else CHECKS)

    ask()
    return calls


# ---- the client ---------------------------------------------------------------------------------------------


async def test_what_the_guide_shows_is_what_happens(shop: Project) -> None:
    guide: dict[str, Any] = {"__name__": "guide_query_api"}
    for snippet in re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.M | re.S):
        exec(compile(snippet, str(GUIDE), "exec", dont_inherit=True), guide)
    settings = settings_of(shop)
    key = web_keys.add(settings, "guide", [f"{shop.name}-orders"], [f"{shop.name}-orders"])
    with listening(settings, public=False) as url:
        for order in (120, 121, 122):
            token = guide["pay"](shop.dsn, order)
            assert (await asyncio.to_thread(guide["shown"], url, key, order, token)).status == "paid"
        with Client(url, key=key) as client:
            document = guide["OrderDocument"]
            assert [found and found.id for found in client.batch(document, [122, 99999])] == [122, None]
            paid = client.counts(document, "status", after=token)["paid"]
            assert (
                paid
                == client.count(document, {"status": "paid"})
                == len(client.search(document, {"status": "paid"}, limit=1000).items)
            )
            of_paid = next(one for one in client.totals(document, "status", sum=["charged"]) if one.value == "paid")
            (alone,) = client.totals(document, where={"status": "paid"}, sum=["charged"])
            assert (of_paid.count, of_paid.sum) == (alone.count, alone.sum) == (paid, alone.sum)
            with pytest.raises(NotThereYet, match="504"):
                client.get(document, 120, after="lsn:FFFFFF/0", wait=0.1)
        with psycopg.connect(shop.dsn) as db:
            wanted = db.execute(
                "SELECT array_agg(id) FROM shop.orders WHERE status = 'paid' AND charged >= 100"
            ).fetchone()
        assert wanted is not None and sorted(await guide["large"](url, key)) == sorted(wanted[0] or [])
