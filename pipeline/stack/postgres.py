"""Postgres of the local stack: logical decoding on, one superuser with a random password, the database `shop`."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import psycopg

from pipeline.stack import artefacts, processes
from pipeline.stack.files import write_atomically
from pipeline.stack.processes import Command
from pipeline.stack.site import DATABASE, Site

NAME = "postgres"


def address(site: Site) -> str:
    """The superuser's URI. It has the password: never print it."""
    return _uri(site, DATABASE)


def _uri(site: Site, database: str) -> str:
    password = quote(site.password(NAME), safe="")
    return f"postgresql://postgres:{password}@127.0.0.1:{site.port(NAME)}/{database}"


def prepare(site: Site) -> Command:
    """Make the cluster where there is none, and say how to start it."""
    folder = site.directory(NAME)
    data = folder / "data"
    port = site.free_port(NAME)
    if not (folder / "made").exists():
        _make_cluster(site)
    _forget_zombie(data)
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "wal_level": "logical",
        "max_replication_slots": 20,
        "max_wal_senders": 20,
        "max_connections": 100,
        "shared_buffers": "256MB",
        "max_wal_size": "2GB",
        "log_timezone": "UTC",
        "timezone": "UTC",
    }
    options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    return Command([str(artefacts.place(NAME) / "bin" / "postgres"), "-D", str(data), *options], cwd=folder)


def _forget_zombie(data: Path) -> None:
    """Remove the lock of a dead postmaster whose pid is still taken: Postgres would think that it runs."""
    lock = data / "postmaster.pid"
    try:
        pid = int(lock.read_text("ascii").partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return
    if processes.is_zombie(pid):
        lock.unlink()


def _make_cluster(site: Site) -> None:
    folder = site.directory(NAME)
    data = folder / "data"
    # The rest of an initdb that was killed.
    shutil.rmtree(data, ignore_errors=True)
    secret = folder / "password"
    write_atomically(secret, site.password(NAME), owner=site.user)
    try:
        initdb = [str(artefacts.place(NAME) / "bin" / "initdb"), "-D", str(data), "-U", "postgres"]
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--no-sync"]
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        processes.run(Command([*initdb, *options, *locale], cwd=folder), site.user, "Postgres' initdb")
    finally:
        secret.unlink()
    (folder / "made").touch()


def answers(site: Site) -> bool:
    """Whether SQL is answered in the database `shop`, which is created the first time."""
    try:
        try:
            return _select(address(site))
        except psycopg.OperationalError as error:
            if f'database "{DATABASE}" does not exist' not in str(error):
                return False
        with psycopg.connect(_uri(site, "postgres"), autocommit=True, connect_timeout=2) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        return _select(address(site))
    except psycopg.Error:
        return False


def _select(uri: str) -> bool:
    with psycopg.connect(uri, connect_timeout=2) as connection:
        return connection.execute("SELECT 1").fetchone() == (1,)
