"""Where one local stack lives: its directories, ports and passwords, remembered so that a restart finds them."""

from __future__ import annotations

import json
import random
import secrets
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import ENDPOINTS, Settings
from pipeline.stack import users
from pipeline.stack.files import write_atomically

# Below every system's range of outgoing ports, so that no connection takes a remembered port between two starts.
PORTS = range(20_000, 32_000)
DATABASE = "shop"
# Services that start at the same time choose their ports from threads.
_CHOOSING = threading.RLock()


@dataclass(frozen=True, slots=True)
class Site:
    """`root` is read by whoever runs commands; `home` holds what the services write, and their user can reach it."""

    settings: Settings
    root: Path
    home: Path
    user: users.User | None

    @property
    def endpoints(self) -> Path:
        return self.root / Path(ENDPOINTS).name

    def directory(self, service: str) -> Path:
        """A service's own directory, made for the service's user."""
        folder = self.home / service
        folder.mkdir(mode=0o700, exist_ok=True)
        users.give(folder, self.user)
        return folder

    def log(self, service: str) -> Path:
        return self.root / "logs" / f"{service}.log"

    def pidfile(self, service: str) -> Path:
        return self.root / "pids" / f"{service}.json"

    def port(self, name: str) -> int:
        """The remembered port; one is chosen where there is none."""
        with _CHOOSING:
            ports = self._ports()
            if name not in ports:
                ports[name] = choose_port(taken=set(ports.values()))
                write_atomically(self.root / "ports.json", json.dumps(ports), mode=0o644)
            return ports[name]

    def free_port(self, name: str) -> int:
        """The remembered port where nobody took it meanwhile, or another."""
        with _CHOOSING:
            if not is_free(self.port(name)):
                ports = self._ports()
                del ports[name]
                write_atomically(self.root / "ports.json", json.dumps(ports), mode=0o644)
            return self.port(name)

    def _ports(self) -> dict[str, int]:
        try:
            return dict(json.loads((self.root / "ports.json").read_text("utf-8")))
        except FileNotFoundError:
            return {}

    def has(self, service: str) -> bool:
        """Whether the service was ever started here."""
        return (self.home / service).is_dir()

    def password(self, service: str) -> str:
        """The superuser's password, made at random once."""
        path = self.root / f"{service}.password"
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(24))
        return path.read_text("utf-8")


def open_site(settings: Settings) -> Site:
    """The stack's place for these settings; makes no directory of a stack that was never up."""
    root = settings.state_dir.absolute() / "stack"
    user = users.service_user()
    return Site(settings, root, _recorded_home(root) or root, user)


def make_site(settings: Settings) -> Site:
    """The same, with its directories made."""
    root = settings.state_dir.absolute() / "stack"
    for folder in (root, root / "logs", root / "pids"):
        folder.mkdir(parents=True, exist_ok=True)
    user = users.service_user()
    home = _recorded_home(root) or root
    if user is not None and not users.reachable(home, user):
        home = Path(tempfile.mkdtemp(prefix="cdc-stack-"))
        users.give(home, user)
        write_atomically(root / "home.json", json.dumps(str(home)), mode=0o644)
    return Site(settings, root, home, user)


def _recorded_home(root: Path) -> Path | None:
    try:
        home = Path(json.loads((root / "home.json").read_text("utf-8")))
    except FileNotFoundError:
        return None
    return home if home.is_dir() else None


def choose_port(taken: set[int]) -> int:
    """A port nobody listens on; at random, so that two stacks starting at once do not want the same."""
    while True:
        port = random.choice(PORTS)  # noqa: S311 - no secret
        if port not in taken and is_free(port):
            return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the servers do it: connections that have ended do not keep a port busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether a server listens on this port: cheap, so it is asked before a real question."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
