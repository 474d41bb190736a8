"""Kafka Connect's REST interface: requests that outlast a rebalance, and what is wrong with a connector in one line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict

from pipeline.addresses import ConnectAddress
from pipeline.errors import ConnectorFailed, SourceUnavailable

REBALANCE_PATIENCE = 60.0
"""Seconds during which Connect may answer 409, because its workers share out the connectors again."""
CAUSE = re.compile(r"^(?:Caused by: )?(?:[\w$]+\.)+[\w$]+(?:: (?P<message>.*))?$")
NAMED = re.compile(r"^(?:(?:[\w$]+\.)+[\w$]*(?:Exception|Error): )+")
LINE_LIMIT = 400
REQUEST_TIMEOUT = 30.0


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskStatus(_Report):
    """One task of a connector."""

    id: int
    state: str
    worker: str
    reason: str | None = None
    """Why it failed."""


class ConnectorStatus(_Report):
    """A connector and its tasks, as Connect says."""

    name: str
    state: str
    """RUNNING, PAUSED, STOPPED, FAILED, UNASSIGNED, RESTARTING."""
    tasks: tuple[TaskStatus, ...] = ()
    reason: str | None = None
    """Why the connector or its first failed task failed."""

    @property
    def failed(self) -> bool:
        return self.state == "FAILED" or any(task.state == "FAILED" for task in self.tasks)

    @property
    def running(self) -> bool:
        return self.state == "RUNNING" and bool(self.tasks) and all(task.state == "RUNNING" for task in self.tasks)

    @property
    def settled(self) -> bool:
        """Nothing is about to change by itself: it runs, or someone has paused or stopped it."""
        paused = self.state in ("PAUSED", "STOPPED")
        return self.running or (paused and all(task.state == self.state for task in self.tasks))


def first_useful_line(trace: str) -> str:
    """The innermost cause of a Java stack trace that says something, without class names."""
    first, innermost = "", ""
    for line in trace.splitlines():
        found = CAUSE.match(line.strip())
        if found is None:
            continue
        message = NAMED.sub("", (found["message"] or "").strip())
        first = first or message
        if line.startswith("Caused by: ") and message:
            innermost = message
    text = innermost or first or trace.strip().partition("\n")[0]
    return text if len(text) <= LINE_LIMIT else text[: LINE_LIMIT - 1] + "…"


class Connect:
    """A client of one Connect cluster."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self._http = http

    async def request(self, method: str, path: str, *, json: object = None, missing_ok: bool = False) -> Any:
        """The answer's JSON; None where there is none, or where 404 is allowed."""
        give_up = time.monotonic() + REBALANCE_PATIENCE
        while True:
            answer = await self._send(method, path, json)
            if answer.status_code != httpx.codes.CONFLICT or time.monotonic() > give_up:
                break
            await asyncio.sleep(0.5)
        if answer.status_code == httpx.codes.NOT_FOUND and missing_ok:
            return None
        if answer.is_error:
            raise self._refused(answer, path)
        return answer.json() if answer.content else None

    async def connectors(self) -> list[str]:
        return sorted(await self.request("GET", "/connectors"))

    async def config(self, name: str) -> dict[str, str] | None:
        """The connector's configuration now, or None where there is no such connector."""
        found = await self.request("GET", f"/connectors/{name}/config", missing_ok=True)
        if found is None:
            return None
        return {key: value for key, value in found.items() if key != "name"}

    async def put(self, name: str, config: Mapping[str, str]) -> None:
        await self.request("PUT", f"/connectors/{name}/config", json=dict(config))

    async def status(self, name: str) -> ConnectorStatus | None:
        """The connector's state, or None where Connect knows none (yet)."""
        found = await self.request("GET", f"/connectors/{name}/status", missing_ok=True)
        return None if found is None else _status(found)

    async def _send(self, method: str, path: str, json: object) -> httpx.Response:
        try:
            return await self._http.request(method, path, json=json)
        except httpx.TimeoutException:
            raise SourceUnavailable(
                f"Kafka Connect at {self.url} did not answer {method} {path} in time: look at its log and try again."
            ) from None
        except httpx.TransportError as error:
            raise SourceUnavailable(
                f"Kafka Connect at {self.url} can't be reached ({str(error) or type(error).__name__}):"
                " check connect.url and that it is up (local: `cdc stack up`)."
            ) from None

    def _refused(self, answer: httpx.Response, path: str) -> ConnectorFailed | SourceUnavailable:
        try:
            said = str(answer.json()["message"])
        except (ValueError, KeyError, TypeError):
            said = answer.text
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        text = " ".join(line for line in lines if not line.startswith("You can also find")) or answer.reason_phrase
        name = path.split("/")[2] if path.count("/") > 1 else "-"
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ConnectorFailed(f"Connect has no connector {name}: create it with `cdc connector apply {name}`.")
        if answer.status_code == httpx.codes.CONFLICT:
            return SourceUnavailable(
                f"Kafka Connect at {self.url} is still rebalancing after {REBALANCE_PATIENCE:.0f} s: try again."
            )
        return ConnectorFailed(f"Connect refused connector {name} ({answer.status_code}): {text[:LINE_LIMIT]}")


@asynccontextmanager
async def connect(address: ConnectAddress) -> AsyncIterator[Connect]:
    """A client of the Connect cluster at this address."""
    async with httpx.AsyncClient(**address.options(), timeout=REQUEST_TIMEOUT) as http:
        yield Connect(str(httpx.URL(address.url, userinfo=b"")), http)


def _status(found: Mapping[str, Any]) -> ConnectorStatus:
    tasks = tuple(
        TaskStatus(
            id=task["id"],
            state=task["state"],
            worker=task.get("worker_id", ""),
            reason=first_useful_line(task["trace"]) if task.get("trace") else None,
        )
        for task in sorted(found.get("tasks", ()), key=lambda task: int(task["id"]))
    )
    own = found["connector"].get("trace")
    reasons = [first_useful_line(own)] if own else [task.reason for task in tasks if task.reason]
    return ConnectorStatus(
        name=found["name"], state=found["connector"]["state"], tasks=tasks, reason=reasons[0] if reasons else None
    )
