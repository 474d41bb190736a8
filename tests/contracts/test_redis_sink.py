"""The Redis sink keeps the promises of every sink, against a real server."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from sink_contract import SECRET, SHAPE, Lab, Order, PartsContract, ServerOfParts, delete, put, text

from connectors.sinks import open_sink
from connectors.sinks.parts import ONE, Parts
from connectors.sinks.redis import RedisSink
from pipeline.authoring.projection import Projection, redis
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError, NotAllowed, SettingsError, SinkError, SinkUnavailable
from pipeline.ports import APPLIED, STALE, Rejected, Sink, Throttled, Write
from pipeline.reports.doctor import _redis as look_at_redis
from pipeline.settings import Endpoints, RedisSettings, Settings
from tests.support.proxy import proxied

pytestmark = pytest.mark.stack


class RedisServer:
    """The server, and a key `<prefix>:orders` of which each test has its own."""

    def __init__(self, url: str, prefix: str) -> None:
        self.url, self.target, self.timeout = url, f"{prefix}:orders", 10.0

    def open(
        self,
        projection: str,
        *,
        shape: Shape = SHAPE,
        bulk_bytes: int = 1_000_000,
        url: str = "",
        parts: Parts = ONE,
        **options: object,
    ) -> RedisSink:
        return RedisSink(
            url=lambda: url or self.url, target=self.target, projection=projection, shape=shape, options=options,
            settings=RedisSettings(bulk_bytes=bulk_bytes, request_timeout=self.timeout), parts=parts,
        )  # fmt: skip

    def unreachable(self, projection: str) -> RedisSink:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        return self.open(projection, url=f"redis://me:{SECRET}@127.0.0.1:{port}/0")

    async def ask(self, *command: str | int) -> Any:
        async with Redis.from_url(self.url, protocol=2, decode_responses=True) as db:
            return await db.execute_command(*command)

    async def keys(self, version: str = "") -> list[str]:
        found = [*await self.ask("KEYS", f"{self.target}*"), *await self.ask("KEYS", f"cdc:{self.target}*")]
        return sorted(key for key in found if version in key)

    async def lose(self, projection: str) -> None:
        await self.ask("DEL", *await self.keys(f":{projection.rpartition('-')[2]}:"))

    async def block(self, projection: str, on: bool) -> None:
        await self.ask("CONFIG", "SET", "maxmemory", 1 if on else 0)

    async def sets(self, version: str = "v1") -> dict[str, set[str]]:
        """The sets of lookups, by field and value; the ids in them."""
        prefix = f"{self.target}:{version}:"
        return {
            key.removeprefix(f"{prefix}by:"): {found.removeprefix(prefix) for found in await self.ask("SMEMBERS", key)}
            for key in await self.ask("KEYS", f"{prefix}by:*")
        }

    async def visible(self) -> str | None:
        prefix = await self.ask("GET", self.target)
        if prefix is None:
            return None
        return str(json.loads(await self.ask("GET", f"{prefix}which"))["note"])

    async def close(self) -> None:
        await self.ask("CONFIG", "SET", "maxmemory", 0)
        assert await self.keys() == []


async def looked_up(lab: Lab, own: RedisServer, version: int = 1) -> RedisSink:
    sink = own.open(lab.projection(version), lookups=["id", "note", "lines.product"])
    lab.opened.append(sink)
    await sink.prepare()
    return sink


class TestRedisSink(PartsContract):
    @pytest.fixture
    def prefix(self) -> str:
        return f"t_{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def server(self, stack: Endpoints, prefix: str) -> ServerOfParts:
        return RedisServer(stack.redis, prefix)

    @pytest.fixture
    def own(self, server: RedisServer) -> RedisServer:
        return server

    @pytest.fixture
    async def user(self, own: RedisServer, prefix: str) -> AsyncIterator[str]:
        """A URL of a user who may only read."""
        await own.ask("ACL", "SETUSER", prefix, "on", f">{SECRET}", "~*", "+@read", "+info")
        yield own.url.replace("redis://", f"redis://{prefix}:{SECRET}@")
        await own.ask("ACL", "DELUSER", prefix)

    async def test_readers_get_the_text_as_it_was_written(self, lab: Lab, own: RedisServer) -> None:
        sink = await lab.prepared()
        document = '{"id": 1,  "note":"é"}'
        assert await sink.write([Write("a:b", 1, document)], 0) == [APPLIED]
        await sink.switch()
        assert await own.ask("GET", own.target) == f"{own.target}:v1:"
        assert await own.ask("GET", f"{own.target}:v1:a:b") == document

    async def test_keys_follow_the_pattern_of_the_author(self, lab: Lab, own: RedisServer) -> None:
        prefix = own.target.partition(":")[0]
        sink = own.open(lab.projection(1), key=f"{prefix}:{{version}}:order:{{id}}")
        lab.opened.append(sink)
        await sink.prepare()
        await put(sink, "7", 1, note="here")
        await sink.switch()
        assert await own.ask("GET", own.target) == f"{prefix}:v1:order:"
        assert json.loads(await own.ask("GET", f"{prefix}:v1:order:7"))["note"] == "here"
        await sink.drop()
        assert await own.ask("KEYS", f"*{prefix}*") == []

    async def test_revisions_are_told_apart_beyond_what_a_float_holds(self, lab: Lab) -> None:
        sink = await lab.prepared()
        high = (1 << 62) + 1
        assert await sink.write([Write("1", high, text(note="new"))], 0) == [APPLIED]
        assert await sink.write([Write("1", high - 1, text(note="old"))], 0) == [STALE]
        assert await sink.write([Write("1", high + 1, text(note="newer"))], 0) == [APPLIED]
        assert (await sink.read(["1"]))["1"].revision == high + 1
        assert await sink.write([Write("2", 9, text()), Write("3", 10, text())], 0) == [APPLIED] * 2
        assert await sink.write([Write("2", 10, text()), Write("3", 9, text())], 0) == [APPLIED, STALE]

    @pytest.mark.edge_case(47)
    async def test_after_a_claim_an_older_owner_writes_nothing_at_all(self, lab: Lab, own: RedisServer) -> None:
        old, new = await lab.prepared(), lab.sink()
        before = (await old.claim("a", 0)).epoch
        assert await put(old, "gone", 4, epoch=before) == APPLIED
        assert await delete(old, "gone", 5, epoch=before) == APPLIED
        assert f"cdc:{own.target}:v1:deleted" in await own.keys()
        await new.claim("b", 0)
        # the deletes of the old owner are forgotten, and yet it can't undo them
        assert await own.keys() == [f"cdc:{own.target}:v1:record"]
        assert await put(old, "gone", 6, epoch=before) == STALE
        assert await put(old, "never seen", 7, epoch=before) == STALE
        assert await new.count() == 0

    async def test_documents_are_looked_up_by_what_they_say_now(self, lab: Lab, own: RedisServer) -> None:
        sink = await looked_up(lab, own)
        lines = [{"id": 1, "order_id": 1, "product": "pen"}, {"id": 2, "order_id": 1, "product": None}]
        await put(sink, "a", 1, note="x:y", lines=lines)
        await put(sink, "b", 1, note="x:y", lines=lines[1:])
        await put(sink, "none", 1)
        assert await own.sets() == {"id:1": {"a", "b", "none"}, "note:x:y": {"a", "b"}, "lines.product:pen": {"a"}}
        keys = await own.ask("SMEMBERS", f"{own.target}:v1:by:note:x:y")
        assert [json.loads(found)["note"] for found in await own.ask("MGET", *keys)] == ["x:y", "x:y"]

        await put(sink, "a", 2, note="z", lines=[*lines, {"id": 3, "order_id": 1, "product": "ink"}])
        assert await put(sink, "b", 1, note="stale") == STALE and await delete(sink, "b", 1) == STALE
        now = {"note:z": {"a"}, "note:x:y": {"b"}, "lines.product:pen": {"a"}, "lines.product:ink": {"a"}}
        assert await own.sets() == {"id:1": {"a", "b", "none"}} | now

        await delete(sink, "a", 3)
        await delete(sink, "none", 2)
        assert await own.sets() == {"id:1": {"b"}, "note:x:y": {"b"}}
        assert await put(sink, "a", 2, note="z") == STALE
        await sink.claim("another", 5)
        assert await put(sink, "b", 9, note="of the owner before") == STALE
        assert await own.sets() == {"id:1": {"b"}, "note:x:y": {"b"}}

    async def test_each_version_has_sets_of_its_own(self, lab: Lab, own: RedisServer) -> None:
        first, second = await looked_up(lab, own), await looked_up(lab, own, 2)
        await put(first, "a", 1, note="old")
        await put(second, "a", 1, note="new")
        await second.switch()
        assert await own.sets(str(await own.ask("GET", own.target)).split(":")[-2]) == {
            "id:1": {"a"},
            "note:new": {"a"},
        }
        await first.drop()
        assert await own.sets() == {} and await own.sets("v2") == {"id:1": {"a"}, "note:new": {"a"}}

    async def test_odd_values_are_looked_up_too(self, lab: Lab, own: RedisServer) -> None:
        sink = await looked_up(lab, own)
        for n, value in enumerate(("", "\0", '\x1f"\\*', "\U0001f600 é\u2028", "n" * 100_000), 1):
            await put(sink, "1", n, note=value)
            assert await own.sets() == {"id:1": {"1"}, f"note:{value}": {"1"}}
        (half,) = await sink.write([Write("2", 1, '{"id": 2, "note": "\\ud800"}')], 0)
        assert isinstance(half, Rejected) and set(await sink.read(["1", "2"])) == {"1"}

    async def test_an_id_that_could_be_a_set_is_refused(self, lab: Lab, own: RedisServer) -> None:
        sink = await looked_up(lab, own)
        writes = [Write("by:note:x", 1, text()), Write("by:note:x", 2, None), Write("by:total:x", 1, text(note="x"))]
        outcomes = [(await sink.write([write], 0))[0] for write in writes]
        assert [type(outcome).__name__ for outcome in outcomes] == ["Rejected", "Rejected", "Applied"]
        assert await own.ask("SMEMBERS", f"{own.target}:v1:by:note:x") == {f"{own.target}:v1:by:total:x"}

    @pytest.mark.edge_case(49)
    async def test_where_there_is_no_room_sets_stay_as_the_documents_are(self, lab: Lab, own: RedisServer) -> None:
        sink = await looked_up(lab, own)
        await put(sink, "1", 1, note="old")
        await put(sink, "2", 1, note="old")
        await own.block("", True)
        writes = [Write("1", 1 << 60, text(note="new")), Write("2", 1 << 60, None)]
        assert [type(o).__name__ for o in await sink.write(writes, 0)] == ["Throttled", "Applied"]
        assert await own.sets() == {"id:1": {"1"}, "note:old": {"1"}}

    async def test_a_document_written_again_mends_its_sets(self, lab: Lab, own: RedisServer) -> None:
        sink, key = await looked_up(lab, own), f"{own.target}:v1:by:note:x"
        await put(sink, "1", 1, note="x")
        await own.ask("DEL", key)
        await put(sink, "1", 2, note="x")
        assert await own.sets() == {"id:1": {"1"}, "note:x": {"1"}}
        await own.ask("SET", key, "of somebody else")
        with pytest.raises(SinkError, match="WRONGTYPE"):
            await put(sink, "2", 1, note="x")
        await own.ask("DEL", key)
        assert await put(sink, "2", 1, note="x") == APPLIED and (await own.sets())["note:x"] == {"2"}

    async def test_a_document_ends_as_long_after_its_last_write_as_the_author_says(
        self, lab: Lab, own: RedisServer
    ) -> None:
        sink, key = own.open(lab.projection(1), ttl=timedelta(hours=1), lookups=["note"]), f"{own.target}:v1:1"
        lab.opened.append(sink)
        await sink.prepare()
        for sequence in (5, 7):
            assert await put(sink, "1", sequence, note="x") == APPLIED
            assert 3_000_000 < await own.ask("PTTL", key) <= 3_600_000 and not await sink.ended(["1", "2"])
            await own.ask("PEXPIREAT", key, 1)
            assert await sink.ended(["1", "2"]) == {"1"} and not await sink.read(["1"])
            # what is known of it does not end
            assert await put(sink, "1", sequence - 1) == STALE and await own.sets() == {"note:x": {"1"}}
        assert [page async for page in sink.scan()] == [{}]
        assert await delete(sink, "1", 8) == APPLIED
        assert not await sink.ended(["1"]) and await own.sets() == {}

    async def test_without_a_ttl_what_is_gone_was_lost(self, lab: Lab, own: RedisServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        assert await own.ask("PTTL", f"{own.target}:v1:1") == -1
        await own.ask("DEL", f"{own.target}:v1:1")
        assert not await sink.ended(["1"]) and not await sink.read(["1"])

    async def test_other_lookups_take_a_new_version(self, lab: Lab, own: RedisServer) -> None:
        await lab.prepared()
        sink = own.open(lab.projection(1), lookups=["note", "id"])
        lab.opened.append(sink)
        for attempt in (sink.prepare(), sink.claim("a", 0)):
            with pytest.raises(
                SinkError, match="looked up by nothing, and not by id, note: raise the projection's version"
            ):
                await attempt

    @pytest.mark.edge_case(49)
    async def test_where_there_is_no_room_deletes_still_make_some(self, lab: Lab, own: RedisServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        await own.block("", True)
        outcomes = await sink.write([Write("2", 1 << 60, text()), Write("1", 1 << 60, None)], 0)
        assert (
            isinstance(outcomes[0], Throttled)
            and "maxmemory" in outcomes[0].reason
            and "script" not in outcomes[0].reason
        )
        assert outcomes[1] == APPLIED and await sink.count() == 0
        with pytest.raises(SinkUnavailable, match="no room"):
            await sink.save(await sink.claim("a", 0))

    async def test_a_server_that_may_throw_documents_away_is_refused(self, lab: Lab, own: RedisServer) -> None:
        sink = await lab.prepared()
        await own.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            for attempt in (sink.prepare(), sink.claim("a", 0)):
                with pytest.raises(SinkError, match=r"maxmemory-policy allkeys-lru.*set it to noeviction"):
                    await attempt
        finally:
            await own.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")

    async def test_doctor_says_what_a_server_may_lose(self, own: RedisServer) -> None:
        settings = Settings(redis=RedisSettings(url=own.url))  # type: ignore[arg-type]
        assert [f.level for f in await look_at_redis(settings)] == ["ok"]
        await own.ask("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
        await own.ask("CONFIG", "SET", "appendonly", "no")
        try:
            found = {f.subject: f.level for f in await look_at_redis(settings)}
        finally:
            await own.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
            await own.ask("CONFIG", "SET", "appendonly", "yes")
        await own.ask("CONFIG", "SET", "appendfsync", "everysec")
        try:
            assert [f.found[:9] for f in await look_at_redis(settings) if f.level == "warning"] == ["everysec:"]
        finally:
            await own.ask("CONFIG", "SET", "appendfsync", "always")
        assert found == {"redis": "ok", "redis maxmemory-policy": "error", "redis appendonly": "warning"}
        gone = Settings(redis=RedisSettings(url=f"redis://me:{SECRET}@127.0.0.1:9/0"))  # type: ignore[arg-type]
        (finding,) = await look_at_redis(gone)
        assert finding.level == "error" and "can't be reached" in finding.found and SECRET not in finding.found

    async def test_the_keys_of_another_projection_are_not_taken(self, lab: Lab, own: RedisServer) -> None:
        await lab.prepared()
        other = own.open("returns-v1")
        with pytest.raises(SinkError, match=f"those of {lab.projection(1)}: give one of the two another name"):
            await other.prepare()
        await other.close()

    async def test_nothing_is_sent_when_it_is_not_allowed(self, lab: Lab) -> None:
        sink = await lab.prepared()
        with pytest.raises(NotAllowed):
            await sink.write([Write("1", 1, text())], 0, lambda: False)
        assert await sink.count() == 0

    async def test_a_connection_that_ended_is_replaced(self, lab: Lab, own: RedisServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        await own.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert await put(sink, "1", 2) == APPLIED

    async def test_scripts_that_the_server_has_forgotten_are_sent_again(self, lab: Lab, own: RedisServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        await own.ask("SCRIPT", "FLUSH")
        assert await put(sink, "1", 2) == APPLIED

    async def test_a_server_that_falls_silent_is_told_in_time(self, lab: Lab, own: RedisServer) -> None:
        to = urlsplit(own.url)
        assert to.hostname is not None and to.port is not None
        with proxied(to.hostname, to.port) as proxy:
            own.timeout = 0.5
            sink = own.open(lab.projection(1), url=f"redis://127.0.0.1:{proxy.port}/0")
            lab.opened.append(sink)
            await sink.prepare()
            await put(sink, "1", 1)
            proxy.mood = "silent"
            for attempt in (put(sink, "1", 2), sink.count(), sink.count()):
                with pytest.raises(SinkUnavailable):
                    await attempt
            proxy.mood = "pass"
            await sink.close()
        assert await put(lab.sink(), "1", 3) == APPLIED

    async def test_who_is_not_let_in_is_told_without_the_password(self, lab: Lab, own: RedisServer, user: str) -> None:
        for url, said in ((user, "not allowed"), (user.replace(SECRET, SECRET + "x"), "lets nobody in")):
            sink = own.open(lab.projection(1), url=url)
            with pytest.raises(SinkError, match=said) as caught:
                await sink.prepare()
            assert SECRET not in str(caught.value) + repr(sink)
            await sink.close()


def test_a_target_is_opened_with_the_settings() -> None:
    own = Settings(redis=RedisSettings(url=f"redis://me:{SECRET}@nowhere:6379/0"))  # type: ignore[arg-type]
    assert SECRET not in json.dumps(own.shown()) + repr(own)
    target = redis("crm:orders")
    sink: Sink = open_sink(target, Projection(Order, (target,), "orders", 3, build=2), SHAPE, own)
    assert sink.name == "redis:crm:orders:v3.2" and not sink.atomic


@pytest.mark.parametrize("url", [f"http://me:{SECRET}@there", f"redis://me:{SECRET}@there:port/0"])
def test_what_is_no_url_is_said_without_showing_it(url: str) -> None:
    with pytest.raises(SettingsError, match="no URL of a Redis") as caught:
        RedisSink(url=lambda: url, target="o", projection="o-v1", shape=SHAPE, options={}, settings=RedisSettings())
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shards": 1}, "no option shards; known are key, lookups, ttl"),
        *[({"ttl": ttl}, "no time that documents stay") for ttl in (0, -1, True, "7d", float("nan"), timedelta())],
        ({"lookups": "note"}, "is no list of fields"),
        ({"lookups": ["notes"]}, "looked up by 'notes'.*which are id, note, placed_at, lines.id"),
        ({"lookups": ["total"]}, "looked up by 'total'"),
        *[
            ({"key": key}, "is no pattern of keys")
            for key in (7, "", "a:{id}", "a:{version}", "{id}:{version}", "{version}:{version}:{id}", "a b:{version}:{id}",
                        "cdc:{version}:{id}", "{version}{id}")
        ],
    ],
)  # fmt: skip
def test_options_that_say_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        RedisSink(
            url=lambda: "redis://there",
            target="o",
            projection="o-v1",
            shape=SHAPE,
            options=options,
            settings=RedisSettings(),
        )
