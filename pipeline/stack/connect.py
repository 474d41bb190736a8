"""Kafka Connect of the local stack, one worker with Debezium.

A connector's definition has no password: it says `${file:<path>:source.password}` with the path of `secrets_file`,
a properties file that only the worker's user reads; or `${env:SOURCE_PASSWORD}`, which docker-compose.yml gives too.
"""

from __future__ import annotations

from pathlib import Path

import httpx
from psycopg.conninfo import conninfo_to_dict

from pipeline.addresses import MariadbAddress
from pipeline.settings import Settings
from pipeline.stack import artefacts, mariadb, postgres
from pipeline.stack.files import write_atomically
from pipeline.stack.java import kafka_java, properties
from pipeline.stack.processes import Command
from pipeline.stack.site import Site, listens, open_site

NAME = "connect"
SECRETS = "secrets.properties"
PLUGIN = "io.debezium.connector.postgresql.PostgresConnector"
MARIADB_PLUGIN = "io.debezium.connector.mariadb.MariaDbConnector"


def address(site: Site) -> str:
    """The REST interface."""
    return f"http://127.0.0.1:{site.port(NAME)}"


def secrets_file(settings: Settings) -> Path:
    """The properties file that definitions take passwords from: `${file:<path>:source.password}`."""
    return _secrets(open_site(settings))


def _secrets(site: Site) -> Path:
    return site.home / NAME / SECRETS


def password_key(source: str) -> str:
    """Under which key the password of a source is in there; `source` is a name of the settings' `sources`, or empty."""
    return f"sources.{source}.password" if source else "source.password"


def prepare(site: Site) -> Command:
    """Write the worker's configuration and secrets, and say how to start it."""
    folder = site.directory(NAME)
    dsn = site.settings.source.dsn
    dsns = {"": dsn.get_secret_value() if dsn else postgres.address(site)}
    if site.has(mariadb.NAME):
        dsns[mariadb.NAME] = mariadb.address(site)
    dsns |= {name: own.dsn.get_secret_value() for name, own in site.settings.sources.items() if own.dsn}
    passwords = {name: _password(dsn) for name, dsn in dsns.items()}
    secrets = {password_key(name): password for name, password in passwords.items()}
    write_atomically(_secrets(site), properties(secrets), owner=site.user)
    file = folder / "connect.properties"
    write_atomically(file, _configuration(site), owner=site.user)
    main = "org.apache.kafka.connect.cli.ConnectDistributed"
    env = {"CDC_SECRETS_FILE": str(_secrets(site)), "SOURCE_PASSWORD": passwords[""]}
    if mariadb.NAME in passwords:
        env["MARIADB_PASSWORD"] = passwords[mariadb.NAME]
    return Command(kafka_java(folder, "1g", main, str(file)), cwd=folder, env=env)


def _password(dsn: str) -> str:
    if MariadbAddress.is_one(dsn):
        return MariadbAddress.of(dsn).password.get_secret_value()
    return str(conninfo_to_dict(dsn).get("password") or "")


def _plugins(site: Site) -> dict[str, str]:
    """The packages with a plugin each, and its class."""
    return {"debezium": PLUGIN} | ({"debezium-mariadb": MARIADB_PLUGIN} if site.has(mariadb.NAME) else {})


def _configuration(site: Site) -> str:
    providers = "org.apache.kafka.common.config.provider"
    values: dict[str, object] = {
        "bootstrap.servers": site.settings.kafka.bootstrap or f"127.0.0.1:{site.port('kafka')}",
        "listeners": f"http://127.0.0.1:{site.free_port(NAME)}",
        "rest.advertised.host.name": "127.0.0.1",
        "group.id": "cdc-connect",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": "false",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        "offset.flush.interval.ms": 2000,
        "plugin.path": ",".join(str(artefacts.place(name)) for name in _plugins(site)),
        "plugin.discovery": "service_load",
        "connector.client.config.override.policy": "All",
        "config.providers": "file,env",
        "config.providers.file.class": f"{providers}.FileConfigProvider",
        "config.providers.file.param.allowed.paths": site.home / NAME,
        "config.providers.env.class": f"{providers}.EnvVarConfigProvider",
        "config.providers.env.param.allowlist.pattern": "[A-Z0-9_]*PASSWORD",
        # A worker that died is not waited for: there is no other.
        "scheduled.rebalance.max.delay.ms": 0,
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 2000,
        "task.shutdown.graceful.timeout.ms": 3000,
    }
    for topic, partitions in (("config", None), ("offset", 1), ("status", 1)):
        values[f"{topic}.storage.topic"] = f"cdc-connect-{topic}"
        values[f"{topic}.storage.replication.factor"] = 1
        if partitions:
            values[f"{topic}.storage.partitions"] = partitions
    return properties(values)


def answers(site: Site) -> bool:
    """Whether the worker serves connectors and has found Debezium."""
    if not listens(site.port(NAME)):
        return False
    try:
        with httpx.Client(base_url=address(site), timeout=5, trust_env=False) as client:
            connectors, plugins = client.get("/connectors"), client.get("/connector-plugins")
            found = {plugin["class"] for plugin in plugins.json()}
            return connectors.is_success and found.issuperset(_plugins(site).values())
    except (httpx.HTTPError, ValueError):
        return False
