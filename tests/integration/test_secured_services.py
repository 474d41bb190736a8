"""Every service behind TLS with verification and passwords: a read model from the source on; wrong ones are refused, and said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from connectors.sinks.kafka import KafkaSink
from connectors.sources.notices import end_offsets
from pipeline.addresses import KafkaAddress
from pipeline.authoring.documents import Document
from pipeline.authoring.projection import kafka
from pipeline.authoring.shape import shape_of
from pipeline.demo import truth
from pipeline.errors import SinkError, SourceUnavailable
from pipeline.ports import APPLIED, Stored, Write
from pipeline.reports.doctor import _redis as look_at_redis
from pipeline.settings import Endpoints, KafkaSettings, RedisSettings, Settings
from tests.support.project import Project
from tests.support.proxy import proxied
from tests.support.secured import (
    AUTHORITY,
    PASSWORD,
    TLS,
    USER,
    WRITER,
    Secured,
    postgres_with_tls,
    secured,
    server_context,
)

pytestmark = pytest.mark.stack

T = TypeVar("T")
CLIENT = TLS / "client.pem"
READER, READS = "cdc_reader", "nobody reads this"
"""A role with no more rights than a connector needs, and its password."""


class Plain(Document, source="shop.plain"):
    id: int


@pytest.fixture(scope="module")
def services(stack: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    dsn = make_conninfo(stack.postgres, user=READER, password=READS)
    with postgres_with_tls(stack), secured(tmp_path_factory.mktemp("secured"), dsn) as found:
        yield found


def _give_rights(project: Project) -> None:
    said = project.cdc("connector", "grants", project.name, "--user", READER).stdout
    with psycopg.connect(project.dsn, autocommit=True) as db:
        db.execute(said.encode())
        db.execute(said.encode())  # they may be run again
        db.execute(f"ALTER ROLE {READER} PASSWORD '{READS}'".encode())


@pytest.fixture(scope="module")
def shop(
    services: Secured, new_project: Callable[[str], Project], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    project = new_project("it_sec")
    project.password = f"${{file:{services.secrets}:source.password}}"
    told = tmp_path_factory.mktemp("secrets") / "kafka"
    told.write_text(PASSWORD + "\n")
    project.settings = {
        "CDC_KAFKA__BOOTSTRAP": services.passwords,
        "CDC_KAFKA__CA": str(AUTHORITY),
        "CDC_KAFKA__USERNAME": USER,
        "CDC_KAFKA__PASSWORD__FILE": str(told),
        "CDC_CONNECT__URL": services.connect,
        "CDC_CONNECT__CA": str(AUTHORITY),
        "CDC_REDIS__URL": services.redis,
        "CDC_REDIS__CA": str(AUTHORITY),
        "CDC_REDIS__CERTIFICATE": str(CLIENT),
        "CDC_SOURCE__DSN": make_conninfo(
            project.dsn, user=READER, password=READS, sslmode="verify-full", sslrootcert=str(AUTHORITY)
        ),
    }
    project.before_connector = _give_rights
    there = urlsplit(project.endpoints.elasticsearch)
    assert there.hostname is not None and there.port is not None
    with proxied(there.hostname, there.port, server_context()) as proxy:
        project.settings |= {
            "CDC_ELASTICSEARCH__URL": f"https://127.0.0.1:{proxy.port}",
            "CDC_ELASTICSEARCH__CA": str(AUTHORITY),
        }
        project.create(
            orders=50,
            also=f'redis("{project.name}:orders")',
            definition='[extra]\n"publication.autocreate.mode" = "disabled"\n',
        )
        yield project
        del project.settings["CDC_SOURCE__DSN"]  # the reader may not drop what it does not own
        project.remove()


def test_a_read_model_comes_and_is_kept_through_services_that_verify(services: Secured, shop: Project) -> None:
    shop.start_worker()
    shop.wait_for(truth.position(shop.dsn), seconds=90)
    shop.assert_equal()
    written = shop.sql("UPDATE shop.customers SET name = 'Grace' WHERE id = 1")
    shop.wait_for(written)
    shop.assert_equal()
    shop.cdc("wait", f"{shop.name}-orders", "--now", "--timeout", "60")
    verifying = f"{services.redis}?ssl_ca_certs={AUTHORITY}&ssl_certfile={CLIENT}"
    assert truth.difference(shop.dsn, truth.ORDERS, truth.in_redis(verifying, f"{shop.name}:orders")).none
    with shop.connection() as db:
        streams = db.execute(
            "SELECT a.usename, s.ssl FROM pg_stat_replication a JOIN pg_stat_ssl s USING (pid)"
            " JOIN pg_replication_slots o ON o.active_pid = a.pid WHERE o.database = current_database()"
        ).fetchall()
    assert streams == [(READER, True)], "the connector reads by TLS, as a user with few rights"
    shop.cdc("doctor")
    shop.cdc("verify", f"{shop.name}-orders", "--all")
    said = shop.log(10_000) + shop.cdc("config", "show").stdout
    assert PASSWORD not in said and READS not in said


def test_a_source_whose_certificate_is_not_known_is_not_read(shop: Project) -> None:
    right = shop.settings["CDC_SOURCE__DSN"]
    wrong = make_conninfo(right, sslrootcert=str(CLIENT))
    refused = shop.cdc("tables", "pull", "--from", wrong, check=False)
    assert refused.returncode and "certificate verify failed" in refused.stderr
    assert READS not in refused.stderr


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_kafka_lets_a_user_in_by_every_mechanism(services: Secured, mechanism: str) -> None:
    address = _kafka(bootstrap=services.passwords, ca=AUTHORITY, username=USER, password=PASSWORD, mechanism=mechanism)
    assert _run(end_offsets(address, "cdc-connect-config"))


def test_kafka_lets_a_client_in_by_its_certificate(services: Secured) -> None:
    address = _kafka(bootstrap=services.certificates, ca=AUTHORITY, certificate=CLIENT)
    assert _run(end_offsets(address, "cdc-connect-config"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"password": "guessed"}, "user name or password"),
        ({"ca": None}, "certificate"),
        ({"username": None, "password": None, "ca": None, "tls": False}, "TLS"),
    ],
)
def test_who_is_not_let_into_kafka_is_told_why(services: Secured, wrong: dict[str, object], said: str) -> None:
    right = {"bootstrap": services.passwords, "ca": AUTHORITY, "tls": True, "username": USER, "password": PASSWORD}
    with pytest.raises(SourceUnavailable, match=said) as refused:
        _run(end_offsets(_kafka(**{**right, **wrong}), "cdc-connect-config"))
    assert "guessed" not in str(refused.value)


async def _documents(address: KafkaAddress, name: str) -> None:
    """All that a sink does in Kafka."""
    target = kafka(name, partitions=2)
    own = Settings(kafka=KafkaSettings())
    opened = [
        KafkaSink(
            kafka=address, target=name, projection=f"documents-v{version}", shape=shape_of(Plain),
            options=target.options, settings=own.kafka,
        )
        for version in (1, 2)
    ]  # fmt: skip
    first, second = opened
    try:
        for sink in opened:
            await sink.prepare()
            epoch = (await sink.claim("a", 0)).epoch
            assert await sink.write([Write("1", 1, '{"id": 1}')], epoch) == [APPLIED]
            await sink.switch()
        assert [page async for page in first.scan()] == [{"1": Stored(1, {"id": 1})}] and await second.count() == 1
    finally:
        for sink in opened:
            await sink.drop()
            await sink.close()


def test_a_user_with_the_rights_of_the_guide_writes_documents_to_kafka_and_nobody_else_s(services: Secured) -> None:
    options = {"ca": AUTHORITY, "username": WRITER, "password": PASSWORD}
    address = _kafka(bootstrap=services.passwords, **options)
    _run(_documents(address, "it_sec.documents"))
    with pytest.raises(SinkError, match=r"not allowed|did not make") as refused:
        _run(_documents(address, "other.documents"))
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "guessed"}, "lets nobody in"),
        ({"ca": CLIENT}, "certificate"),
        ({"certificate": None}, "can't be reached"),
    ],
)
def test_who_is_not_let_into_redis_is_told_why(services: Secured, wrong: dict[str, object], said: str) -> None:
    right = {"url": services.redis, "ca": AUTHORITY, "certificate": CLIENT}
    if "url" in wrong:
        wrong = {"url": services.redis.replace(PASSWORD, str(wrong["url"]))}
    own = RedisSettings(**{**right, **wrong})  # type: ignore[arg-type]
    (finding,) = _run(look_at_redis(Settings(redis=own)))
    assert finding.level == "error" and said in finding.found
    assert "guessed" not in finding.found and PASSWORD not in finding.found


def _run(asking: Coroutine[Any, Any, T]) -> T:
    """The answer, once the loop has closed the connections that were refused: closing one by TLS takes it some turns."""

    async def asked() -> T:
        try:
            return await asking
        finally:
            await asyncio.sleep(0.2)

    return asyncio.run(asked())


def _kafka(**given: object) -> KafkaAddress:
    return Settings(kafka=KafkaSettings(**given)).kafka_address()  # type: ignore[arg-type]
