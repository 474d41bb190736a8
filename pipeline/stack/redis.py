"""Redis of the local stack: every write in its log of commands, nothing thrown away; the machine's own where PyPI has none."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from pipeline.stack import artefacts, users
from pipeline.stack.processes import Command
from pipeline.stack.site import Site

NAME = "redis"
PING = b"PING\r\n"


def address(site: Site) -> str:
    return f"redis://127.0.0.1:{site.port(NAME)}/0"


def program() -> Path | None:
    """The server to start; None: this machine has none."""
    if artefacts.bundled_redis() is not None:
        return artefacts.place(NAME) / "redis-server"
    own = shutil.which("redis-server")
    return Path(own) if own else None


def there() -> bool:
    return program() is not None


def prepare(site: Site) -> Command:
    """Say how to start it."""
    folder, own = site.directory(NAME), program()
    assert own is not None
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    users.give(data, site.user)
    settings = {
        "bind": "127.0.0.1",
        "port": site.free_port(NAME),
        "dir": data,
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return Command([str(own), *options], cwd=folder)


def answers(site: Site) -> bool:
    """Whether it has read its log and answers."""
    try:
        with socket.create_connection(("127.0.0.1", site.port(NAME)), timeout=1) as connection:
            connection.sendall(PING)
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
