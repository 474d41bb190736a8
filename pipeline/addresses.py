"""Where a service is and how one gets in: certificates and passwords go with the address, and are never shown."""

from __future__ import annotations

import shlex
import ssl
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import SecretStr, ValidatorFunctionWrapHandler, WrapValidator

from pipeline.errors import SettingsError

PATIENCE = 30.0
"""Seconds that a command which tells a secret may take."""
FRESH = 5.0
"""Seconds after which a file or a command is asked again."""


def _read(given: object) -> object:
    """The secret itself, or what the file or the command says that it is in."""
    if not isinstance(given, dict):
        return given
    if given.keys() == {"file"}:
        try:
            return Path(given["file"]).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"{given['file']} can't be read ({type(error).__name__})") from None
    if given.keys() == {"command"}:
        return _said_by(given["command"])
    raise ValueError('has to be a text, {file = "path"} or {command = "program arguments"}')


def _said_by(command: str | list[str]) -> str:
    argv = shlex.split(command) if isinstance(command, str) else command
    if not argv:
        raise ValueError("the command is empty")
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"the command {argv[0]} can't be run ({type(error).__name__})") from None
    if done.returncode:
        # not what it wrote: that may be the secret
        raise ValueError(f"the command {argv[0]} ended with {done.returncode}")
    return done.stdout.strip()


class Told(SecretStr):
    """A secret that a file or a command tells: asked again by whoever needs it once the answer is older than FRESH.

    Where nothing is told then, the last answer holds.
    """

    def __init__(self, secret: str, source: dict[str, Any]) -> None:
        super().__init__(secret)
        self._source, self._at = source, time.monotonic()

    def get_secret_value(self) -> str:
        if time.monotonic() - self._at > FRESH:
            self._at = time.monotonic()
            with suppress(ValueError):
                self._secret_value = str(_read(self._source)) or self._secret_value
        return self._secret_value


def _told(given: object, handler: ValidatorFunctionWrapHandler) -> SecretStr:
    found: SecretStr = handler(_read(given))
    return Told(found.get_secret_value(), given) if isinstance(given, dict) else found


Secret = Annotated[SecretStr, WrapValidator(_told)]
"""A secret, or where it is: `{file = "path"}`, `{command = "program arguments"}`."""


def tls_context(
    section: str, ca: Path | None, certificate: Path | None, key: Path | None, password: SecretStr | None
) -> ssl.SSLContext:
    """Certificates and host names are always checked; raises SettingsError for a file that is none."""
    named = {"ca": ca, "certificate": certificate, "key": key}
    for name, path in named.items():
        if path is not None and not path.is_file():
            raise SettingsError(f"{section}.{name}: there is no file {path}.")
    try:
        context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            context.load_cert_chain(certificate, key, (lambda: password.get_secret_value()) if password else "")
    except (ssl.SSLError, ValueError) as error:
        files = ", ".join(f"{section}.{name} {path}" for name, path in named.items() if path is not None)
        reason = getattr(error, "reason", None) or type(error).__name__
        raise SettingsError(f"No TLS with {files}: {reason}; PEM files are wanted, and the key's password.") from None
    return context


class _Login:
    """Somebody to be let in, or nobody in particular."""

    __slots__ = ()
    username: str | None
    password: SecretStr | None

    @property
    def login(self) -> tuple[str, str] | None:
        """User name and password, where one has to say them."""
        if not self.username:
            return None
        return self.username, self.password.get_secret_value() if self.password else ""


@dataclass(frozen=True, slots=True)
class KafkaAddress(_Login):
    """Kafka's bootstrap servers, and how one gets in; as text the servers alone."""

    bootstrap: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    username: str | None = None
    password: SecretStr | None = None
    mechanism: str = ""
    """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512; where there is a user name."""

    def __str__(self) -> str:
        return self.bootstrap

    def options(self) -> dict[str, Any]:
        """What every client of aiokafka's is made with."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": ("SASL_" if self.login else "") + ("SSL" if self.tls else "PLAINTEXT"),
            "ssl_context": self.tls,
        }
        if self.login is not None:
            name, password = self.login
            options |= {"sasl_mechanism": self.mechanism, "sasl_plain_username": name, "sasl_plain_password": password}
        return options


@dataclass(frozen=True, slots=True)
class ConnectAddress(_Login):
    """The URL of Kafka Connect's REST interface, or of a schema registry, and how one gets in."""

    url: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    username: str | None = None
    password: SecretStr | None = None

    def options(self) -> dict[str, Any]:
        """What a client of httpx's is made with."""
        options: dict[str, Any] = {"base_url": self.url, "auth": self.login}
        return options if self.tls is None else options | {"verify": self.tls}


@dataclass(frozen=True, slots=True)
class MariadbAddress:
    """A MariaDB server and a database of it; as text without user and password."""

    host: str
    port: int
    database: str
    user: str
    password: SecretStr

    @staticmethod
    def is_one(uri: str) -> bool:
        return uri.startswith("mariadb://")

    @classmethod
    def of(cls, uri: str) -> MariadbAddress:
        """Read `mariadb://user:password@host:3306/database`; raises SettingsError, without the password."""
        try:
            parts = urlsplit(uri)
            found = cls(
                unquote(parts.hostname or "localhost"), parts.port or 3306, unquote(parts.path.strip("/")),
                unquote(parts.username or "root"), SecretStr(unquote(parts.password or "")),
            )  # fmt: skip
        except ValueError:
            found = None
        if found is None or parts.scheme != "mariadb" or parts.query or not found.database:
            raise SettingsError(
                "The address of a MariaDB source is mariadb://user:password@host:3306/database: set its dsn again."
            )
        return found

    def __str__(self) -> str:
        return f"{self.database} at {self.host}:{self.port}"

    @property
    def uri(self) -> str:
        """It has the password: never print it."""
        password = quote(self.password.get_secret_value(), safe="")
        return (
            f"mariadb://{quote(self.user, safe='')}:{password}@{self.host}:{self.port}/{quote(self.database, safe='')}"
        )


__all__ = ["ConnectAddress", "KafkaAddress", "MariadbAddress", "Secret", "tls_context"]
