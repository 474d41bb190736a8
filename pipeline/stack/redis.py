"""Redis of the local stack: every write in its log of commands, nothing thrown away."""

from __future__ import annotations

import socket

from pipeline.stack import artefacts, users
from pipeline.stack.processes import Command
from pipeline.stack.site import Site

NAME = "redis"
PING = b"PING\r\n"


def address(site: Site) -> str:
    return f"redis://127.0.0.1:{site.port(NAME)}/0"


def prepare(site: Site) -> Command:
    """Say how to start it."""
    folder = site.directory(NAME)
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    users.give(data, site.user)
    settings = {
        "bind": "127.0.0.1",
        "port": site.free_port(NAME),
        "dir": data,
        "appendonly": "yes",
        # by the default a kill may lose what was acknowledged in its last two seconds
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    options = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    return Command([str(artefacts.place(NAME) / "redis-server"), *options], cwd=folder)


def answers(site: Site) -> bool:
    """Whether it has read its log and answers."""
    try:
        with socket.create_connection(("127.0.0.1", site.port(NAME)), timeout=1) as connection:
            connection.sendall(PING)
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
