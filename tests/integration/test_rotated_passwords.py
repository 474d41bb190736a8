"""Passwords that change at the server and in their files: the worker goes on without a restart."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from redis import Redis

from pipeline.demo import truth
from tests.support.project import Project, until
from tests.support.proxy import Proxy, proxied
from tests.support.web import expected

pytestmark = pytest.mark.stack
FIRST, SECOND = "first-of-the-words", "second-of-the-words"


class Keys:
    """The passwords of one user in Postgres, Redis and at a gateway before Elasticsearch, and the files that have them."""

    def __init__(self, shop: Project, folder: Path, proxy: Proxy) -> None:
        self.shop, self.folder, self.proxy, self.user = shop, folder, proxy, shop.name
        with self._postgres() as db:
            db.execute(f"CREATE ROLE {self.user} LOGIN SUPERUSER".encode())
        self.at_servers(FIRST)
        self.in_files(FIRST)
        files = {"CDC_POSTGRES__DSN": "postgres", "CDC_REDIS__URL": "redis", "CDC_ELASTICSEARCH__PASSWORD": "elastic"}
        for name, file in files.items():
            shop.settings |= {name: "", f"{name}__FILE": str(folder / file)}
        shop.settings["CDC_ELASTICSEARCH__USERNAME"] = self.user
        shop.settings["CDC_ELASTICSEARCH__URL"] = f"http://127.0.0.1:{proxy.port}"

    def _postgres(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.shop.endpoints.postgres, autocommit=True)

    def at_servers(self, password: str) -> None:
        """Another password, and whoever came by the one before has to come again."""
        with self._postgres() as db:
            db.execute(f"ALTER ROLE {self.user} PASSWORD '{password}'".encode())
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (self.user,))
        with Redis.from_url(self.shop.endpoints.redis) as db:
            db.acl_setuser(
                self.user, enabled=True, reset=True, passwords=[f"+{password}"], keys=["*"], categories=["+@all"]
            )
            db.client_kill_filter(user=self.user, skipme=True)
        self.proxy.login = f"Basic {b64encode(f'{self.user}:{password}'.encode()).decode()}"

    def in_files(self, password: str) -> None:
        there = urlsplit(self.shop.endpoints.redis)
        (self.folder / "redis").write_text(
            f"redis://{self.user}:{password}@{there.hostname}:{there.port}{there.path}\n"
        )
        (self.folder / "postgres").write_text(make_conninfo(self.shop.dsn, user=self.user, password=password) + "\n")
        (self.folder / "elastic").write_text(password + "\n")

    def remove(self) -> None:
        with self._postgres() as db:
            db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (self.user,))
            db.execute(f"ALTER ROLE {self.user} NOLOGIN".encode())
        with Redis.from_url(self.shop.endpoints.redis) as db:
            db.acl_deluser(self.user)


@pytest.fixture
def keys(new_project: Callable[[str], Project], tmp_path: Path) -> Iterator[Keys]:
    shop = new_project("it_rot")
    there = urlsplit(shop.endpoints.elasticsearch)
    assert there.hostname is not None and there.port is not None
    with proxied(there.hostname, there.port) as proxy:
        made = Keys(shop, tmp_path, proxy)
        shop.create(orders=60, also=f'postgres("crm.orders"), redis("{shop.name}:orders")')
        yield made
        shop.stop_workers()
        made.remove()


def written(shop: Project, lsn: int) -> None:
    def passed() -> bool:
        sinks = shop.status()["sinks"]
        return len(sinks) == 3 and all(s["watermark"].get(shop.name, {}).get("lsn", -1) >= lsn for s in sinks)

    until(passed, 90, f"all sinks at {lsn}: {shop.status()}\n{shop.log()}")
    shop.assert_equal()
    right = expected(shop)
    assert dict(truth.in_redis(shop.endpoints.redis, f"{shop.name}:orders")) == right
    with shop.connection() as db:
        assert dict(db.execute("SELECT _id, document FROM crm.orders").fetchall()) == right


def test_passwords_that_change_are_read_again(keys: Keys) -> None:
    shop = keys.shop
    shop.start_worker()
    written(shop, truth.position(shop.dsn))

    keys.at_servers(SECOND)
    lsn = shop.sql("UPDATE shop.orders SET status = 'after'")
    until(lambda: all(s["error"] for s in shop.status()["sinks"]), 60, "no sink lets the worker in")
    keys.in_files(SECOND)
    written(shop, lsn)

    assert shop.workers[0].poll() is None, "the same worker went on"
    assert shop.cdc("verify", f"{shop.name}-orders", "--all").returncode == 0
    text = shop.log(10_000) + str(shop.status())
    assert FIRST not in text and SECOND not in text
