"""Real services that let nobody in without a certificate or a password: Kafka, Connect, Redis, and TLS for Postgres."""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg

from pipeline.settings import Endpoints, Settings
from pipeline.stack import connect, kafka, processes, redis, users
from pipeline.stack.java import kafka_java, properties
from pipeline.stack.processes import Command
from pipeline.stack.site import Site, make_site
from tests.support.project import REPOSITORY, until

TLS = REPOSITORY / "tests/fixtures/tls"
AUTHORITY = TLS / "authority.pem"
USER, PASSWORD = "cdc", "not-to-be-seen"
WRITER = "writer"
"""A user of Kafka's, with the same password, who may do what a sink does and nothing else."""
KAFKA_RIGHTS = {
    "--topic=it_sec": ("Create", "Describe", "DescribeConfigs", "Read", "Write", "Delete"),
    "--transactional-id=cdc-it_sec": ("Describe", "Write"),
}
"""As docs/guides/kafka.md says."""
REDIS_RIGHTS = "~it_sec* ~cdc:it_sec* +@read +@write +@scripting +@connection +info"
"""As docs/guides/redis.md says."""
_MODULE = "org.apache.kafka.common.security"


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(TLS / "server.pem")
    return context


@dataclass
class Secured:
    """One Kafka, with a listener for certificates and one for passwords, a Connect and a Redis beside it."""

    site: Site
    certificates: str
    """Bootstrap server of the listener that asks for the client's certificate."""
    passwords: str
    """Bootstrap server of the listener that asks for a user's password (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512)."""
    connect: str
    """Connect's REST address; it has reached Kafka by a password."""
    redis: str
    """Redis' URL; it asks for the client's certificate and the password of a user who may do what a sink does."""

    @property
    def secrets(self) -> Path:
        return connect.secrets_file(self.site.settings)


@contextmanager
def secured(folder: Path, source_dsn: str) -> Iterator[Secured]:
    """The services, ended and gone afterwards; Connect's secrets are of this source."""
    folder.chmod(0o755)
    site = make_site(Settings(state_dir=folder, source={"dsn": source_dsn}))  # type: ignore[arg-type]
    names = ("kafka-certificates", "kafka-passwords")
    found = Secured(
        site,
        *(f"127.0.0.1:{site.port(name)}" for name in names),
        connect=f"https://127.0.0.1:{site.port(connect.NAME)}",
        redis=f"rediss://{USER}:{PASSWORD}@127.0.0.1:{site.port('redis-tls')}/0",
    )
    try:
        processes.spawn(_redis(site), site.user, site.log(redis.NAME), site.pidfile(redis.NAME))
        _start(site, kafka.NAME, _with_user(site), "server.properties", _kafka(site, found))
        until(lambda: kafka.answers(site), 60, "Kafka is up")
        _give_rights(site)
        _start(site, connect.NAME, connect.prepare(site), "connect.properties", _connect(site, found))
        until(lambda: _serves(found.connect), 90, "Connect is up")
        yield found
    finally:
        for name in (connect.NAME, kafka.NAME, redis.NAME):
            processes.stop(site.pidfile(name))


def _start(site: Site, name: str, command: Command, file: str, more: dict[str, object]) -> None:
    """Start a service with lines added to its configuration, which overrule those before them."""
    with (site.directory(name) / file).open("a", encoding="utf-8") as configuration:
        configuration.write("\n" + properties(more))
    processes.spawn(command, site.user, site.log(name), site.pidfile(name))


def _copied(site: Site, name: str, file: str) -> Path:
    """A certificate where the service's user can read it."""
    copy = site.directory(name) / file
    copy.write_bytes((TLS / file).read_bytes())
    users.give(copy, site.user)
    return copy


def _kafka(site: Site, found: Secured) -> dict[str, object]:
    plain, controller = site.port(kafka.NAME), site.port("kafka-controller")
    public = f"PLAINTEXT://127.0.0.1:{plain},CERTIFICATES://{found.certificates},PASSWORDS://{found.passwords}"
    scram = f"{_MODULE}.scram.ScramLoginModule required;"
    return {
        "listeners": f"{public},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": public,
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,CERTIFICATES:SSL,PASSWORDS:SASL_SSL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": _copied(site, kafka.NAME, "server.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": _copied(site, kafka.NAME, "authority.pem"),
        "listener.name.certificates.ssl.client.auth": "required",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{USER};User:CN=client",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
        "listener.name.passwords.plain.sasl.jaas.config": f'{_MODULE}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
        "listener.name.passwords.scram-sha-256.sasl.jaas.config": scram,
        "listener.name.passwords.scram-sha-512.sasl.jaas.config": scram,
    }


def _with_user(site: Site) -> Command:
    """Kafka's log directory made anew with a user in it, who may come by either SCRAM."""
    command, folder = kafka.prepare(site), site.directory(kafka.NAME)
    shutil.rmtree(folder / "data")
    logins = [f"SCRAM-SHA-{bits}=[name={USER},password={PASSWORD}]" for bits in (256, 512)]
    logins.append(f"SCRAM-SHA-512=[name={WRITER},password={PASSWORD}]")
    tool = ["kafka.tools.StorageTool", "format", "-t", "A" * 22, "-c", str(folder / "server.properties")]
    argv = kafka_java(folder, "256m", *tool, *(part for user in logins for part in ("--add-scram", user)))
    processes.run(Command(argv, cwd=folder), site.user, "Kafka's format")
    return command


def _give_rights(site: Site) -> None:
    folder = site.directory(kafka.NAME)
    for what, operations in KAFKA_RIGHTS.items():
        rights = [f"--allow-principal=User:{WRITER}", *(f"--operation={operation}" for operation in operations)]
        tool = ["org.apache.kafka.tools.AclCommand", "--bootstrap-server", kafka.address(site), "--add", *rights]
        argv = kafka_java(folder, "256m", *tool, what, "--resource-pattern-type=prefixed")
        processes.run(Command(argv, cwd=folder), site.user, "Kafka's rights")


def _connect(site: Site, found: Secured) -> dict[str, object]:
    authority, server = (_copied(site, connect.NAME, file) for file in ("authority.pem", "server.p12"))
    login = f'{_MODULE}.scram.ScramLoginModule required username="{USER}" password="{PASSWORD}";'
    client: dict[str, object] = {
        "bootstrap.servers": found.passwords,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": login,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority,
    }
    everyone = {f"{who}{key}": item for who in ("", "producer.", "consumer.", "admin.") for key, item in client.items()}
    rest: dict[str, object] = {
        "listeners": found.connect,
        "rest.advertised.listener": "https",
        "listeners.https.ssl.keystore.type": "PKCS12",
        "listeners.https.ssl.keystore.location": server,
        "listeners.https.ssl.keystore.password": "fixture",
    }
    return {**everyone, **rest}


def _redis(site: Site) -> Command:
    command = redis.prepare(site)
    pair, authority = (_copied(site, redis.NAME, file) for file in ("server.pem", "authority.pem"))
    file = site.directory(redis.NAME) / "redis.conf"
    file.write_text(
        f"tls-port {site.port('redis-tls')}\ntls-cert-file {pair}\ntls-key-file {pair}\ntls-ca-cert-file {authority}\n"
        f"user default off\nuser {USER} on >{PASSWORD} {REDIS_RIGHTS}\n"
    )
    users.give(file, site.user)
    server, *options = command.argv
    return Command([server, str(file), *options], cwd=command.cwd)


def _serves(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(
            f"{url}/connectors", verify=ssl.create_default_context(cafile=AUTHORITY), timeout=5, trust_env=False
        ).is_success
    return False


@contextmanager
def postgres_with_tls(endpoints: Endpoints) -> Iterator[None]:
    """The running Postgres takes TLS too; as it was afterwards."""
    with psycopg.connect(endpoints.postgres, autocommit=True) as db:
        folder = Path(str(db.execute("SHOW data_directory").fetchone()[0]))  # type: ignore[index]
        owner = folder.stat()
        for name in ("server.pem", "authority.pem"):
            copy = folder / name
            copy.write_bytes((TLS / name).read_bytes())
            copy.chmod(0o600)
            with contextlib.suppress(PermissionError):
                os.chown(copy, owner.st_uid, owner.st_gid)
        files = {"ssl_cert_file": "server.pem", "ssl_key_file": "server.pem", "ssl": "on"}
        for name, item in files.items():
            db.execute(f"ALTER SYSTEM SET {name} = '{item}'".encode())
        db.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            for name in files:
                db.execute(f"ALTER SYSTEM RESET {name}".encode())
            db.execute("SELECT pg_reload_conf()")
