"""The live feed: who has followed it has every document as the source has it, whatever was killed or cut over meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import BaseModel

from pipeline.client import AsyncClient, Changed, Client
from pipeline.demo import truth
from pipeline.demo.shop import Load
from pipeline.errors import ReadFailed
from tests.support.project import Project, until
from tests.support.web import expected

pytestmark = pytest.mark.stack
TAGS = """
from pipeline import Document, elasticsearch, projection

class Plain(Document, source="shop.products"):
    id: int
    name: str

plain = projection(Plain, to=elasticsearch("ALIAS-plain"))
"""


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_feed")
    project.settings |= {
        "CDC_WORKER__SESSION_TIMEOUT": "8",
        "CDC_ELASTICSEARCH__REQUEST_TIMEOUT": "5",
        "CDC_WEB__FEEDS": "2",
    }
    own = {"plain": TAGS.replace("ALIAS", project.name)}
    project.create(orders=80, also=f'kafka("{project.name}.orders", partitions=3)', own=own)
    project.start_run()
    project.wait_for(truth.position(project.dsn))
    yield project


@pytest.fixture(scope="module")
def url(shop: Project) -> Iterator[str]:
    process, address = start_web(shop, "--open")
    yield address
    process.terminate()
    process.wait(20)


def start_web(shop: Project, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    log = shop.folder / f"web{len(list(shop.folder.glob('web*.log')))}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "web", "--port", "0", *options],
            cwd=shop.folder, env=shop.environment, stdout=out, stderr=out,
        )  # fmt: skip
    found = until(
        lambda: re.search(r"The dashboard is at (http://[0-9.:]+)/", log.read_text()), 60, "the web's address"
    )
    return process, found[1]


@dataclass
class Follower:
    """Keeps what the feed says; connects again where it ends, or where it is told to."""

    address: str
    begin: str = "start"
    key: str = ""
    documents: dict[str, Any] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    versions: list[str] = field(default_factory=list)
    place: str = ""
    events: int = 0
    connections: int = 0
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False
    away: bool = False
    """Hang up, and stay away."""
    hung_up: bool = False

    def __enter__(self) -> Follower:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stopping = True
        self._thread.join(30)

    def _run(self) -> None:
        while not self.stopping:
            if self.away:
                self.hung_up = True
                threading.Event().wait(0.05)
                continue
            headers = {"last-event-id": self.place} if self.place else {}
            headers |= {"authorization": f"Bearer {self.key}"} if self.key else {}
            try:
                with httpx.stream("GET", f"{self.address}?from={self.begin}", headers=headers, timeout=30) as answer:
                    if answer.status_code != 200:
                        answer.read()
                        self.wrong.append(f"{answer.status_code} {answer.text}")
                        return
                    self.connections += 1
                    self._take(answer)
            except httpx.TransportError:
                continue

    def _take(self, answer: httpx.Response) -> None:
        event: dict[str, str] = {}
        for line in answer.iter_lines():
            if self.stopping or self.away:
                return
            name, _, text = line.partition(": ")
            if name:
                event[name] = text
                continue
            if "data" in event:
                self._learn(event)
            self.place = event.get("id", self.place)
            event = {}

    def _learn(self, event: dict[str, str]) -> None:
        said = json.loads(event["data"])
        self.events += 1
        if event["event"] == "version":
            self.versions.append(said["version"])
            self.documents, self.revisions = {}, {}
        else:
            id, revision = said["id"], int(said["revision"])
            if revision <= self.revisions.get(id, -1) and self.place:
                self.wrong.append(f"{id} at {revision} after {self.revisions[id]}")
            self.revisions[id] = revision
            if (event["event"] == "gone") != (said["document"] is None):
                self.wrong.append(json.dumps(event))
            self.documents.pop(id, None)
            if said["document"] is not None:
                self.documents[id] = said["document"]


def path(shop: Project, url: str) -> str:
    return f"{url}/v1/{shop.name}-orders/changes"


@pytest.mark.edge_case(51)
def test_a_reader_that_comes_and_goes_has_every_document_as_the_source_has_it(shop: Project, url: str) -> None:
    random, load = Random(4), Load(shop.dsn, rate=60, seconds=600)
    with Follower(path(shop, url)) as reader:
        until(lambda: len(reader.documents) == 80, 30, f"all documents first {reader.wrong}")
        load.start()
        try:
            for round in range(6):
                done = load.done
                until(lambda done=done: load.done > done + 40, 60, "a load")  # type: ignore[misc]
                if round % 2:
                    reader.away, reader.hung_up = True, False
                    until(lambda: reader.hung_up, 60, f"the reader hangs up {reader.wrong}")
                    done = load.done
                    until(lambda done=done: load.done > done + random.randrange(10, 40), 60, "changes meanwhile")  # type: ignore[misc]
                    reader.away = False
                else:
                    os.kill(until(lambda: shop.status()["pid"], 30, "a worker"), signal.SIGKILL)
            shop.sql("DELETE FROM shop.order_lines WHERE order_id = 11", "DELETE FROM shop.orders WHERE id = 11")
            shop.cdc("rebuild", f"{shop.name}-orders")
            done = load.done
            until(lambda: load.done > done + 40, 60, "changes after the cut-over")
        finally:
            load.stop()
            load.join(30)
        assert load.error is None
        until(lambda: reader.documents == expected(shop), 60, f"{reader.wrong} {len(reader.documents)}\n{shop.log()}")
    assert reader.wrong == [] and reader.versions == [f"{shop.name}-orders-v1.2"] and reader.connections > 3
    assert "11" not in reader.documents


def test_from_now_on_only_what_changes_comes_and_of_it_the_fields_asked_for(shop: Project, url: str) -> None:
    ids = list(expected(shop))[:3]
    with Follower(path(shop, url), begin="now&fields=id,status") as reader:
        until(lambda: reader.connections, 20, "a connection")
        for n, id in enumerate(ids):
            shop.sql(f"UPDATE shop.orders SET status = 'now {n}' WHERE id = {id}")
        until(lambda: reader.events >= 3, 30, f"three changes {reader}")
    assert reader.documents == {id: {"id": int(id), "status": f"now {n}"} for n, id in enumerate(ids)}


def refused(shop: Project, url: str, query: str = "", name: str = "orders", **headers: str) -> tuple[int, str]:
    with httpx.stream("GET", f"{url}/v1/{shop.name}-{name}/changes{query}", headers=headers, timeout=20) as answer:
        if answer.status_code == 200:
            return 200, ""
        answer.read()
        return answer.status_code, answer.json()["type"].rpartition(":")[2]


def test_what_can_not_be_followed_is_said_before_it_begins(shop: Project, url: str) -> None:
    with Follower(path(shop, url), begin="now") as reader:
        until(lambda: reader.connections, 20, "a connection")
        until(lambda: reader.place, 30, "a place")
    version, at, offsets = reader.place.split("~")
    beyond = ".".join(str(int(offset) + 10_000) for offset in offsets.split("."))
    for place in (
        "nonsense",
        f"{version}~{at}~1.2",
        f"{version}~{at}~{beyond}",
        f"{version}~{int(at) - 7 * 86_400_000}~{offsets}",
    ):
        assert refused(shop, url, f"?from={place}") == (410, "no-such-place"), place
        assert refused(shop, url, **{"last-event-id": place}) == (410, "no-such-place"), place
    assert refused(shop, url, f"?from={reader.place}") == (200, "")
    assert refused(shop, url, name="plain") == (404, "no-feed")
    assert refused(shop, url, name="nothing") == (404, "no-such-read-model")
    assert refused(shop, url, "?form=now") == (400, "unknown-parameter")
    assert refused(shop, url, "?fields=nothing") == (400, "unknown-field")


def test_a_key_sees_its_fields_and_its_feed_ends_with_it(shop: Project) -> None:
    name = f"{shop.name}-orders"
    key = shop.cdc("web", "key", "add", "some", "--scope", f"{name}:id,status").stdout.strip()
    other = shop.cdc("web", "key", "add", "other", "--scope", f"{shop.name}-plain").stdout.strip()
    process, url = start_web(shop)
    try:
        assert refused(shop, url) == (401, "no-key")
        assert refused(shop, url, authorization=f"Bearer {other}") == (403, "not-in-scope")
        with Follower(path(shop, url), key=key) as reader:
            until(lambda: len(reader.documents) == len(expected(shop)), 30, "all documents")
            assert all(set(document) == {"id", "status"} for document in reader.documents.values())
            shop.cdc("web", "key", "remove", "some")
            until(lambda: reader.wrong, 30, "the feed ends")
            assert reader.wrong[0].startswith("401")
        assert refused(shop, url, "?fields=charged", authorization=f"Bearer {other}")[0] == 403
    finally:
        process.terminate()
        assert process.wait(20) in (0, -signal.SIGTERM)


def test_as_many_as_are_allowed_are_open_and_they_end_with_the_process(shop: Project) -> None:
    process, url = start_web(shop, "--open")
    with Follower(path(shop, url), begin="now") as one, Follower(path(shop, url), begin="now") as two:
        until(lambda: one.connections and two.connections, 20, "two connections")
        assert refused(shop, url) == (503, "too-many-feeds")
        two.away = True
        shop.sql("UPDATE shop.orders SET status = 'hang up'")
        until(lambda: refused(shop, url)[0] == 200, 20, "room for another")
        process.terminate()
        assert process.wait(20) in (0, -signal.SIGTERM)
        one.stopping = True


async def test_the_client_follows_and_connects_again_where_it_stood(shop: Project) -> None:
    class Status(BaseModel):
        __read_model__: ClassVar[str] = f"{shop.name}-orders"
        id: int
        status: str

    process, url = start_web(shop, "--open")
    found: dict[str, str] = {}
    try:
        with Client(url) as client:
            everything = client.follow(Status, "start")
            wanted = {id: order["status"] for id, order in expected(shop).items()}
            place = ""
            while found != wanted:
                told = next(everything)
                assert isinstance(told, Changed)
                place = told.place
                found.pop(told.id, None)
                if told.document is not None:
                    assert told.id == str(told.document.id)
                    found[told.id] = told.document.status
            everything.close()
        one, two = map(int, list(expected(shop))[:2])
        shop.wait_for(shop.sql(f"UPDATE shop.orders SET status = 'while away' WHERE id = {one}"))
        async with AsyncClient(url) as client:
            following = client.follow(Status, place)
            told = await anext(following)
            assert isinstance(told, Changed) and told.document == Status(id=one, status="while away")
            # the process ends, and another one is there at the same address
            process.terminate()
            process.wait(20)
            shop.sql(f"UPDATE shop.orders SET status = 'another' WHERE id = {two}")
            process, _ = start_web(shop, "--open", "--port", url.rpartition(":")[2])
            async with asyncio.timeout(60):
                told = await anext(following)
            assert isinstance(told, Changed) and told.document == Status(id=two, status="another")
            await following.aclose()
            with pytest.raises(ReadFailed, match=r"410.*no place in a feed"):
                await anext(client.follow(Status, "nonsense"))
    finally:
        process.terminate()
        process.wait(20)
