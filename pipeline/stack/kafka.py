"""Kafka of the local stack: one KRaft node that is broker and controller, without automatic topics."""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
from base64 import urlsafe_b64encode

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from pipeline.stack import processes
from pipeline.stack.files import write_atomically
from pipeline.stack.java import kafka_java, properties
from pipeline.stack.processes import Command
from pipeline.stack.site import Site, listens

NAME = "kafka"
# Asked while it starts, Kafka refuses connections: no news, and not worth a line on the user's screen.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())


def address(site: Site) -> str:
    """The bootstrap server."""
    return f"127.0.0.1:{site.port(NAME)}"


def prepare(site: Site) -> Command:
    """Format the log directory where there is none, and say how to start the broker."""
    folder = site.directory(NAME)
    file = folder / "server.properties"
    write_atomically(file, _configuration(site), owner=site.user)
    if not (folder / "made").exists():
        shutil.rmtree(folder / "data", ignore_errors=True)
        cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode("ascii").rstrip("=")
        tool = ["kafka.tools.StorageTool", "format", "-t", cluster.replace("-", "A"), "-c", str(file)]
        processes.run(Command(kafka_java(folder, "256m", *tool), cwd=folder), site.user, "Kafka's format")
        (folder / "made").touch()
    return Command(kafka_java(folder, "512m", "kafka.Kafka", str(file)), cwd=folder)


def _configuration(site: Site) -> str:
    broker, controller = site.free_port(NAME), site.free_port("kafka-controller")
    return properties(
        {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://127.0.0.1:{broker},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{broker}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": site.directory(NAME) / "data",
            "auto.create.topics.enable": "false",
            # After a crash the node waits until its former self has timed out.
            "broker.session.timeout.ms": 5000,
            "broker.heartbeat.interval.ms": 1000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 1,
            "group.initial.rebalance.delay.ms": 0,
        }
    )


def answers(site: Site) -> bool:
    """Whether the broker takes part in its cluster."""
    if not listens(site.port(NAME)):
        return False
    try:
        return asyncio.run(asyncio.wait_for(_has_broker(address(site)), 10))
    except (KafkaError, OSError, TimeoutError):
        return False


async def _has_broker(bootstrap: str) -> bool:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    try:
        await client.start()
        return bool((await client.describe_cluster())["brokers"])
    finally:
        await client.close()
