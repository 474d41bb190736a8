"""The Postgres sink keeps the promises of every sink, against a real server."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
from postgres_lab import PostgresServer
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sink_contract import SECRET, SHAPE, Lab, Order, PartsContract, ServerOfParts, delete, put, text

from connectors.sinks import open_sink
from connectors.sinks.postgres import PostgresSink, encode
from pipeline.authoring.projection import Projection, postgres
from pipeline.errors import DefinitionError, NotAllowed, SettingsError, SinkError, SinkUnavailable
from pipeline.ports import APPLIED, STALE, Rejected, Sink, Throttled, Write
from pipeline.settings import Endpoints, PostgresSettings, Settings
from tests.support.proxy import proxied

pytestmark = pytest.mark.stack


class TestPostgresSink(PartsContract):
    # jsonb has no NUL, and no half of a pair
    BAD = '{"id":1,"nonsense":"\\u0000"}'
    UNSTORABLE = frozenset({r"a\u0000b", r"a\ud800b"})

    @pytest.fixture
    def prefix(self) -> str:
        return f"t_{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def server(self, database: str, prefix: str) -> ServerOfParts:
        return PostgresServer(database, prefix)

    @pytest.fixture
    def own(self, server: PostgresServer) -> PostgresServer:
        return server

    @pytest.fixture
    async def columns(self, lab: Lab, own: PostgresServer) -> AsyncIterator[PostgresSink]:
        sink = own.open(lab.projection(1), columns=True, indexes=["note", "lines"])
        lab.opened.append(sink)
        await sink.prepare()
        yield sink

    @pytest.mark.edge_case(47)
    async def test_after_a_claim_an_older_owner_writes_nothing_at_all(self, lab: Lab, own: PostgresServer) -> None:
        old, new = await lab.prepared(), lab.sink()
        before = (await old.claim("a", 0)).epoch
        assert await delete(old, "gone", 5, epoch=before) == APPLIED
        await new.claim("b", 0)
        # the deletes of the old owner are forgotten, and yet it can't undo them
        assert await own.ask(f"SELECT count(*) FROM {own.table(lab.projection(1))}") == [(0,)]
        assert await put(old, "gone", 6, epoch=before) == STALE
        assert await put(old, "never seen", 7, epoch=before) == STALE
        assert await new.count() == 0

    async def test_a_claim_waits_for_the_write_that_is_under_way(self, lab: Lab, own: PostgresServer) -> None:
        old, new = await lab.prepared(), lab.sink()
        before = (await old.claim("a", 0)).epoch
        table = own.table(lab.projection(1))
        async with await psycopg.AsyncConnection.connect(own.dsn) as other:
            await put(old, "1", 1, epoch=before)
            await other.execute(f"SELECT 1 FROM {table} WHERE _id = '1' FOR UPDATE".encode())
            writing = asyncio.create_task(put(old, "1", 2, epoch=before, note="mine"))
            waiting = f"SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{lab.prefix}%'"
            while not await own.ask(f"{waiting} AND query LIKE 'INSERT%'"):
                await asyncio.sleep(0)
            claiming = asyncio.create_task(new.claim("b", 0))
            while len(await own.ask(waiting)) < 2:
                await asyncio.sleep(0)
            assert not claiming.done()
        assert await writing == APPLIED
        assert (await claiming).epoch == before + 1

    async def test_one_write_is_seen_whole_or_not_at_all(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        await sink.switch()
        seen: set[tuple[int, int]] = set()

        async def look() -> None:
            query = f"SELECT count(*), count(DISTINCT document ->> 'note') FROM {own.schema}.orders"
            seen.update([tuple(row) for row in await own.ask(query)])

        async def writes() -> None:
            for n in range(1, 15):
                documents = [Write(str(i), n, text(note=str(n))) for i in range(400)]
                assert set(await sink.write(documents, 0)) == {APPLIED}

        writing = asyncio.create_task(writes())
        while not writing.done():
            await look()
        await writing
        await look()
        assert seen <= {(0, 0), (400, 1)} and (400, 1) in seen

    async def test_columns_have_the_types_of_the_fields(self, columns: PostgresSink, own: PostgresServer) -> None:
        document = {
            "id": 1, "total": "12345678901234567890.10", "note": "é", "placed_at": "2024-01-01T00:05:00.123456Z",
            "extra": {"a": [1]}, "lines": [{"id": 2, "order_id": 1, "product": None}],
        }  # fmt: skip
        bare = {"id": 2, "total": None, "note": None, "placed_at": None, "extra": None, "lines": []}
        writes = [Write("1", 1, json.dumps(document)), Write("2", 1, json.dumps(bare))]
        assert await columns.write(writes, 0) == [APPLIED, APPLIED]
        assert (await columns.read(["1"]))["1"].document == document
        await columns.switch()
        shown = "id, total::text, note, extract(year FROM placed_at)::int, extra #>> '{a,0}', jsonb_array_length(lines)"
        rows = await own.ask(f"SELECT {shown} FROM {own.schema}.orders ORDER BY id")
        assert rows == [(1, "12345678901234567890.10", "é", 2024, "1", 1), (2, None, None, None, None, 0)]

    @pytest.mark.edge_case(48)
    async def test_a_value_that_its_column_can_not_take_is_rejected_alone(self, columns: PostgresSink) -> None:
        writes = [Write(str(n), 1, text(total="lots" if n in (3, 4) else "1.5")) for n in range(9)]
        outcomes = await columns.write(writes, 0)
        assert [n for n, outcome in enumerate(outcomes) if outcome != APPLIED] == [3, 4]
        assert isinstance(outcomes[3], Rejected) and "lots" in outcomes[3].reason

    async def test_declared_indexes_are_used(self, columns: PostgresSink, own: PostgresServer, lab: Lab) -> None:
        await columns.write([Write(str(n), 1, text(note=str(n), lines=[{"id": n}])) for n in range(3000)], 0)
        await own.ask(f"ANALYZE {own.table(lab.projection(1))}")
        await columns.switch()
        for condition in ("note = '77'", """lines @> '[{"id": 77}]'"""):
            (explained, *_), *_ = await own.ask(
                f"EXPLAIN (FORMAT JSON) SELECT id FROM {own.schema}.orders WHERE {condition}"
            )
            assert "Seq Scan" not in json.dumps(explained), condition

    async def test_a_switch_to_a_table_with_other_columns_keeps_who_may_read(
        self, lab: Lab, columns: PostgresSink, own: PostgresServer
    ) -> None:
        plain = await lab.prepared(2)
        role = f"reader_{lab.prefix}"
        await put(columns, "which", 1, note="v1")
        await put(plain, "which", 1, note="v2")
        await columns.switch()
        await own.ask(f"CREATE ROLE {role}", f"GRANT SELECT ON {own.schema}.orders TO {role}")
        try:
            await plain.switch()
            assert await own.visible() == "v2"
            assert await own.ask(f"SELECT has_table_privilege('{role}', '{own.schema}.orders', 'SELECT')") == [(True,)]
        finally:
            await own.ask(f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    async def test_a_table_with_other_columns_is_not_taken_for_ours(self, lab: Lab, own: PostgresServer) -> None:
        await lab.prepared()
        other = own.open(lab.projection(1), columns=True)
        lab.opened.append(other)
        with pytest.raises(SinkError, match=r"other columns .*placed_at.*raise the projection's version"):
            await other.prepare()

    async def test_nothing_is_sent_when_it_is_not_allowed_and_nothing_stays_when_it_no_longer_is(
        self, lab: Lab
    ) -> None:
        sink = await lab.prepared()
        for answers in ([False], [True, False]):
            said = iter(answers)
            with pytest.raises(NotAllowed):
                await sink.write([Write("1", 1, text())], 0, lambda said=said: next(said))
        assert await sink.count() == 0

    async def test_a_connection_that_ended_is_replaced(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cdc'"
        await own.ask(f"{ended} AND datname = current_database()")
        with pytest.raises(SinkUnavailable):
            await put(sink, "1", 2)
        assert await put(sink, "1", 2) == APPLIED

    async def test_a_server_that_falls_silent_is_told_in_time(self, lab: Lab, own: PostgresServer) -> None:
        to = conninfo_to_dict(own.dsn)
        with proxied(str(to["host"]), int(to["port"])) as proxy:
            own.timeout = 0.5
            sink = own.open(lab.projection(1), dsn=make_conninfo(own.dsn, host="127.0.0.1", port=proxy.port))
            lab.opened.append(sink)
            await sink.prepare()
            await put(sink, "1", 1)
            proxy.mood = "silent"
            async with asyncio.timeout(20):
                for attempt in (put(sink, "1", 2), sink.count(), sink.count()):
                    with pytest.raises(SinkUnavailable):
                        await attempt
            proxy.mood = "pass"
            await sink.close()
        assert await put(lab.sink(), "1", 3) == APPLIED

    async def test_a_lost_race_between_transactions_is_tried_again(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        table = own.table(lab.projection(1))
        await own.ask(
            f"CREATE FUNCTION {own.schema}.lost() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected'; END $$",
            f"CREATE TRIGGER lost BEFORE INSERT ON {table} EXECUTE FUNCTION {own.schema}.lost()",
        )
        outcome = await put(sink, "1", 1)
        assert isinstance(outcome, Throttled) and "deadlock" in outcome.reason

    async def test_an_error_never_shows_the_row(self, lab: Lab) -> None:
        sink = await lab.prepared()
        secret = "very private " * 20
        (outcome,) = await sink.write([Write("1", 1, f'{{"id":1,"private":"{secret}","bad":"\\u0000"}}')], 0)
        assert isinstance(outcome, Rejected) and secret not in outcome.reason

    async def test_a_wrong_password_is_said_without_showing_it(self, own: PostgresServer, lab: Lab) -> None:
        sink = own.open(lab.projection(1), dsn=make_conninfo(own.dsn, user="nobody_here", password=SECRET))
        lab.opened.append(sink)
        with pytest.raises(SinkError) as caught:
            await sink.prepare()
        assert SECRET not in str(caught.value) and SECRET not in repr(sink)


def test_a_target_is_opened_with_the_settings(stack: Endpoints) -> None:
    own = Settings(postgres=PostgresSettings(dsn=f"postgresql://me:{SECRET}@nowhere/db"))  # type: ignore[arg-type]
    assert SECRET not in json.dumps(own.shown()) + repr(own)
    target = postgres("crm.orders", columns=True)
    sink: Sink = open_sink(target, Projection(Order, (target,), "orders", 3, build=2), SHAPE, own)
    assert sink.name == "postgres:crm.orders_v3_2" and sink.atomic


def test_what_is_no_uri_is_said_without_showing_it() -> None:
    with pytest.raises(SettingsError, match="no libpq URI") as caught:
        PostgresSink(dsn=lambda: f"nonsense {SECRET}", target="orders", projection="orders-v1", shape=SHAPE, options={})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shards": 1}, "no option shards; known are children, columns, indexes"),
        ({"columns": "yes"}, "neither True nor False"),
        ({"indexes": "note"}, "no list of fields"),
        ({"indexes": ["nothing"]}, "Order has no field nothing; it has id, total"),
        ({"indexes": ["note.more"]}, "note has no fields of its own"),
    ],
)
def test_options_that_say_nothing_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        PostgresSink(dsn=lambda: "", target="orders", projection="orders-v1", shape=SHAPE, options=options)


def test_what_can_not_be_sent_is_refused_before_anything_is_sent() -> None:
    lines, refused = encode([Write("1", 1, "{}"), Write("\ud800", 1, "{}"), Write("2", 1, "\0"), Write("", 1, None)])
    assert len(lines) == 1 and set(refused) == {1, 2, 3}
