"""Versions beside the one that readers see: read by name, and in the canary compared with it; on the real stack."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator

import httpx
import psycopg
import pytest

from pipeline.demo import truth
from tests.support.project import REPOSITORY, Project
from tests.support.web import expected, served, settings_of, whole

pytestmark = pytest.mark.stack
VERSION = "X-Read-Model-Version"


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    """Both read models have a build that waits for its cut-over."""
    project = new_project("it_canary")
    text = (REPOSITORY / "projections/orders.py").read_text().replace("elasticsearch,", "postgres,", 1)
    own = {"placed": text.replace('elasticsearch("orders")', 'postgres("read.placed")')}
    project.create(orders=60, projections=("orders",), own=own)
    project.start_run()
    for name in (f"{project.name}-orders", "placed"):
        lsn = truth.position(project.dsn)
        project.cdc("wait", name, "--lsn", f"0/{lsn:X}", "--timeout", "90")
        project.cdc("rebuild", name, "--no-cutover")
    yield project


@pytest.fixture(params=["orders", "placed"])
def name(request: pytest.FixtureRequest, shop: Project) -> str:
    """The same documents in Elasticsearch, and in Postgres."""
    return "placed" if request.param == "placed" else f"{shop.name}-orders"


def called(name: str, build: str) -> str:
    """What the sink calls it."""
    return f"placed_{build.replace('.', '_')}" if name == "placed" else f"{name}-{build}"


async def test_a_request_reads_the_version_that_it_names(shop: Project, name: str) -> None:
    lsn = shop.sql(f"UPDATE shop.orders SET status = 'of {name}' WHERE id = 5")
    live, following = called(name, "v1"), called(name, "v1.2")
    async with served(settings_of(shop, wait_limit=60)) as api:
        for asked, read in (("live", live), ("next", following), (following, following)):
            of = {VERSION: asked, "X-After": f"lsn:{lsn}"}
            one = await api.get(f"/v1/{name}/5?wait=60", headers=of)
            assert whole(one) == expected(shop)["5"] and one.headers[VERSION] == read
            listed = await api.get(f"/v1/{name}?limit=100&wait=60", headers=of)
            assert {str(d["id"]): d for d in whole(listed)["items"]} == expected(shop) and listed.headers[
                VERSION
            ] == read
            assert whole(await api.get(f"/v1/{name}/count?wait=60", headers=of)) == {"count": 60}
        wrong = await api.get(f"/v1/{name}/5", headers={VERSION: "previous"})
    assert (wrong.status_code, wrong.json()["type"]) == (409, "urn:cdc:problem:no-such-version")
    assert f"next ({following})" in wrong.json()["detail"]


async def test_a_share_of_the_keys_is_read_from_the_next_version(shop: Project, name: str) -> None:
    async def read(api: httpx.AsyncClient) -> set[str]:
        """Keys of the documents that the next version answered."""
        answers = {key: await api.get(f"/v1/{name}/{key}") for key in expected(shop)}
        assert {key: whole(answer) for key, answer in answers.items()} == expected(shop)
        return {key for key, answer in answers.items() if answer.headers[VERSION] == called(name, "v1.2")}

    async with served(settings_of(shop)) as api:
        assert await read(api) == set()
    async with served(settings_of(shop, canary=1.0)) as api:
        assert await read(api) == expected(shop).keys()
        several = await api.post(f"/v1/{name}/batch", json={"keys": [5, 6, 99999]})
        assert [item["document"] for item in whole(several)["items"]][2] is None
        assert several.headers[VERSION] == called(name, "v1.2")
    async with served(settings_of(shop, canary=0.4)) as api:
        share = await read(api)
        assert 0 < len(share) < 60 and await read(api) == share
        reads = f'projection="{name}",version="{called(name, "v1.2")}"'
        told = (await api.get("/metrics")).text
        assert f'cdc_canary_reads_total{{outcome="same",{reads}}} {2 * len(share)}.0' in told
        shown = (await api.get(f"/projections/{name}.json")).json()["canary"]
    assert shown == {
        "version": called(name, "v1.2"), "share": 0.4, "reads": {"same": 2 * len(share)}, "stopped": None
    }  # fmt: skip


async def test_a_next_version_that_is_behind_what_was_written_is_not_read(shop: Project, name: str) -> None:
    live, following = called(name, "v1"), called(name, "v1.2")
    pid = json.loads((shop.folder / ".cdc/workers" / f"{name}-v1.2.json").read_text())["pid"]
    async with served(settings_of(shop, canary=1.0, wait_limit=60)) as api:
        os.kill(pid, signal.SIGSTOP)
        try:
            lsn = shop.sql(f"UPDATE shop.orders SET status = 'after {name}' WHERE id = 6")
            after = f"/v1/{name}/9?wait=60&after=lsn:{lsn}"  # it is the same in both, and one of them does not know
            answer = await api.get(after)
            assert whole(answer) == expected(shop)["9"] and answer.headers[VERSION] == live
        finally:
            os.kill(pid, signal.SIGCONT)
        async with asyncio.timeout(30):
            while (await api.get(after)).headers[VERSION] != following:
                await asyncio.sleep(0.05)


async def test_a_next_version_that_differs_answers_nothing_and_is_left(
    shop: Project, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    following = called(name, "v1.2")
    if name == "placed":
        with psycopg.connect(shop.dsn) as db:
            changed = (
                """UPDATE read.placed_v1_2 SET document = jsonb_set(document, '{status}', '"wrong"') WHERE _id = '7'"""
            )
            assert db.execute(changed).rowcount == 1
    else:
        update = f"{shop.endpoints.elasticsearch}/{following}/_update/7"
        httpx.post(update, json={"doc": {"status": "wrong"}}).raise_for_status()
    async with served(settings_of(shop, canary=1.0)) as api:
        assert (await api.get(f"/v1/{name}/8")).headers[VERSION] == following
        answer = await api.get(f"/v1/{name}/7")
        assert whole(answer) == expected(shop)["7"] and answer.headers[VERSION] == called(name, "v1")
        async with asyncio.timeout(30):
            while (await api.get(f"/v1/{name}/8")).headers[VERSION] == following:
                await asyncio.sleep(0.05)
        told = (await api.get("/metrics")).text
        assert f'cdc_canary_stopped{{projection="{name}",version="{following}"}} 1.0' in told
        assert f"{following} is read in the canary no more: it differs: 7" in caplog.text
        assert "It is read no more: it differs: 7" in (await api.get(f"/projections/{name}")).text


async def test_the_version_kept_for_a_rollback_is_read_by_its_name(shop: Project, name: str) -> None:
    shop.cdc("cutover", name, "--yes")
    async with served(settings_of(shop, canary=1.0)) as api:
        for asked, build in ((None, "v1.2"), ("previous", "v1")):
            answer = await api.get(f"/v1/{name}/9", headers={VERSION: asked} if asked else {})
            assert whole(answer) == expected(shop)["9"] and answer.headers[VERSION] == called(name, build)
