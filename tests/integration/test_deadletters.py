"""Dead letters on the real stack: their rows are read again, and no old message is ever applied."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from pipeline.demo import truth
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_letters")
    project.create(orders=60)
    project.start_worker()
    project.wait_for(truth.position(project.dsn))
    yield project


async def _send(bootstrap: str, topic: str, *messages: tuple[bytes | None, bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for key, value in messages:
            await producer.send_and_wait(topic, value, key=key)


def send(shop: Project, table: str, *messages: tuple[bytes | None, bytes]) -> list[int]:
    """Put messages into a table's topic; the ids of the letters that they become."""
    before = {letter["id"] for letter in letters(shop)}
    asyncio.run(_send(shop.endpoints.kafka, f"{shop.name}.{table}", *messages))
    until(lambda: len(letters(shop)) == len(before) + len(messages), 30, "they are dead letters")
    return [letter["id"] for letter in letters(shop) if letter["id"] not in before]


def letters(shop: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(shop.cdc("deadletters", "list", "-o", "json").stdout)
    return found


def retry(shop: Project, *arguments: str, check: bool = True) -> dict[str, Any]:
    done = shop.cdc("deadletters", "retry", f"{shop.name}-orders", *arguments, "-o", "json", check=check)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_retry_reads_the_row_again_and_never_applies_the_old_message(shop: Project) -> None:
    old = b'{"op": "u", "after": {"id": 7, "status": "ancient"}, "no": "envelope"}'
    (letter,) = send(shop, "shop.orders", (b'{"id":7}', old))
    shop.damage("orders", """UPDATE "shop.orders" SET status = 'the change was lost' WHERE id = 7""")
    assert retry(shop, str(letter)) == {"projection": f"{shop.name}-orders", "retried": [letter], "left": []}
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert letters(shop) == [] and shop.status()["attention"] == []


@pytest.mark.edge_case(43)
def test_a_letter_of_a_row_that_is_deleted_by_now_takes_the_row_out_of_the_mirror(shop: Project) -> None:
    shop.damage(
        "orders",
        """CREATE TEMP TABLE o AS SELECT * FROM "shop.orders" WHERE id = 1; UPDATE o SET id = 900001;
        INSERT INTO "shop.orders" SELECT * FROM o""",
    )
    (letter,) = send(shop, "shop.orders", (b'{"id":900001}', b'{"op": "d", "source": 1}'))
    assert retry(shop, "--all")["retried"] == [letter]
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()


def test_a_letter_without_a_key_is_kept_and_says_what_to_do(shop: Project) -> None:
    bad, good = send(shop, "shop.customers", (None, b"no JSON at all"), (b'{"id":3}', b"{}"))
    found = retry(shop, "--all", check=False)
    assert found["retried"] == [good] and [left["id"] for left in found["left"]] == [bad]
    assert "cdc backfill shop.customers" in found["left"][0]["reason"]
    assert [letter["id"] for letter in letters(shop)] == [bad]
    unknown = shop.cdc("deadletters", "retry", f"{shop.name}-orders", "4711", check=False)
    assert unknown.returncode == 1 and "no dead letter 4711" in unknown.stderr
    shop.cdc("deadletters", "discard", f"{shop.name}-orders", str(bad), "--yes")


@pytest.mark.edge_case(32)
def test_a_letter_stays_while_its_row_can_still_not_be_decoded(shop: Project) -> None:
    shop.sql("ALTER TABLE shop.products ALTER COLUMN title TYPE int USING length(title)")
    shop.sql("UPDATE shop.products SET title = 42 WHERE id = 2")
    until(lambda: letters(shop), 30, "the change is a dead letter")
    number = letters(shop)[0]["id"]
    found = retry(shop, str(number), check=False)
    assert found["retried"] == [] and "shop.products.title" in found["left"][0]["reason"]
    shop.sql("ALTER TABLE shop.products ALTER COLUMN title TYPE text USING 'Tea ' || title")
    shop.sql("UPDATE shop.products SET sku = sku WHERE id <> 2")
    assert retry(shop, "--all")["left"] == []
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    assert letters(shop) == []


@pytest.fixture
def dashboard(shop: Project) -> Iterator[httpx.Client]:
    """`cdc web` of this shop, signed in with a key that may operate."""
    key = shop.cdc("web", "key", "add", "ann", "--scope", "dashboard", "--scope", "operate").stdout.strip()
    said = shop.folder / "web.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "web", "--port", "0"],
            cwd=shop.folder, env=shop.environment, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        at = until(lambda: re.search(r"http://127.0.0.1:\d+", said.read_text()), 60, "cdc web says where it is")
        with httpx.Client(base_url=at[0], timeout=30, follow_redirects=True) as client:
            assert client.get("/").url.path == "/login"
            assert client.post("/login", data={"key": key}).url.path == "/"
            yield client
    finally:
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM), said.read_text()


def test_the_dashboard_shows_a_letter_and_its_button_settles_it(shop: Project, dashboard: httpx.Client) -> None:
    name = f"{shop.name}-orders"
    shop.damage("orders", """UPDATE "shop.orders" SET status = 'the change was lost' WHERE id = 9""")
    (letter,) = send(shop, "shop.orders", (b'{"id":9}', b"<script>no envelope</script>"))
    story = f"/projections/{name}/document.json?key=9"
    (told,) = dashboard.get(story).json()["story"]["sinks"]
    assert [(d["path"], d["source"]) for d in told["differences"]] == [("status", "the change was lost")]

    page = dashboard.get("/refused").text
    assert f"cdc deadletters retry {name} {letter}" in page and "<script>no" not in page
    form = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.split("</header>")[1]))
    assert form["id"] == str(letter)
    done = dashboard.post("/refused", data=form)

    assert f"Dead letter {letter} is settled." in done.text and letters(shop) == []
    until(lambda: dashboard.get(story).json()["story"]["sinks"][0]["equal"], 30, "the sink has the source's row again")
    seen = dashboard.get("/status.json").json()
    assert seen["status"]["projections"][0]["name"] == name and seen["problem"] is None
    assert dashboard.get(f"/readyz?projection={name}").json() == {"ready": True, "reasons": []}
    (connector,) = until(lambda: dashboard.get("/sources.json").json()["connectors"], 30, "the connectors are known")
    assert connector["state"] == "running" and connector["kept_bytes"] > 0
    assert f'cdc_projection_documents{{projection="{name}"}} 60.0' in dashboard.get("/metrics").text
    assert {"error"} & {f["level"] for f in dashboard.get("/doctor.json").json()["findings"]} == set()
    assert dashboard.get("/plan.json").json()["plan"]["steps"][0]["action"] == "unchanged"
