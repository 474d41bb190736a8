"""Answers that say what is wrong: RFC 9457, `application/problem+json`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipeline.errors import CdcError, QueryRefused, SinkError, SourceError, Transient

MEDIA: Final = "application/problem+json"
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}


class Problem(Exception):
    """An answer other than what was asked for. `kind`: `unknown-field`; `more`: further members of the answer."""

    def __init__(
        self, status: int, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers, self.more = status, kind, detail, headers, more

    def answer(self) -> Response:
        body = {
            "type": f"urn:cdc:problem:{self.kind}", "title": self.kind.replace("-", " ").capitalize(),
            "status": self.status, "detail": self.detail, **self.more,
        }  # fmt: skip
        return Response(msgspec.json.encode(body), self.status, dict(self.headers or {}), MEDIA)


def bad(kind: str, detail: str, **more: Any) -> Problem:
    return Problem(400, kind, detail, **more)


def of_error(error: CdcError) -> Problem:
    """What a reader is told of an error of ours; what concerns operators alone is not said."""
    if isinstance(error, QueryRefused):
        return bad("query-refused", f"{error} Ask without a cursor, or for less.")
    if isinstance(error, Transient):
        return Problem(
            503, "unavailable", "The read model can't be reached now; try again.", headers={"retry-after": "1"}
        )
    if isinstance(error, SourceError):
        said = "The source does not say that the token's transaction has committed: commit, then read with the token."
        return Problem(409, "not-committed", said)
    if isinstance(error, SinkError):
        return Problem(503, "unavailable", "The read model is not there: its operator finds the reason in the log.")
    return Problem(503, "unavailable", "The read model can't be served now: its operator finds the reason in the log.")


def install(app: FastAPI) -> None:
    """Every answer of the app that is no success is a problem."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.answer()

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, CdcError)
        request.scope["cdc.error"] = f"{type(error).__name__}: {error}"
        return of_error(error).answer()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return Problem(error.status_code, kind, f"{str(error.detail).rstrip('.')}.", headers=error.headers).answer()

    async def defect(request: Request, error: Exception) -> Response:
        return Problem(500, "defect", "Something is wrong here: its operator finds it in the log.").answer()

    app.add_exception_handler(Exception, defect)
    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(CdcError, failed)
    app.add_exception_handler(HTTPException, http)
