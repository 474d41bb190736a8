"""What is wrong around the pipeline: source, slots, topics, connectors, Elasticsearch, Redis, each with its fix."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

from elasticsearch import ApiError
from pydantic import RootModel

from connectors.sinks import elasticsearch_client as elasticsearch
from connectors.sinks.kafka_client import Client as KafkaClient
from connectors.sinks.kafka_topics import RECORD
from connectors.sources import kinds, lifecycle, logs
from connectors.sources.connect import connect
from connectors.sources.debezium import ConnectorDefinition, load_definitions
from pipeline.addresses import MariadbAddress
from pipeline.errors import CdcError, SettingsError, SinkError, SourceUnavailable
from pipeline.operations import doctor as operation
from pipeline.operations.doctor import Finding, bad, ok, warn
from pipeline.operations.states import states
from pipeline.reports.connectors import clusters, kafka
from pipeline.settings import Settings

SUPPORTED = ("8.", "9.")


class Findings(RootModel[list[Finding]]):
    """All that was looked at."""


def doctor(settings: Settings) -> Findings:
    """Looks at everything around the pipeline; what is away is a finding."""
    return Findings(asyncio.run(_look(settings)))


async def _look(settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    definitions = load_definitions(settings.connectors)
    topics: dict[str, dict[str, float]] = {cluster: {} for cluster in clusters(definitions)}
    for name, definition in definitions.items():
        try:
            dsn = definition.dsn_in(settings)
        except SettingsError as error:
            found.append(bad(f"source of {name}", str(error), "see cdc config show"))
            continue
        if definition.kind == "mariadb":
            found += await asyncio.to_thread(_mariadb, definition, dsn)
        else:
            found += await asyncio.to_thread(operation.source, dsn, list(definition.tables), {definition.slot: name})
        own = topics[definition.kafka]
        own |= {definition.topic(table): definition.retention_days for table in definition.tables}
        own[definition.transaction_topic] = definition.retention_days
        found.append(await _connector(settings, definition))
        found += await _log(settings, definition, dsn)
    brokers = (_kafka(settings, cluster, own) for cluster, own in topics.items())
    for look in (*brokers, _elasticsearch(settings), _redis(settings)):
        try:
            found += await look
        except SettingsError as error:
            found.append(bad("settings", str(error), "see cdc config show"))
    return found + await asyncio.to_thread(_states, settings)


def _states(settings: Settings) -> list[Finding]:
    """Nothing where this project takes no state snapshots."""
    subject = "state snapshots"
    try:
        if (known := states(settings)) is None:
            return []
        newest = [found[0] for build in known.builds() if (found := known.of(build))]
    except CdcError as error:
        return [bad(subject, str(error), "check state.snapshots, and what its storage wants of the environment")]
    text = ", ".join(f"{state.build} of {state.at:%F %T} UTC" for state in newest)
    return [ok(subject, text or f"none yet in {settings.state.snapshots}")]


def _mariadb(definition: ConnectorDefinition, dsn: str) -> list[Finding]:
    """The server's variables, its tables, and what the connector's user may do."""
    subject = f"source of {definition.name}"
    try:
        lifecycle.check_tables(definition, kinds.read_catalog(dsn, tables=definition.tables))
        user = definition.database.user or MariadbAddress.of(dsn).user
        kinds.check_server(definition, user, dsn)
    except (SourceUnavailable, SettingsError) as error:
        return [bad(subject, str(error), "check the dsn of its source, and that it is up")]
    except CdcError as error:
        said, _, fix = str(error).partition(": ")[2].partition("; ")
        return [bad(subject, said or str(error), fix or "see docs/guides/mariadb.md")]
    return [ok(subject, f"binlog, GTIDs and {len(definition.tables)} tables as they have to be")]


async def _connector(settings: Settings, definition: ConnectorDefinition) -> Finding:
    name = definition.name
    try:
        status = await lifecycle.status(name, connect_at=settings.connect_address(definition.kafka))
    except CdcError as error:
        return bad(f"connector {name}", str(error), f"cdc connector apply {name}")
    broken = [task for task in status.tasks if task.state != "RUNNING"]
    if status.state != "RUNNING" or broken:
        reason = next((task.reason for task in broken if task.reason), status.reason) or "no reason given"
        return bad(f"connector {name}", f"{status.state}: {reason}", f"cdc connector restart {name}")
    return ok(f"connector {name}", f"running, {len(status.tasks)} task")


async def _log(settings: Settings, definition: ConnectorDefinition, dsn: str) -> list[Finding]:
    """Whether the source's log is the one that the connector reads."""
    subject = f"source log of {definition.name}"
    try:
        async with connect(settings.connect_address(definition.kafka)) as client:
            log = logs.log_of(await client.config(definition.name))
            reached = await logs.reached(client, definition, log, kafka(settings, definition.kafka))
        # asked last: it goes on, and what was read of it before is never beyond it
        source = await asyncio.to_thread(logs.identity, definition, dsn, reached)
    except CdcError:
        return []  # said above
    now = f"{source.system}/{source.timeline}"
    wrong = logs.problem(definition.name, log, source, reached)
    if wrong is not None:
        what, _, fix = str(wrong).partition("Run ")
        return [bad(subject, what.strip(), fix)]
    if log.timeline and log.timeline != source.timeline:
        return [
            warn(
                subject, f"{now}, timeline {log.timeline} when the connector began",
                "well if the slot came along in a failover; if the source was restored from a backup: "
                f"cdc connector apply {definition.name} --anew",
            )
        ]  # fmt: skip
    return [ok(subject, now)]


async def _kafka(settings: Settings, cluster: str, topics: dict[str, float]) -> list[Finding]:
    found = await operation.kafka(settings.kafka_address(cluster), topics)
    return found if cluster or found[0].level == "error" else [*found, *await _documents_in_kafka(settings)]


async def _documents_in_kafka(settings: Settings) -> list[Finding]:
    """Nothing where there are none."""
    client = KafkaClient(settings.kafka_address(), "kafka", 5.0)
    try:
        names = await client.names()
        wanted = sorted(found["documents"] for name in names if (found := RECORD.fullmatch(name)))
        kept = await client.settings(*(topic for topic in wanted if topic in names)) if wanted else {}
    except SinkError as error:
        return [bad("documents in kafka", str(error), "check kafka.bootstrap and that Kafka is up")]
    finally:
        await client.close()
    return [_topic(topic, kept.get(topic)) for topic in wanted]


def _topic(topic: str, kept: dict[str, str] | None) -> Finding:
    subject = f"documents {topic}"
    if kept is None:
        return bad(subject, "the topic is gone, and its record is not", "cdc rebuild makes a new one of the mirror")
    if (policy := kept["cleanup.policy"]) != "compact":
        return bad(subject, f"cleanup.policy {policy}: Kafka deletes documents", "set cleanup.policy=compact")
    return ok(subject, policy)


async def _elasticsearch(settings: Settings) -> list[Finding]:
    client = elasticsearch.connect(settings.elasticsearch, settings.elasticsearch_url()).options(request_timeout=5)
    ask = partial(elasticsearch.call, client, "elasticsearch", "GET")
    try:
        health = await ask("/_cluster/health")
        nodes = (await ask("/_nodes", params={"filter_path": "nodes.*.version"}))["nodes"]
    except (SinkError, ApiError) as error:
        return [bad("elasticsearch", str(error), "check elasticsearch.url, its ca and password, and that it is up")]
    finally:
        await client.close()
    versions = sorted({node["version"] for node in nodes.values()})
    state = health["status"]
    found = [ok("elasticsearch", f"{state}, {', '.join(versions)}")]
    if state == "red":
        found = [bad("elasticsearch", "the cluster is red", "GET _cluster/allocation/explain says why")]
    if not all(version.startswith(SUPPORTED) for version in versions):
        found.append(bad("elasticsearch version", ", ".join(versions), "8.x and 9.x are supported"))
    return found


async def _redis(settings: Settings) -> list[Finding]:
    """Nothing where this project has no Redis."""
    if settings.redis.url is None and settings.endpoints() is None:
        return []
    try:
        from connectors.sinks.redis_client import Client, connect
    except ImportError:
        return []  # who has a projection there is told by `cdc apply`
    url = settings.redis_url
    client = Client(connect(settings.redis.model_copy(update={"request_timeout": 5.0}), url), "redis", url)
    kept = ""
    try:
        info = await client.ask("INFO")
        with suppress(SinkError):  # not every user may ask
            kept = (await client.ask("CONFIG GET", "appendfsync"))["appendfsync"]
    except CdcError as error:
        return [bad("redis", str(error), "check redis.url, its ca and password, and that it is up")]
    finally:
        await client.close()
    found = [ok("redis", f"{info['redis_version']}, {info['used_memory_human']} used")]
    if (policy := info["maxmemory_policy"]) != "noeviction":
        found.append(
            bad("redis maxmemory-policy", policy, "CONFIG SET maxmemory-policy noeviction: no sink writes there before")
        )
    if not info["aof_enabled"]:
        found.append(warn("redis appendonly", "no: a restart loses what was written last", "CONFIG SET appendonly yes"))
    elif kept not in ("", "always"):
        found.append(
            warn("redis appendfsync", f"{kept}: a crash loses what was written last", "CONFIG SET appendfsync always")
        )
    return found
