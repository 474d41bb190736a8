"""Traces: none where nobody asked for them; with an endpoint a collector gets them, without what readers ask by."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, sys, httpx
from pipeline.runtime import tracing
from pipeline.settings import Settings
from pipeline.web.app import create_app
settings = Settings()
tracing.start(settings, "worker orders")
with tracing.span("write", sink="memory", documents=3):
    pass
async def main():
    transport = httpx.ASGITransport(create_app(settings, public=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.get("/livez?name=hunter2")
asyncio.run(main())
print("opentelemetry.sdk" in sys.modules)
"""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", got
        server.shutdown()


def run(folder: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CDC_", "OTEL_"))}
    own = {"CDC_STATE_DIR": str(folder / ".cdc"), "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env={**kept, **own, **environment}, check=True, text=True, capture_output=True
    ).stdout  # fmt: skip


def test_a_collector_gets_what_was_done_and_no_query(tmp_path: Path, collector: tuple[str, list[bytes]]) -> None:
    endpoint, got = collector
    run(tmp_path, CDC_TRACES__ENDPOINT=endpoint, CDC_TRACES__SHARE="1")
    told = [group for body in got for group in ExportTraceServiceRequest.FromString(body).resource_spans]
    spans = {span.name: span for group in told for scope in group.scope_spans for span in scope.spans}
    assert "write" in spans and any(name.startswith("GET") for name in spans), list(spans)
    assert {pair.key: pair.value.int_value for pair in spans["write"].attributes}["documents"] == 3
    assert {pair.key: pair.value.string_value for pair in told[0].resource.attributes}[
        "service.name"
    ] == "worker orders"
    assert got and not any(b"hunter2" in body for body in got)


def test_nothing_is_traced_without_an_endpoint(tmp_path: Path) -> None:
    assert run(tmp_path).strip() == "False"
