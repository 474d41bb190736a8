"""Who may read: keys, their scopes and fields, and TLS."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from pipeline.authoring.discovery import discover
from pipeline.authoring.leaves import leaves
from pipeline.authoring.shape import shape_of
from pipeline.cli.root import run
from pipeline.errors import OperationError
from pipeline.operations import web_keys
from pipeline.settings import Settings, WebSettings
from pipeline.web.access import LOOPBACK, Limits
from pipeline.web.app import create_app
from tests.support.project import REPOSITORY, until
from tests.unit.dashboards import get, made_app

TLS = REPOSITORY / "tests/fixtures/tls"


def settings(tmp_path: Path) -> Settings:
    return Settings(
        state_dir=tmp_path,
        projections=REPOSITORY / "projections",
        connectors=REPOSITORY / "connectors/debezium",
        catalog=REPOSITORY / "projections/catalog.lock.json",
    )


def test_the_file_has_a_keys_hash_and_never_the_key(tmp_path: Path) -> None:
    own = settings(tmp_path)
    text = web_keys.add(own, "shop", ["orders"], ["orders"])
    (key,) = web_keys.read(own).keys
    assert text not in web_keys.file(own).read_text() and web_keys.file(own).stat().st_mode & 0o777 == 0o600
    assert web_keys.read(own).find(text) == key and web_keys.read(own).find(text + "x") is None
    web_keys.remove(own, "shop")
    assert web_keys.read(own).find(text) is None


def test_a_scope_is_a_read_model_some_fields_of_it_or_one_of_our_own(tmp_path: Path) -> None:
    own = settings(tmp_path)
    for scope in ("order", "orders:", ":id", "*:id", "dashboard:x", ""):
        with pytest.raises(OperationError, match="There is no scope"):
            web_keys.add(own, "shop", [scope], ["orders"])
    with pytest.raises(OperationError, match="Say what the key may read"):
        web_keys.add(own, "shop", [], ["orders"])
    web_keys.add(own, "shop", ["orders:id", "orders:total", "sales"], ["orders", "sales"])
    with pytest.raises(OperationError, match="already"):
        web_keys.add(own, "shop", ["*"], ["orders"])
    (key,) = web_keys.read(own).keys
    assert [key.may(one) for one in ("orders", "sales", "tags", "dashboard", "operate")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert (key.fields("orders"), key.fields("sales")) == ({"id", "total"}, None)


def test_everything_is_every_read_model_and_not_the_dashboard(tmp_path: Path) -> None:
    own = settings(tmp_path)
    web_keys.add(own, "all", ["*"], [])
    (key,) = web_keys.read(own).keys
    assert key.may("orders") and not key.may("dashboard") and not key.may("operate")


def test_a_field_that_is_not_there_is_no_scope() -> None:
    projections = discover(REPOSITORY / "projections")
    web_keys.check_fields(projections, ["orders:id,lines.product,customer.name", "*", "dashboard"])
    with pytest.raises(OperationError, match="did you mean 'status'"):
        web_keys.check_fields(projections, ["orders:id,statsu"])


def test_a_relation_in_a_scope_is_all_below_it() -> None:
    (orders,) = (one for one in discover(REPOSITORY / "projections") if one.name == "orders")
    known = leaves(shape_of(orders.shape))
    assert list(web_keys.seen(known, ["total", "lines.product", "customer"])) == [
        "customer.id", "customer.name", "lines.product.sku", "lines.product.title", "total",
    ]  # fmt: skip
    assert list(web_keys.seen(known, ["lin", "gone"])) == []


async def test_a_key_of_some_fields_knows_of_no_others(tmp_path: Path) -> None:
    own = settings(tmp_path)
    text = web_keys.add(own, "some", ["customers:id,email"], ["customers"])
    app = create_app(own.model_copy(update={"elasticsearch": made_app(tmp_path).state.settings.elasticsearch}))
    headers = {"authorization": f"Bearer {text}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers) as client:
        described = (await client.get("/openapi.json")).json()
        assert list(described["components"]["schemas"]["customers"]["properties"]) == ["id", "email"]
        for asked in ("joined_at.gt=2024-01-01", "sort=joined_at", "fields=name", "q=ada"):
            answer = await client.get(f"/v1/customers?{asked}")
            assert (asked, answer.status_code) == (asked, 400)
        assert (await client.get("/v1/customers/count?by=name")).status_code == 400


async def test_a_transaction_is_asked_for_only_where_there_is_a_source(tmp_path: Path) -> None:
    answer = await get(made_app(tmp_path), "/v1/orders/1?after=txid:7")
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:cdc:problem:no-source")


async def test_an_away_sink_is_503_and_says_nothing_of_where_it_is(tmp_path: Path) -> None:
    answer = await get(made_app(tmp_path), "/v1/orders/1")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "127.0.0.1" not in answer.text


def test_it_speaks_tls_and_asks_clients_for_theirs(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "pipeline.cli", "web", "--open", "--port", "0", "--tls-cert", str(TLS / "server.pem"),
        "--tls-clients", str(TLS / "authority.pem"),
    ]  # fmt: skip
    environment = {**os.environ, "CDC_STATE_DIR": str(tmp_path), "CDC_ELASTICSEARCH__URL": "http://127.0.0.1:9"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        port = said.partition("https://127.0.0.1:")[2].partition("/")[0]
        assert port.isdecimal(), said
        known, unknown = (ssl.create_default_context(cafile=TLS / "authority.pem") for _ in range(2))
        known.load_cert_chain(TLS / "client.pem")

        def alive() -> bool:
            try:
                return httpx.get(f"https://127.0.0.1:{port}/livez", verify=known).status_code == 200
            except httpx.TransportError:
                return False

        until(alive, 60, "cdc web answers")
        with pytest.raises(httpx.TransportError):
            httpx.get(f"https://127.0.0.1:{port}/livez", verify=unknown)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/livez")
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["web"]) == 1
    assert "pip install 'cdc-pipeline[web]'" in capsys.readouterr().err


def test_keys_are_made_listed_and_removed_by_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("CDC_STATE_DIR", str(tmp_path))
    assert run(["web", "key", "add", "shop", "--scope", "orders:id,total"]) == 0
    text = capsys.readouterr().out.strip()
    found = web_keys.read(Settings(state_dir=tmp_path)).find(text)
    assert found is not None and found.name == "shop"
    assert run(["web", "key", "add", "other", "--scope", "orders:totl"]) == 1
    assert run(["web", "key", "list"]) == 0
    listed = capsys.readouterr().out
    assert "orders:id,total" in listed and text not in listed and found.sha256 not in listed
    assert (run(["web", "key", "remove", "shop"]), run(["web", "key", "remove", "shop"])) == (0, 1)


async def test_a_request_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    web = WebSettings(request_timeout=0.05, wait_limit=0, wait=0)
    app = Limits(endless, settings(tmp_path).model_copy(update={"web": web}))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = await client.get("/v1/orders")
    assert (answer.status_code, answer.json()["type"], ended.is_set()) == (503, "urn:cdc:problem:too-slow", True)


async def test_what_needs_no_key_is_not_read_by_the_page_of_another_site(tmp_path: Path) -> None:
    app = create_app(settings(tmp_path), public=True, hosts=LOOPBACK | {"Orders.example"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:

        async def asked(host: str, path: str = "/openapi.json") -> tuple[int, str]:
            answer = await client.get(path, headers={"host": host})
            return answer.status_code, answer.json().get("type", "") if answer.status_code >= 400 else ""

        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "Orders.Example:443"):
            assert await asked(host) == (200, "")
        for host in ("evil.example", "127.0.0.1.evil.example:8000", "", "[::1].evil.example"):
            assert await asked(host) == (421, "urn:cdc:problem:unknown-host")
        assert (await asked("10.0.0.7:8000", "/livez"))[0] == 200  # a probe knows a pod by its address


async def test_probes_that_are_well_leave_no_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="cdc.web")
    app = create_app(settings(tmp_path), public=True)
    caplog.clear()
    for path in ("/livez", "/metrics", "/openapi.json"):
        await get(app, path)
    assert [record.fields["path"] for record in caplog.records] == ["/openapi.json"]
