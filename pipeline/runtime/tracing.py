"""Traces by OpenTelemetry, where `traces.endpoint` says where they go: of batches taken in, of writes, and of what is read over HTTP."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pipeline.errors import SettingsError
from pipeline.settings import Settings

_provider: Any = None
_tracer: Any = None


def start(settings: Settings, service: str) -> None:
    """From here on this process traces; the Elasticsearch client and FastAPI add what they do. Nothing without an endpoint.

    Raises SettingsError where the extra is missing.
    """
    global _provider, _tracer
    own = settings.traces
    if own.endpoint is None:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError:
        raise SettingsError("Traces need an extra: pip install 'cdc-pipeline[otel]'.") from None

    class WithoutQueries(SpanProcessor):
        """Filters may hold what is nobody's business."""

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if "url.query" in (span.attributes or ()):
                span.set_attribute("url.query", "REDACTED")

    resource = Resource.create({"service.name": service, "service.namespace": settings.project})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(own.share)))
    provider.add_span_processor(WithoutQueries())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(own.endpoint)))
    trace.set_tracer_provider(provider)
    _provider, _tracer = provider, provider.get_tracer("cdc")


def stop() -> None:
    """Send what is not sent yet."""
    if _provider is not None:
        _provider.shutdown()


def span(name: str, **attributes: str | int) -> AbstractContextManager[Any]:
    """What is done within it; nothing where this process doesn't trace."""
    if _tracer is None:
        return nullcontext()
    started: AbstractContextManager[Any] = _tracer.start_as_current_span(name, attributes=attributes)
    return started
