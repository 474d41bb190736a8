"""Who looks at the dashboard: somebody with a key in a header, or signed in with one by a browser."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException, Request, Response

from pipeline.web.access import CALLER, Access, Caller
from pipeline.web.problems import Problem

COOKIE: Final = "cdc_session"
LASTS: Final = 12 * 3600
"""Seconds after which one signs in again."""
READ, OPERATE = "dashboard", "operate"
"""The scopes of a key that pages and buttons need."""


@dataclass(slots=True)
class Session:
    """One browser. Its key is asked for at each request, so a key that is removed ends it."""

    key: str = field(repr=False)
    csrf: str = field(repr=False, default_factory=lambda: secrets.token_urlsafe(32))
    until: float = field(default_factory=lambda: time.monotonic() + LASTS)


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks for a page; `csrf` is what its forms have to bring back."""

    caller: Caller
    csrf: str = ""

    @property
    def signed_in(self) -> bool:
        return bool(self.csrf)

    @property
    def operates(self) -> bool:
        return self.signed_in and self.caller.may(OPERATE)


class Sessions:
    """All browsers that are signed in, in memory: they end with the process. The cookie has no key, but a random name."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._known: dict[str, Session] = {}

    def visitor(self, request: Request, scope: str = READ) -> Visitor:
        """Who asks, if that is somebody who may; raises Problem 401, 403 or 429."""
        if (session := self._session(request)) is not None:
            key = self._access.key(session.key)
            if key is not None and not key.may(scope):
                raise Problem(403, "not-in-scope", f"This key has no scope {scope}.")
            if key is not None:
                request.scope[CALLER] = key.name
                return Visitor(Caller(key), session.csrf)
        return Visitor(self._access.require(request, scope))

    def sign_in(self, key: str, response: Response, *, secure: bool) -> bool:
        """Whether the key opens the dashboard; then the response has the cookie."""
        found = self._access.key(key)
        if found is None or not found.may(READ):
            return False
        self._known = {name: one for name, one in self._known.items() if one.until > time.monotonic()}
        name = secrets.token_urlsafe(32)
        self._known[name] = Session(key)
        response.set_cookie(COOKIE, name, max_age=LASTS, httponly=True, samesite="strict", secure=secure)
        return True

    def sign_out(self, request: Request, response: Response) -> None:
        self._known.pop(request.cookies.get(COOKIE, ""), None)
        response.delete_cookie(COOKIE)

    def check(self, request: Request, form: Mapping[str, str]) -> None:
        """That a form comes from a page of ours, shown to this very browser; raises 403."""
        session = self._session(request)
        if session is None or not secrets.compare_digest(session.csrf.encode(), form.get("csrf", "").encode()):
            raise HTTPException(403, "The form is not of this session: load the page again")
        same_origin(request)

    def _session(self, request: Request) -> Session | None:
        found = self._known.get(request.cookies.get(COOKIE, ""))
        return found if found is not None and found.until > time.monotonic() else None


def same_origin(request: Request) -> None:
    """Refuse what another site had the browser send; raises 403."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "This was sent by a page of another site")


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a form that was sent."""
    return dict(parse_qsl((await request.body()).decode(errors="replace"), keep_blank_values=True))
