"""Who sees the dashboard and who may use its buttons: keys, sessions of browsers, and forms that other sites can't send."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from pipeline.operations import web_keys
from pipeline.web.dashboard.sessions import COOKIE
from tests.unit.dashboards import looked, made_app, status_of

OURS = {"origin": "http://test"}
FORM = {"projection": "orders", "key": "[10]"}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    made = made_app(tmp_path, public=False)
    looked(made, status_of())
    return made


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


def key_of(app: FastAPI, name: str, *scopes: str) -> str:
    return web_keys.add(app.state.settings, name, scopes, ["orders"])


async def signed_in(browser: httpx.AsyncClient, key: str) -> str:
    """What the session's forms have to bring back."""
    answer = await browser.post("/login", data={"key": key}, headers=OURS)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    found = re.search(r'name="csrf" value="([^"]+)"', (await browser.get("/")).text)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", ["/", "/projections/orders/document?key=1", "/plan"])
async def test_without_a_key_a_page_leads_to_signing_in_and_says_nothing(browser: httpx.AsyncClient, path: str) -> None:
    answer = await browser.get(path)

    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "orders" not in answer.text


@pytest.mark.parametrize("path", ["/status.json", "/projections/orders.json", "/projections/nix.json", "/refused.json"])
async def test_without_a_key_a_twin_is_refused_whether_it_exists_or_not(browser: httpx.AsyncClient, path: str) -> None:
    assert (await browser.get(path)).status_code == 401


async def test_health_and_metrics_need_no_key(browser: httpx.AsyncClient) -> None:
    assert [(await browser.get(path)).status_code for path in ("/livez", "/readyz", "/metrics")] == [200] * 3


async def test_a_key_in_a_header_opens_the_twins(app: FastAPI, browser: httpx.AsyncClient) -> None:
    may = {"authorization": f"Bearer {key_of(app, 'grafana', 'dashboard')}"}
    may_not = {"authorization": f"Bearer {key_of(app, 'shop', '*')}"}

    assert (await browser.get("/status.json", headers=may)).status_code == 200
    assert (await browser.get("/status.json", headers=may_not)).status_code == 403


async def test_a_browser_signs_in_with_a_key_that_its_cookie_does_not_have(
    app: FastAPI, browser: httpx.AsyncClient
) -> None:
    key = key_of(app, "ann", "dashboard")
    answer = await browser.post("/login", data={"key": key}, headers=OURS)
    cookie = answer.headers["set-cookie"]

    assert key not in cookie
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    page = (await browser.get("/")).text
    assert "ann" in page
    assert key not in page


@pytest.mark.parametrize("scopes", [(), ("operate",), ("*",)])
async def test_another_key_does_not_sign_in(app: FastAPI, browser: httpx.AsyncClient, scopes: tuple[str, ...]) -> None:
    key = key_of(app, "other", *scopes) if scopes else "cdc_guessed"
    answer = await browser.post("/login", data={"key": key}, headers=OURS)

    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert key not in answer.text


async def test_a_session_ends_with_its_key_and_with_signing_out(app: FastAPI, browser: httpx.AsyncClient) -> None:
    csrf = await signed_in(browser, key_of(app, "ann", "dashboard"))
    cookie = f"{COOKIE}={browser.cookies[COOKIE]}"
    await browser.post("/logout", data={"csrf": csrf}, headers=OURS)
    browser.cookies.clear()
    assert (await browser.get("/", headers={"cookie": cookie})).status_code == 303

    await signed_in(browser, key_of(app, "ben", "dashboard"))
    web_keys.remove(app.state.settings, "ben")
    assert (await browser.get("/")).status_code == 303


async def test_a_retry_needs_the_scope_and_shows_no_button_without_it(app: FastAPI, browser: httpx.AsyncClient) -> None:
    csrf = await signed_in(browser, key_of(app, "ann", "dashboard"))

    assert (await browser.post("/refused", data={**FORM, "csrf": csrf}, headers=OURS)).status_code == 403


@pytest.mark.parametrize("forged", ["without what the page has", "from another site", "without a session"])
async def test_a_retry_that_another_site_sends_is_refused(
    app: FastAPI, browser: httpx.AsyncClient, forged: str
) -> None:
    csrf = await signed_in(browser, key_of(app, "ann", "dashboard", "operate"))
    form, headers = {**FORM, "csrf": csrf}, dict(OURS)
    if forged == "without what the page has":
        form["csrf"] = "guessed"
    elif forged == "from another site":
        headers["origin"] = "https://evil.example"
    else:
        browser.cookies.clear()

    assert (await browser.post("/refused", data=form, headers=headers)).status_code == 403


async def test_a_retry_says_on_the_page_what_it_did(app: FastAPI, browser: httpx.AsyncClient) -> None:
    csrf = await signed_in(browser, key_of(app, "ann", "dashboard", "operate"))
    form = {"projection": "orders", "id": "7", "csrf": csrf}

    answer = await browser.post("/refused", data=form, headers=OURS)

    assert answer.status_code == 200
    assert "orders has no dead letter 7; see" in answer.text


async def test_where_all_may_read_nobody_retries_without_a_key(tmp_path: Path) -> None:
    app = made_app(tmp_path)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as browser:
        assert (await browser.get("/refused")).status_code == 200
        assert (await browser.post("/refused", data=FORM, headers=OURS)).status_code == 403
