"""A schema registry of a test's own: it stands for a foreign service, and answers as its documented API does for schemas by id."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fastavro


class Registry:
    """Up while it is entered; `ids` are the schemas that it tells of."""

    def __init__(self) -> None:
        self.schemas: dict[int, str] = {}
        self.asked: list[str] = []
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, schema: Mapping[str, Any]) -> int:
        """Register a schema; its id."""
        self.schemas[number := len(self.schemas) + 1] = json.dumps(schema)
        return number

    def start(self) -> None:
        """Listen, on the port of before where there was one."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                number = self.path.removeprefix("/schemas/ids/")
                text = registry.schemas.get(int(number)) if number.isdigit() else None
                found: dict[str, Any] = (
                    {"schema": text} if text else {"error_code": 40403, "message": "Schema not found"}
                )
                body = json.dumps(found).encode()
                self.send_response(200 if text else 404)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextmanager
def registry() -> Iterator[Registry]:
    found = Registry()
    found.start()
    try:
        yield found
    finally:
        found.stop()


def encoded(number: int, schema: Mapping[str, Any], value: Any) -> bytes:
    """A value in Confluent's wire format."""
    out = io.BytesIO()
    out.write(b"\0" + number.to_bytes(4, "big"))
    fastavro.schemaless_writer(out, dict(schema), value)
    return out.getvalue()
