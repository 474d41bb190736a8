"""The local stack's services answer for real, and come back as they were."""

from __future__ import annotations

import os
from dataclasses import replace

import httpx
import psycopg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from redis import Redis

from connectors.sources.mariadb_client import connected
from pipeline.addresses import MariadbAddress
from pipeline.errors import SourceError
from pipeline.settings import Endpoints, Settings
from pipeline.stack import stack as local_stack
from pipeline.stack.artefacts import VERSIONS
from pipeline.stack.connect import MARIADB_PLUGIN, PLUGIN, secrets_file

pytestmark = pytest.mark.stack


def test_postgres_decodes_logically(stack: Endpoints) -> None:
    with psycopg.connect(stack.postgres) as connection:
        assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
        assert connection.execute("SHOW server_version").fetchone() == (VERSIONS["postgres"],)
        assert connection.execute("SELECT current_database()").fetchone() == ("shop",)


async def test_kafka_makes_topics_only_when_told(stack: Endpoints) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka, request_timeout_ms=2_000)
    await producer.start()
    try:
        with pytest.raises(KafkaError):
            await producer.send_and_wait("stack-test-never-made", b"")
    finally:
        await producer.stop()
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka)
    await admin.start()
    try:
        assert "stack-test-never-made" not in await admin.list_topics()
    finally:
        await admin.close()


def test_connect_has_debezium_and_the_file_of_passwords(stack: Endpoints, stack_settings: Settings) -> None:
    plugins = httpx.get(f"{stack.connect}/connector-plugins").json()
    assert {plugin["class"]: plugin["version"] for plugin in plugins}[PLUGIN] == VERSIONS["connect"]
    secrets = secrets_file(stack_settings)
    assert secrets.read_text("utf-8").startswith("source.password=")
    assert secrets.stat().st_mode & 0o777 == 0o600


def test_elasticsearch_keeps_and_finds_a_document(stack: Endpoints) -> None:
    with httpx.Client(base_url=stack.elasticsearch) as client:
        client.put("/stack-test/_doc/1?refresh=true", json={"name": "Ada"}).raise_for_status()
        try:
            found = client.get("/stack-test/_search", params={"q": "name:ada"}).json()
            assert found["hits"]["total"]["value"] == 1
        finally:
            client.delete("/stack-test").raise_for_status()


def test_redis_throws_nothing_away_and_keeps_a_log(stack: Endpoints) -> None:
    with Redis.from_url(stack.redis) as client:
        info = client.info()
    assert (info["redis_version"], info["maxmemory_policy"], info["aof_enabled"]) == (
        VERSIONS["redis"],
        "noeviction",
        1,
    )


def test_mariadb_writes_rows_and_gtids_and_its_connectors_user_may_read_them(
    mariadb: str, stack_settings: Settings
) -> None:
    wanted = {"log_bin": "ON", "binlog_format": "ROW", "binlog_row_image": "FULL", "gtid_strict_mode": "ON"}
    address = MariadbAddress.of(mariadb)
    with connected(address) as root:
        assert root.one("SELECT version()")[0].startswith(VERSIONS["mariadb"])
        assert root.one("SELECT database()") == ("shop",)
        for name, value in wanted.items():
            assert root.one(f"SHOW GLOBAL VARIABLES LIKE '{name}'") == (name, value)
    own = replace(address, user="debezium")
    with connected(own) as session:
        assert session.one("SHOW MASTER STATUS")[0].startswith("binlog.")
    with pytest.raises(SourceError, match="Access denied"), connected(own) as session:
        session.one("CREATE DATABASE other")
    plugins = {
        plugin["class"] for plugin in httpx.get(f"{stack_settings.connect_address().url}/connector-plugins").json()
    }
    assert {PLUGIN, MARIADB_PLUGIN} <= plugins


def test_a_second_up_changes_nothing(stack: Endpoints, stack_settings: Settings) -> None:
    before = {one.name: one.pid for one in local_stack.status(stack_settings).services}
    assert local_stack.up(stack_settings) == stack_settings.endpoints()
    assert {one.name: one.pid for one in local_stack.status(stack_settings).services} == before


def test_status_shows_no_password(stack: Endpoints, stack_settings: Settings) -> None:
    password = psycopg.conninfo.conninfo_to_dict(stack.postgres)["password"]
    assert str(password) not in local_stack.status(stack_settings).model_dump_json()


@pytest.mark.skipif("CDC_TEST_STATE_DIR" in os.environ, reason="others use this stack")
def test_a_killed_service_comes_back_where_it_was_with_its_data(stack: Endpoints, stack_settings: Settings) -> None:
    with psycopg.connect(stack.postgres) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    local_stack.stop_service(stack_settings, "postgres", hard=True)
    states = {one.name: one.state for one in local_stack.status(stack_settings).services}
    assert states.pop("postgres") == "down"
    assert {"kafka", "connect", "elasticsearch", "redis"} <= {*states}
    assert {*states.values()} == {"up"}
    local_stack.start_service(stack_settings, "postgres")
    with psycopg.connect(stack.postgres) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)
        connection.execute("DROP TABLE kept")
