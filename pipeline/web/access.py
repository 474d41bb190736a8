"""Who may read: API keys, how often each may ask, how large and how long a request may be, and a line about each."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.authoring.leaves import Leaf
from pipeline.operations import web_keys
from pipeline.operations.web_keys import Key
from pipeline.settings import Settings
from pipeline.web.problems import Problem

audit: Final = logging.getLogger("cdc.web")
HOST: Final = re.compile(r"(?:\[([^]]*)\]|([^:[\]]*))(?::\d*)?")
PROBES: Final = frozenset({"/livez", "/readyz", "/metrics"})
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
CALLER: Final = "cdc.caller"
"""In a request's scope, the name of its key."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks; without a key where the app is open."""

    key: Key | None

    def may(self, scope: str) -> bool:
        """Whether it has the scope. Where the app is open, everybody reads, and nobody operates without a key."""
        return scope != "operate" if self.key is None else self.key.may(scope)

    def seen(self, name: str, known: Mapping[str, Leaf]) -> Mapping[str, Leaf]:
        """What it sees of a read model's documents; the very mapping where that is all."""
        fields = None if self.key is None else self.key.fields(name)
        return known if fields is None else web_keys.seen(known, fields)


@dataclass(slots=True)
class _Bucket:
    """What a key may still ask in this second."""

    left: float
    at: float


@dataclass
class Access:
    """The keys of an app, read again when their file changes."""

    settings: Settings
    public: bool
    _keys: web_keys.Keys = field(default_factory=web_keys.Keys)
    _stamp: tuple[int, int] | None = None
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def caller(self, request: Request) -> Caller:
        """Who asks, by `Authorization: Bearer cdc_…`; raises Problem 401 or 429."""
        given = request.headers.get("authorization", "")
        if not given and self.public:
            return Caller(None)
        scheme, _, text = given.partition(" ")
        key = self.key(text.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise Problem(
                401, "wrong-key" if given else "no-key",
                "Send a key: Authorization: Bearer cdc_…; its operator makes one by `cdc web key add`.",
                headers={"www-authenticate": "Bearer"},
            )  # fmt: skip
        request.scope[CALLER] = key.name
        self._count(key)
        return Caller(key)

    def require(self, request: Request, scope: str) -> Caller:
        """Who asks, if it has the scope; raises Problem 401, 403 or 429."""
        caller = self.caller(request)
        if caller.may(scope):
            return caller
        if caller.key is None:
            headers = {"www-authenticate": "Bearer"}
            raise Problem(401, "no-key", f"This needs a key of the scope {scope}.", headers=headers)
        raise Problem(403, "not-in-scope", f"This key has no scope {scope}.")

    def still(self, caller: Caller) -> bool:
        """Whether its key is there yet, as it was when it asked: what has no end asks now and then."""
        return caller.key is None or caller.key in self._read().keys

    def key(self, text: str) -> Key | None:
        """The key with this text."""
        return self._read().find(text)

    def _read(self) -> web_keys.Keys:
        try:
            found = web_keys.file(self.settings).stat()
            stamp = (found.st_mtime_ns, found.st_ino)
        except FileNotFoundError:
            stamp = None
        if stamp != self._stamp:
            self._keys, self._stamp = web_keys.read(self.settings), stamp
        return self._keys

    def _count(self, key: Key) -> None:
        rate, now = self.settings.web.rate, time.monotonic()
        if not rate:
            return
        bucket = self._buckets.setdefault(key.sha256, _Bucket(2 * rate, now))
        bucket.left, bucket.at = min(2 * rate, bucket.left + (now - bucket.at) * rate), now
        if bucket.left < 1:
            wait = max(1, round((1 - bucket.left) / rate))
            raise Problem(
                429,
                "too-many-requests",
                f"This key may ask {rate:g} times a second.",
                headers={"retry-after": str(wait)},
            )
        bucket.left -= 1


class Limits:
    """Around the whole app: bounds of body and time, headers that every answer has, the audit line.

    `hosts`: the names by which it may be asked; None where every request needs a key, which no page of another site has.
    """

    def __init__(self, app: ASGIApp, settings: Settings, hosts: frozenset[str] | None = None) -> None:
        self._app, self._own = app, settings.web
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                present = {name.lower() for name, _ in message["headers"]}
                own = [(b"cache-control", b"private, no-cache"), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *(one for one in own if one[0] not in present)]
            await send(message)

        try:
            await self._limited(scope, receive, answer, lambda: status == 0)
        finally:
            _tell(scope, status, time.monotonic() - began)

    async def _limited(self, scope: Scope, receive: Receive, answer: Send, silent: Any) -> None:
        problem: Problem | None = None
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._own.body_bytes:
                raise _too_large(self._own.body_bytes)
            return message

        headers = dict(scope["headers"])
        given = headers.get(b"content-length", b"0")
        asked = _host(headers)
        if self._hosts is not None and asked not in self._hosts and scope["path"] not in PROBES:
            # a page of another site may have its name resolve to this machine, and read what needs no key
            problem = Problem(
                421, "unknown-host", f"This app is not asked as {asked!r}: set web.hosts, or ask as localhost."
            )
        elif given.isdigit() and int(given) > self._own.body_bytes:
            problem = _too_large(self._own.body_bytes)
        else:
            try:
                async with asyncio.timeout(self._own.request_timeout + self._own.wait_limit) as limit:
                    await self._app(scope, bounded, _until_begun(answer, limit))
            except TimeoutError:
                if not silent():
                    raise
                problem = Problem(
                    503, "too-slow", "The request took too long: ask for less.", headers={"retry-after": "1"}
                )
        if problem is not None:
            await problem.answer()(scope, receive, answer)


def _until_begun(answer: Send, limit: asyncio.Timeout) -> Send:
    """What has begun to answer may go on for as long as it likes: a feed of changes has no end."""

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            limit.reschedule(None)
        await answer(message)

    return send


def _host(headers: Mapping[bytes, bytes]) -> str:
    """The name that the client asks by, without the port."""
    text = headers.get(b"host", b"").decode("latin-1").lower()
    found = HOST.fullmatch(text)
    return (found[1] or found[2]) if found else text


def _too_large(limit: int) -> Problem:
    return Problem(413, "too-large", f"The body has more than {limit} bytes: ask in parts.")


def _tell(scope: Scope, status: int, seconds: float) -> None:
    """One line without query, headers or body: those may hold what is nobody's business."""
    if scope["path"] in PROBES and status == 200:
        return  # asked every few seconds, by nobody
    said = {
        "method": scope["method"], "path": scope["path"][:500], "status": status, "ms": round(seconds * 1000, 1),
        "key": scope.get(CALLER), "from": (scope.get("client") or ("",))[0],
    }  # fmt: skip
    if error := scope.get("cdc.error"):
        said["error"] = error
    level = logging.ERROR if status >= 500 or not status else logging.INFO
    audit.log(level, " ".join(f"{name}={value!r}" for name, value in said.items()), extra={"fields": said})
