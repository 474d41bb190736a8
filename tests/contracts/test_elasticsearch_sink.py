"""The Elasticsearch sink keeps the promises of every sink, against a real server."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from aiohttp import web
from elasticsearch_lab import ElasticsearchServer, Front
from pydantic import BaseModel, SecretStr
from sink_contract import SECRET, SHAPE, Lab, PartsContract, ServerOfParts, put, text

from connectors.sinks import open_sink
from connectors.sinks.elasticsearch import connect
from connectors.sinks.elasticsearch_client import call
from pipeline.authoring.documents import Document, Text, many
from pipeline.authoring.projection import Projection, elasticsearch
from pipeline.authoring.shape import shape_of
from pipeline.errors import SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import APPLIED, Rejected, Throttled, Write
from pipeline.settings import ElasticsearchSettings, Endpoints, Settings

pytestmark = pytest.mark.stack


class Item(Document, source="shop.items"):
    id: int
    name: str | None


class Place(BaseModel):
    city: str
    near: tuple[Item, ...] = ()
    notes: dict[str, Any] = {}


class Everything(Document, source="shop.things"):
    id: int
    amount: Decimal | None
    ratio: float | None
    flag: bool | None
    note: str | None
    essay: Annotated[str | None, Text()]
    at: datetime | None
    day: date | None
    clock: time | None
    span: timedelta | None
    uid: UUID | None
    blob: bytes | None
    extra: dict[str, Any] | None
    places: list[Place] | None
    tags: tuple[str, ...] | None
    numbers: tuple[int, ...] | None
    items: tuple[Item, ...] = many(by="thing_id")


class Russian(Document, source="shop.things"):
    id: int
    essay: Annotated[str, Text("russian")]


class Less(Document, source="shop.orders"):
    id: int


class More(Document, source="shop.orders"):
    id: int
    added: str | None


class Other(Document, source="shop.orders"):
    id: str


@pytest.fixture
async def front(stack: Endpoints) -> AsyncIterator[Front]:
    front = Front(stack.elasticsearch)
    app = web.Application(client_max_size=100_000_000)
    app.router.add_route("*", "/{path:.*}", front.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    front.url = f"http://{host}:{port}"
    yield front
    await runner.cleanup()


class TestElasticsearchSink(PartsContract):
    @pytest.fixture
    def prefix(self) -> str:
        return f"t3-{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def server(self, stack: Endpoints, prefix: str) -> ServerOfParts:
        return ElasticsearchServer(stack.elasticsearch, prefix)

    @pytest.fixture
    def own(self, server: ElasticsearchServer) -> ElasticsearchServer:
        return server

    async def test_the_mapping_takes_every_kind_of_value_and_keeps_its_text(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        sink = lab.sink(shape=shape_of(Everything))
        await sink.prepare()
        document = {
            "id": 1, "amount": "12345678901234567890.123456789", "ratio": 1.5, "flag": True, "note": "n",
            "essay": "some words", "at": "2024-01-01T00:05:00.123456Z", "day": "2024-02-29", "clock": "10:00:00.5",
            "span": "P1DT2H", "uid": "00000000-0000-0000-0000-000000000001", "blob": "aGVsbG8=", "extra": {"a": 1},
            "places": [{"city": "Ulm", "more": {"b": 1}, "notes": {"c": 1}}, {"city": "Bonn", "near": [{"id": 7}]}],
            "tags": ["a", "b"], "numbers": [1, 2], "items": [{"id": 1, "name": None}],
        }  # fmt: skip
        assert await sink.write([Write("1", 1, json.dumps(document))], 0) == [APPLIED]
        assert (await sink.read(["1"]))["1"].document == document
        await sink.refresh()
        name = lab.projection(1)
        for query in (
            "amount:[1 TO *]",
            "essay:words",
            "at:[2024-01-01 TO 2024-01-02]",
            "tags:b",
            "numbers:2",
            "places.city:Bonn",
            "places.near.id:7",
        ):
            answer = await call(own.client, "test", "GET", f"/{name}/_search", params={"q": query})
            assert answer["hits"]["total"]["value"] == 1, query
        await sink.prepare()  # the mapping is what is wanted

    @pytest.mark.edge_case(50)
    @pytest.mark.parametrize(
        "members",
        [
            {"amount": "NaN"}, {"amount": "-Infinity"}, {"ratio": "Infinity"}, {"amount": "1e400"}, {"id": 2**70},
            {"at": "infinity"}, {"at": "-infinity"}, {"at": "2024-01-01T00:05:00.123456"}, {"at": "99999-01-01T00:00:00Z"},
            {"at": "0044-03-15T00:00:00 BC"}, {"day": "infinity"}, {"day": "10000-01-01"}, {"blob": ""},
            {"note": "x" * 40_000}, {"note": "\U0001f600" * 8191}, {"note": "\U0001f600" * 8192}, {"note": "€" * 20_000},
            {"essay": "x" * 100_000}, {"tags": ["x" * 40_000, "y"]}, {"tags": [None]},
            {"extra": 1}, {"extra": "x"}, {"extra": True}, {"extra": None}, {"extra": [1, "a", {"b": []}, [[]]]},
            {"extra": {"": 1, "a.b": 2, ".": 3}}, {"extra": {str(i): i for i in range(3000)}},
        ],
        ids=lambda members: json.dumps(members)[:40],
    )  # fmt: skip
    async def test_no_value_of_a_declared_kind_is_refused_and_none_is_changed(
        self, lab: Lab, members: dict[str, Any]
    ) -> None:
        sink = lab.sink(shape=shape_of(Everything))
        await sink.prepare()
        document = json.dumps({"id": 1, **members}, ensure_ascii=False)
        assert await sink.write([Write("1", 1, document)], 0) == [APPLIED]
        assert (await sink.read(["1"]))["1"].document == json.loads(document)

    @pytest.mark.edge_case(19)
    @pytest.mark.edge_case(22)
    async def test_what_can_not_be_indexed_as_declared_is_kept_and_found_by_its_name(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        sink = lab.sink(shape=shape_of(Everything))
        await sink.prepare()
        odd: dict[str, Any] = {"amount": "NaN", "ratio": "-Infinity", "at": "infinity", "day": "+10000-01-01"}
        fair = {"amount": "1.10", "ratio": 0.5, "at": "-0043-03-15T12:00:00", "day": "-0043-03-15", "clock": "24:00:00"}
        writes = [Write(id, 1, json.dumps({"id": int(id), **more})) for id, more in (("1", odd), ("2", fair))]
        assert await sink.write(writes, 0) == [APPLIED, APPLIED]
        assert (await sink.read(["1"]))["1"].document == {"id": 1, **odd}
        await sink.refresh()
        query = {"q": "_exists_:_ignored"}
        (hit,) = (await call(own.client, "test", "GET", f"/{lab.projection(1)}/_search", params=query))["hits"]["hits"]
        assert (hit["_id"], set(hit["_ignored"])) == ("1", set(odd))

    @pytest.mark.edge_case(50)
    async def test_opaque_values_of_another_kind_follow_each_other(self, lab: Lab) -> None:
        sink = await lab.prepared()
        for sequence, value in enumerate(({"v": 100}, {"v": "abc"}, {"v": {"w": 1}}, 5, "2024-01-01"), start=1):
            assert await put(sink, "1", sequence, extra=value) == APPLIED

    @pytest.mark.edge_case(50)
    async def test_an_undeclared_field_is_refused_at_any_depth_without_the_document_in_the_words(
        self, lab: Lab
    ) -> None:
        sink = await lab.prepared()
        for members in ({"nonsense": 1}, {"lines": [{"id": 1, "nonsense": 1}]}):
            outcome = await put(sink, "1", 1, note="private", **members)
            assert isinstance(outcome, Rejected)
            assert "nonsense" in outcome.reason
            assert "private" not in outcome.reason
        (broken,) = await sink.write([Write("1", 1, '{"note":"private",}')], 0)
        assert isinstance(broken, Rejected)
        assert "private" not in broken.reason

    async def test_a_new_field_is_added_in_place_and_a_changed_one_asks_for_a_version(self, lab: Lab) -> None:
        await lab.sink(shape=shape_of(Less)).prepare()
        more = lab.sink(shape=shape_of(More))
        await more.prepare()
        assert await put(more, "1", 1, added="x") == APPLIED
        for shape, field in ((Less, "added"), (Other, "id")):
            with pytest.raises(SinkError, match=f"another mapping of.*{field}.*raise the projection's version"):
                await lab.sink(shape=shape_of(shape)).prepare()

    async def test_preparing_every_kind_of_field_again_finds_no_difference(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        for options in ({}, {"nested": True}):
            sink = own.open(lab.projection(1), shape=shape_of(Everything), **options)
            lab.opened.append(sink)
            await sink.prepare()
            await sink.prepare()
            await sink.drop()

    async def test_an_analyzer_that_the_server_has_not_names_the_field(self, lab: Lab) -> None:
        with pytest.raises(SinkError, match=r"field essay.*analyzer \[russian\]"):
            await lab.sink(shape=shape_of(Russian)).prepare()

    async def test_the_targets_options_reach_the_index_and_survive_a_load(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        name = lab.projection(1)
        sink = own.open(name, shards=2, refresh_interval="7s", settings={"max_result_window": 123})
        lab.opened.append(sink)
        await sink.prepare()

        async def index() -> dict[str, Any]:
            answer = await own.ask("GET", f"/{name}/_settings")
            return dict(answer[name]["settings"]["index"])

        before = await index()
        expected = {"number_of_shards": "2", "number_of_replicas": "0", "refresh_interval": "7s", "gc_deletes": "15m"}
        assert expected.items() <= before.items()
        assert before["max_result_window"] == "123"
        await sink.loading(True)
        assert (await index())["refresh_interval"] == "-1"
        await sink.loading(False)
        assert await index() == before

    @pytest.mark.edge_case(47)
    async def test_the_epoch_of_a_document_can_be_searched_and_is_not_read(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1, epoch=4)
        await sink.refresh()
        answer = await call(own.client, "test", "GET", f"/{lab.projection(1)}/_search", params={"q": "_epoch:[* TO 4]"})
        assert answer["hits"]["hits"][0]["_source"]["_epoch"] == 4
        assert "_epoch" not in (await sink.read(["1"]))["1"].document

    @pytest.mark.edge_case(49)
    @pytest.mark.parametrize("block", ["read_only", "write"])
    async def test_an_index_that_takes_no_writes_throttles(
        self, lab: Lab, own: ElasticsearchServer, block: str
    ) -> None:
        sink = await lab.prepared()
        path = f"/{lab.projection(1)}/_settings"
        await own.ask("PUT", path, **{f"index.blocks.{block}": True})
        outcome = await put(sink, "1", 1)
        await own.ask("PUT", path, **{f"index.blocks.{block}": None})
        assert isinstance(outcome, Throttled)
        assert "cluster_block_exception" in outcome.reason
        assert await put(sink, "1", 1) == APPLIED

    async def test_a_closed_index_is_away_and_nothing_is_rejected(self, lab: Lab, own: ElasticsearchServer) -> None:
        sink = await lab.prepared()
        await own.ask("POST", f"/{lab.projection(1)}/_close")
        with pytest.raises(SinkUnavailable, match="closed"):
            await put(sink, "1", 1)
        await own.ask("POST", f"/{lab.projection(1)}/_open")
        assert await put(sink, "1", 1) == APPLIED

    async def test_a_lost_checkpoint_index_is_missed_and_not_made_anew(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        sink = await lab.prepared()
        record = await sink.claim("a", 0)
        await own.lose(own.checkpoints)
        for attempt in (sink.save(record), sink.claim("b", 0)):
            with pytest.raises(TargetMissing):
                await attempt
        assert await sink.record() is None

    async def test_the_switch_away_from_any_number_of_indices_leaves_one(
        self, lab: Lab, own: ElasticsearchServer
    ) -> None:
        one, two = await lab.prepared(1), await lab.prepared(2)
        actions = [{"add": {"index": lab.projection(v), "alias": own.alias}} for v in (1, 2)]
        await own.ask("POST", "/_aliases", actions=actions)
        await one.switch()
        assert list(await own.ask("GET", f"/_alias/{own.alias}")) == [lab.projection(1)]
        await two.switch()
        assert list(await own.ask("GET", f"/_alias/{own.alias}")) == [lab.projection(2)]

    async def test_an_index_in_the_place_of_the_alias_is_said(self, lab: Lab, own: ElasticsearchServer) -> None:
        sink = await lab.prepared()
        await own.ask("PUT", f"/{own.alias}")
        try:
            with pytest.raises(SinkError, match=own.alias):
                await sink.switch()
        finally:
            await own.ask("DELETE", f"/{own.alias}")

    @pytest.fixture
    def silent(self) -> Iterator[int]:
        """A port that takes connections and never answers."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            yield listening.getsockname()[1]

    async def test_a_server_that_never_answers_is_away_after_the_timeout(
        self, own: ElasticsearchServer, silent: int
    ) -> None:
        settings = ElasticsearchSettings(request_timeout=0.2)
        url = f"http://me:{SECRET}@127.0.0.1:{silent}"
        sink = own.sink(connect(settings, url), "t3-none-v1", SHAPE, 1_000, {})
        writes = [Write(str(i), 1, text(note="n" * 500)) for i in range(20)]
        with pytest.raises(SinkUnavailable, match="no answer in time") as caught:
            await sink.write(writes, 0)
        assert SECRET not in str(caught.value)
        await sink.close()

    @pytest.mark.edge_case(49)
    async def test_a_request_that_is_too_large_goes_in_halves_and_a_single_document_is_rejected(
        self, lab: Lab, own: ElasticsearchServer, front: Front
    ) -> None:
        sink = own.sink(connect(ElasticsearchSettings(), front.url), lab.projection(1), SHAPE, 2_000_000, {})
        lab.opened.append(sink)
        await sink.prepare()
        writes = [Write(str(i), 1, text(note="n" * (20_000 if i == 33 else 800))) for i in range(100)]
        outcomes = await sink.write(writes, 0)
        refused = [outcome for outcome in outcomes if outcome != APPLIED]
        assert outcomes.index(refused[0]) == 33
        assert len(refused) == 1
        assert isinstance(refused[0], Rejected)
        assert refused[0].reason.startswith("413")
        assert await sink.count() == 99

    @pytest.mark.edge_case(49)
    async def test_a_document_that_the_servers_memory_never_takes_is_rejected_and_not_throttled_for_ever(
        self, lab: Lab
    ) -> None:
        sink = await lab.prepared()
        writes = [Write("1", 1, text(note="n" * 100_000_000)), Write("2", 1, text())]
        outcomes = await sink.write(writes, 0)
        assert outcomes[1] == APPLIED
        assert isinstance(outcomes[0], Rejected)

    @pytest.mark.edge_case(49)
    @pytest.mark.parametrize("status", [429, 502, 503, 504, 500, 401, 403, 200, 404])
    async def test_an_answer_to_the_whole_request_is_no_documents_fault(
        self, lab: Lab, own: ElasticsearchServer, front: Front, status: int
    ) -> None:
        settings = ElasticsearchSettings(username="me", password=SecretStr(SECRET))
        sink = own.sink(connect(settings, front.url), lab.projection(1), SHAPE, 2_000_000, {})
        lab.opened.append(sink)
        await sink.prepare()
        front.answer = status
        expected = SinkError if status in (401, 403) else SinkUnavailable
        with pytest.raises(expected) as caught:
            await put(sink, "1", 1)
        assert isinstance(caught.value, SinkUnavailable) == (expected is SinkUnavailable)
        assert SECRET not in str(caught.value)
        assert status == 200 or str(status) in str(caught.value)
        front.answer = 0
        assert await put(sink, "1", 1) == APPLIED

    async def test_a_bulk_is_bounded_in_bytes(self, lab: Lab, own: ElasticsearchServer, front: Front) -> None:
        sink = own.sink(connect(ElasticsearchSettings(), front.url), lab.projection(1), SHAPE, 5_000, {})
        lab.opened.append(sink)
        await sink.prepare()
        front.sizes.clear()
        assert set(await sink.write([Write(str(i), 1, text(note="n" * 400)) for i in range(50)], 0)) == {APPLIED}
        assert max(front.sizes) <= 5_000
        assert len(front.sizes) >= 5

    async def test_a_projections_target_is_opened_from_the_settings(self, own: ElasticsearchServer) -> None:
        projection = Projection(SHAPE.document, (), "t3-orders", 2)
        settings = Settings(elasticsearch=ElasticsearchSettings(url=own.url))
        sink = open_sink(elasticsearch("t3-orders", replicas=0), projection, SHAPE, settings)
        assert sink.name == "elasticsearch:t3-orders-v2"
        with pytest.raises(TargetMissing):
            await put(sink, "1", 1)
        await sink.close()
