"""The services of the local stack in one table: how each is prepared, asked, addressed and stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from psycopg.conninfo import conninfo_to_dict

from pipeline.settings import Settings
from pipeline.stack import artefacts, connect, elasticsearch, kafka, mariadb, postgres, redis
from pipeline.stack.processes import Command
from pipeline.stack.site import Site


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    prepare: Callable[[Site], Command]
    """Writes what the service reads and says how to start it."""
    answers: Callable[[Site], bool]
    """Asks the service for real; never raises because it is not there."""
    address: Callable[[Site], str]
    needs: str | None = None
    """The service that has to answer first."""
    stop: signal.Signals = signal.SIGTERM
    patience: float = 300.0
    """Seconds until a start counts as failed; one that ends is noticed at once."""
    asked_for: bool = False
    """It is a part of the stack only where somebody has asked for it, and from then on."""

    @property
    def version(self) -> str:
        return artefacts.VERSIONS[self.name]


SERVICES = {
    service.name: service
    for service in (
        # SIGTERM would let Postgres wait for its clients to leave.
        Service("postgres", postgres.prepare, postgres.answers, postgres.address, stop=signal.SIGINT),
        Service("kafka", kafka.prepare, kafka.answers, kafka.address),
        Service("connect", connect.prepare, connect.answers, connect.address, needs="kafka"),
        Service("elasticsearch", elasticsearch.prepare, elasticsearch.answers, elasticsearch.address),
        Service("redis", redis.prepare, redis.answers, redis.address),
        Service("mariadb", mariadb.prepare, mariadb.answers, mariadb.address, asked_for=True),
    )
}


def given(settings: Settings) -> dict[str, str]:
    """The addresses that the settings name: the stack does not start those services."""
    dsn, url, second = settings.source.dsn, settings.redis.url, settings.sources.get(mariadb.NAME)
    named = {
        "postgres": dsn.get_secret_value() if dsn else None,
        "kafka": settings.kafka.bootstrap,
        "connect": settings.connect.url,
        "elasticsearch": settings.elasticsearch.url,
        "redis": url.get_secret_value() if url else None,
        "mariadb": second.dsn.get_secret_value() if second and second.dsn else None,
    }
    return {name: address for name, address in named.items() if address}


def parts(site: Site) -> dict[str, Service]:
    """The services of this stack, wherever they are."""
    elsewhere = given(site.settings)
    return {n: service for n, service in SERVICES.items() if not service.asked_for or n in elsewhere or site.has(n)}


def local(site: Site) -> list[Service]:
    """The services that the stack starts."""
    elsewhere = given(site.settings)
    return [service for name, service in parts(site).items() if name not in elsewhere]


def masked(address: str) -> str:
    """An address that may be shown: its password as `***`, its options left out."""
    if "=" in address and "://" not in address:
        parts = conninfo_to_dict(address)
        return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
    split = urlsplit(address)
    user, at, host = split.netloc.rpartition("@")
    login = f"{user.partition(':')[0]}:***" if ":" in user else user
    return urlunsplit(split._replace(netloc=login + at + host, query="", fragment=""))
