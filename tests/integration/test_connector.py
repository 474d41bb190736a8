"""The connector's life against a real Connect, Debezium and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import uuid4

import psycopg
import pytest
import pytest_asyncio
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors.sources import lifecycle, postgres
from connectors.sources.debezium import ConnectorDefinition
from pipeline.addresses import ConnectAddress
from pipeline.errors import ConnectorFailed, NoPrimaryKey, SourceUnavailable, UnknownTable
from pipeline.settings import Endpoints, Settings
from pipeline.stack.connect import secrets_file

pytestmark = pytest.mark.stack


@dataclass(frozen=True)
class Place:
    """A database of the test's own, and how its connector gets there."""

    name: str
    dsn: str
    connect_url: str
    password: str

    def definition(self, *tables: str, **changes: object) -> ConnectorDefinition:
        given = {"name": self.name, "tables": tables or ("shop.orders",), **changes}
        return ConnectorDefinition.model_validate(given)

    async def apply(self, definition: ConnectorDefinition, password: str | None = None) -> lifecycle.ConnectorApplied:
        return await lifecycle.apply(
            definition,
            connect_at=ConnectAddress(self.connect_url),
            source_dsn=self.dsn,
            password=password or self.password,
        )


@pytest.fixture
def database(stack: Endpoints, stack_settings: Settings) -> Iterator[Place]:
    name = f"rec_it_{uuid4().hex[:8]}"
    dsn = make_conninfo(stack.postgres, dbname=name)
    with psycopg.connect(stack.postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.orders (id int PRIMARY KEY, note text)")
        connection.execute("CREATE TABLE shop.lines (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE shop.keyless (id int)")
    yield Place(name, dsn, stack.connect, f"${{file:{secrets_file(stack_settings)}:source.password}}")
    with psycopg.connect(stack.postgres, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def place(database: Place) -> AsyncIterator[Place]:
    yield database
    await lifecycle.delete(
        database.name,
        connect_at=ConnectAddress(database.connect_url),
        definition=database.definition(),
        source_dsn=database.dsn,
    )


@pytest.fixture
def reader(place: Place) -> Iterator[str]:
    """A user who may replicate but not read the tables, with the password that the stack's secret has."""
    name, password = f"{place.name}_reader", conninfo_to_dict(place.dsn)["password"]
    with psycopg.connect(place.dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN REPLICATION PASSWORD '{password}'")
    yield name
    with psycopg.connect(place.dsn, autocommit=True) as admin:
        admin.execute(f"DROP OWNED BY {name}")
        admin.execute(f"DROP ROLE {name}")


async def test_applying_twice_changes_nothing_the_second_time(place: Place) -> None:
    definition = place.definition()
    first = await place.apply(definition)
    assert (first.outcome, first.status.running) == ("created", True)
    assert first.created_tables == ("cdc.heartbeat", "cdc.signals")
    second = await place.apply(definition)
    assert (second.outcome, second.changes, second.created_tables) == ("unchanged", (), ())


async def test_a_changed_definition_is_an_update_that_says_what_is_new(place: Place) -> None:
    await place.apply(place.definition("shop.orders"))
    wider = place.definition("shop.orders", "shop.lines")
    plan = await lifecycle.plan(
        wider, connect_at=ConnectAddress(place.connect_url), source_dsn=place.dsn, password=place.password
    )
    assert (plan.outcome, [change.key for change in plan.changes]) == ("updated", ["table.include.list"])
    done = await place.apply(wider)
    assert (done.outcome, done.added_tables, done.status.running) == ("updated", ("shop.lines",), True)


async def test_the_heartbeat_writes_the_source_log_into_the_captured_table(place: Place) -> None:
    await place.apply(place.definition(heartbeat_ms=200))
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        system = connection.execute("SELECT system_identifier::text FROM pg_control_system()").fetchone()
        async with asyncio.timeout(30):
            while (beat := connection.execute("SELECT system_id FROM cdc.heartbeat").fetchone()) is None:
                await asyncio.sleep(0.1)
    assert beat == system


async def test_pause_resume_restart_and_delete(place: Place) -> None:
    definition, url = place.definition(), ConnectAddress(place.connect_url)
    await place.apply(definition)
    assert (await lifecycle.pause(place.name, connect_at=url)).state == "PAUSED"
    assert (await place.apply(definition)).status.state == "PAUSED"
    assert (await lifecycle.resume(place.name, connect_at=url)).running
    assert (await lifecycle.restart(place.name, connect_at=url)).running
    found = await asyncio.to_thread(postgres.slot, place.dsn, definition.slot)
    assert found is not None and found.name == definition.slot
    done = await lifecycle.delete(place.name, connect_at=url, definition=definition, source_dsn=place.dsn)
    assert (done.connector, done.slot, done.publication) == (True, True, True)
    again = await lifecycle.delete(place.name, connect_at=url, definition=definition, source_dsn=place.dsn)
    assert (again.connector, again.slot, again.publication) == (False, False, False)
    with pytest.raises(ConnectorFailed, match=f"no connector {place.name}"):
        await lifecycle.status(place.name, connect_at=url)


async def test_a_user_who_may_not_read_a_table_is_refused_with_the_grant_to_run(place: Place, reader: str) -> None:
    with pytest.raises(ConnectorFailed, match=f"GRANT SELECT ON shop.orders TO {reader};"):
        await place.apply(place.definition(database={"user": reader}))
    assert place.name not in await lifecycle.statuses(connect_at=ConnectAddress(place.connect_url))


def let_read(place: Place, reader: str) -> None:
    with psycopg.connect(place.dsn, autocommit=True) as admin:
        admin.execute(f"GRANT USAGE ON SCHEMA shop TO {reader}")
        admin.execute(f"GRANT SELECT ON shop.orders TO {reader}")


async def test_a_task_that_fails_is_reported_with_the_databases_words(place: Place, reader: str) -> None:
    let_read(place, reader)
    definition = place.definition(database={"user": reader})
    with pytest.raises(ConnectorFailed, match=r"permission denied|must be owner") as failed:
        await place.apply(definition)
    assert conninfo_to_dict(place.dsn)["password"] not in str(failed.value)


async def test_a_wrong_password_is_reported_without_the_password(place: Place, reader: str) -> None:
    let_read(place, reader)
    with psycopg.connect(place.dsn, autocommit=True) as admin:
        admin.execute(f"ALTER ROLE {reader} PASSWORD 'another-secret'")
    with pytest.raises(ConnectorFailed, match="password authentication failed") as failed:
        await place.apply(place.definition(database={"user": reader}))
    assert conninfo_to_dict(place.dsn)["password"] not in str(failed.value)


async def test_a_table_that_is_missing_or_has_no_key_is_refused_and_nothing_is_created(place: Place) -> None:
    with pytest.raises(UnknownTable, match=r"no table shop\.order;"):
        await place.apply(place.definition("shop.order"))
    with pytest.raises(NoPrimaryKey, match=r"shop\.keyless"):
        await place.apply(place.definition("shop.keyless"))
    assert place.name not in await lifecycle.statuses(connect_at=ConnectAddress(place.connect_url))


async def test_a_connect_that_is_away_is_unavailable_in_a_sentence() -> None:
    with pytest.raises(SourceUnavailable, match=r"Kafka Connect at http://127\.0\.0\.1:9 can't be reached"):
        await lifecycle.status("shop", connect_at=ConnectAddress("http://127.0.0.1:9"))
