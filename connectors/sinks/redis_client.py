"""The client of Redis: scripts and reads, with the server's errors in this project's words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from connectors.sinks.redis_scripts import MISSING
from pipeline.errors import SettingsError, SinkError, SinkUnavailable, TargetMissing
from pipeline.settings import RedisSettings

CONNECT_SECONDS = 4.0
CHECK = "check redis.url"
# No room, no disk, too few replicas: nobody knows that a document is at fault. Within a script the word is not the first.
FULL = re.compile(r"\b(OOM|MISCONF|NOREPLICAS)\b")
BUSY = re.compile(r"\b(BUSY|READONLY)\b")
ELSEWHERE = (ReadOnlyError, MasterDownError)
# What a script's error says of its place in the script.
PLACE = re.compile(
    r"@?user_script:\s*\d+:\s*|Error running script \(call to \w+\):\s*|\s*script: \w+, on @user_script:\d+\.?"
)


class Full(SinkUnavailable):
    """The server has no room now; `words` are its own."""

    def __init__(self, sink: str, words: str) -> None:
        super().__init__(f"{sink}: Redis has no room now ({words}).")
        self.words = words


class _Login(CredentialProvider):
    """Who connects, as the URL says then: its password may be another one by then."""

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        at = urlsplit(self._url())
        password = unquote(at.password or "")
        return (unquote(at.username), password) if at.username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return await asyncio.to_thread(self.get_credentials)


def connect(own: RedisSettings, told: Callable[[], str]) -> Redis:
    """A client that connects with its first request, and sends each once: whoever asks again asks again whether it may."""
    options: dict[str, Any] = {}
    url, at = told(), urlsplit(told())
    if at.password:
        options["credential_provider"] = _Login(told)
        url = at._replace(netloc=at.netloc.rpartition("@")[2]).geturl()
    if url.startswith("rediss:"):
        own.context("redis")  # raises where a file is none
        files = {"ssl_ca_certs": own.ca, "ssl_certfile": own.certificate, "ssl_keyfile": own.key}
        options |= {name: str(path) for name, path in files.items() if path is not None}
        if own.key_password is not None:
            options["ssl_password"] = own.key_password.get_secret_value()
    try:
        return Redis.from_url(
            url, protocol=2, retry=Retry(NoBackoff(), 0), client_name="cdc",
            socket_timeout=own.request_timeout, socket_connect_timeout=min(CONNECT_SECONDS, own.request_timeout), **options,
        )  # fmt: skip
    except ValueError:
        raise SettingsError(
            "redis.url is no URL of a Redis (redis://user:password@host:6379/0, rediss:// with TLS): set it again."
        ) from None


class Client:
    """One sink's way to the server."""

    def __init__(self, redis: Redis, sink: str, url: Callable[[], str]) -> None:
        self._redis: Any = redis
        self._sink, self._url = sink, url

    async def run(self, script: str, keys: Sequence[str | bytes], arguments: Sequence[str | bytes | int] = ()) -> Any:
        """A script's answer; raises Full where the server has no room."""
        async with self._errors():
            return await self._redis.register_script(script)(keys=list(keys), args=list(arguments))

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer to one command."""
        async with self._errors():
            return await self._redis.execute_command(*command)

    def missing(self) -> TargetMissing:
        return TargetMissing(f"{self._sink}: the server has no such version, or has lost it: run `cdc apply`.")

    async def close(self) -> None:
        await self._redis.aclose()

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            said = self._words(error)
            if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and FULL.search(said)):
                raise Full(self._sink, said) from None
            raise self._failed(error, said) from None

    def _failed(self, error: Exception, said: str) -> SinkError:
        if said.startswith(MISSING):
            return self.missing()
        if isinstance(error, AuthenticationError | AuthorizationError):
            return SinkError(f"{self._sink}: Redis lets nobody in ({said}): {CHECK}.")
        if isinstance(error, NoPermissionError):
            return SinkError(f"{self._sink}: not allowed ({said}): give the user of redis.url the right.")
        if not isinstance(error, ResponseError) or isinstance(error, ELSEWHERE) or BUSY.search(said):
            return SinkUnavailable(f"{self._sink}: Redis can't be reached or can't do it now ({said}).")
        return SinkError(f"{self._sink}: Redis refuses: {said}.")

    def _words(self, error: Exception) -> str:
        said = PLACE.sub("", str(error)).strip().lstrip("-").rstrip(".")[:400] or type(error).__name__
        password = unquote(urlsplit(self._url()).password or "")
        return said.replace(password, "**********") if password else said
