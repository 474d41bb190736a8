"""The metrics: what the status report and the connectors say, in Prometheus's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.operations.status import RUNNING, Building, ProjectionStatus, StatusReport
from pipeline.reports.connectors import ConnectorLine
from pipeline.web.sampling import Sampler
from pipeline.web.versions import Versions

Name = str
METRICS: Final[dict[Name, tuple[str, tuple[str, ...]]]] = {
    "cdc_status_timestamp_seconds": ("When the status was last read, in seconds since 1970", ()),
    "cdc_projection_running": ("1 where its worker runs (running, catching up), else 0", ("projection", "version")),
    "cdc_projection_attention": ("Things that need somebody, as cdc status lists them", ("projection",)),
    "cdc_projection_behind_seconds": ("Source time that readers have to wait for", ("projection",)),
    "cdc_projection_stopped_seconds": ("How long a watermark has stood while the source moved", ("projection",)),
    "cdc_projection_documents": ("Documents that the mirror has", ("projection",)),
    "cdc_projection_dirty": ("Documents that wait to be written", ("projection",)),
    "cdc_projection_pending": ("Documents that wait for a row or a value that is not known yet", ("projection",)),
    "cdc_projection_staged": ("Changes of source transactions that are not whole yet", ("projection",)),
    "cdc_projection_refreshing": ("Rows that are to be read again from the source", ("projection",)),
    "cdc_projection_quarantined": ("Documents that could not be built or were refused", ("projection",)),
    "cdc_projection_dead_letters": ("Changes that could not be decoded", ("projection",)),
    "cdc_projection_changes_total": ("Changes taken in since the worker started", ("projection",)),
    "cdc_projection_transactions_total": ("Source transactions taken in since the worker started", ("projection",)),
    "cdc_projection_released_incomplete_total": ("Source transactions that were let go incomplete", ("projection",)),
    "cdc_projection_saved_timestamp_seconds": (
        "When its newest state snapshot was still the mirror's state, in seconds since 1970", ("projection",),
    ),
    "cdc_sink_behind_seconds": ("Source time that this sink has to catch up with", ("projection", "sink")),
    "cdc_sink_watermark_lsn": ("Position of the source up to which it is complete", ("projection", "sink", "connector")),
    "cdc_sink_failing": ("1 where the last write to the sink failed, else 0", ("projection", "sink")),
    "cdc_sink_withheld": ("Documents that are kept from the sink by withheld_rows", ("projection", "sink")),
    "cdc_sink_writes_total": ("Outcomes of writes since the worker started", ("projection", "sink", "outcome")),
    "cdc_build_done_ratio": ("How much of the build under way is done, 0 to 1", ("projection", "build", "step")),
    "cdc_build_seconds": ("How long the build has been under way", ("projection", "build", "step")),
    "cdc_canary_reads_total": (
        "Reads by key in the canary, by what the next version answered: same, different, unavailable",
        ("projection", "version", "outcome"),
    ),
    "cdc_canary_stopped": ("1 where it differs or is slow, so that it is read no more", ("projection", "version")),
    "cdc_connector_running": ("1 where the connector and all its tasks run, else 0", ("connector",)),
    "cdc_connector_slot_kept_bytes": ("Log that the source keeps on disk for the slot", ("connector", "slot")),
    "cdc_connector_slot_behind_bytes": ("Log that the connector has not confirmed yet", ("connector", "slot")),
}  # fmt: skip
"""Every metric: what it says, and its labels. `docs/operations/metrics.md` has the same list."""


def text(sampler: Sampler, versions: Mapping[str, Versions]) -> bytes:
    """All metrics as Prometheus reads them."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Sampled(sampler, versions))
    return generate_latest(registry)


class _Sampled(Collector):
    def __init__(self, sampler: Sampler, versions: Mapping[str, Versions]) -> None:
        self.sampler, self.versions = sampler, versions

    def collect(self) -> Iterator[Metric]:
        families = {name: _family(name) for name in METRICS}
        for name, labels, value in self._values():
            families[name].add_metric(list(labels), value)
        yield from families.values()

    def _values(self) -> Iterator[tuple[Name, tuple[str, ...], float]]:
        looked = self.sampler.status
        if looked.value is not None:
            yield "cdc_status_timestamp_seconds", (), looked.at
            yield from _status(looked.value)
            for name, stopped in self.sampler.stopped().items():
                yield "cdc_projection_stopped_seconds", (name,), stopped
        for line in self.sampler.connectors.value or ():
            yield from _connector(line)
        for name, one in self.versions.items():
            for (version, outcome), n in one.reads.items():
                yield "cdc_canary_reads_total", (name, version, outcome), n
            for version in one.stopped:
                yield "cdc_canary_stopped", (name, version), 1.0


def _family(name: Name) -> CounterMetricFamily | GaugeMetricFamily:
    says, labels = METRICS[name]
    return (CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily)(name, says, labels=labels)


def _status(report: StatusReport) -> Iterator[tuple[Name, tuple[str, ...], float]]:
    for found in report.projections:
        yield from _projection(found)
    for build in report.building:
        yield from _build(build)


def _projection(found: ProjectionStatus) -> Iterator[tuple[Name, tuple[str, ...], float]]:
    own = (found.name,)
    yield "cdc_projection_running", (found.name, str(found.version)), float(found.state in RUNNING)
    yield "cdc_projection_attention", own, len(found.attention)
    if found.behind is not None:
        yield "cdc_projection_behind_seconds", own, found.behind
    for gauge in ("documents", "dirty", "pending", "staged", "refreshing", "quarantined", "dead_letters"):
        yield f"cdc_projection_{gauge}", own, getattr(found, gauge)
    for counter in ("changes", "transactions", "released_incomplete"):
        yield f"cdc_projection_{counter}_total", own, getattr(found, counter)
    if found.saved_at is not None:
        yield "cdc_projection_saved_timestamp_seconds", own, found.saved_at
    for sink in found.sinks:
        labels = (found.name, sink.name)
        if sink.behind is not None:
            yield "cdc_sink_behind_seconds", labels, sink.behind
        yield "cdc_sink_withheld", labels, sink.withheld
        yield "cdc_sink_failing", labels, float(sink.error is not None)
        for connector, mark in sink.watermark.items():
            yield "cdc_sink_watermark_lsn", (*labels, connector), mark["lsn"]
        for outcome, n in sink.written.items():
            yield "cdc_sink_writes_total", (*labels, outcome), n


def _build(build: Building) -> Iterator[tuple[Name, tuple[str, ...], float]]:
    labels = (build.projection, build.id, build.step)
    yield "cdc_build_seconds", labels, build.seconds
    if build.total:
        yield "cdc_build_done_ratio", labels, build.done / build.total


def _connector(line: ConnectorLine) -> Iterator[tuple[Name, tuple[str, ...], float]]:
    running = line.state == "running" and bool(line.tasks) and set(line.tasks) == {"running"}
    yield "cdc_connector_running", (line.name,), float(running)
    if line.slot is not None and line.kept_bytes is not None:
        yield "cdc_connector_slot_kept_bytes", (line.name, line.slot), line.kept_bytes
    if line.slot is not None and line.behind_bytes is not None:
        yield "cdc_connector_slot_behind_bytes", (line.name, line.slot), line.behind_bytes
