"""The Faust app of a projection's workers: one consumer group, whole polls, and nothing that Faust would do by itself."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import faust

from pipeline.addresses import KafkaAddress
from pipeline.authoring.projection import Projection
from pipeline.operations.status import worker_file
from pipeline.runtime.batches import NoTables
from pipeline.runtime.topics import credentials
from pipeline.settings import Settings

log = logging.getLogger("cdc.worker")


def faust_app(
    settings: Settings, projection: Projection[Any], kafka: KafkaAddress, place: str, folder: str
) -> faust.App:
    """`place` names the member in its group, on this machine and state folder; `folder` is Faust's own beside the status files."""
    session = settings.worker.session_timeout
    return faust.App(
        f"{settings.project}-{projection.id}",
        broker="kafka://" + ";".join(kafka.bootstrap.split(",")),
        broker_credentials=credentials(kafka),
        store="memory://",
        datadir=str(worker_file(settings, projection.id).parent / folder),
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        TableManager=NoTables,
        processing_guarantee="at_least_once",
        # started again, a member takes its own place at once, instead of after the session's timeout
        consumer_group_instance_id=f"{place}@{os.uname().nodename}{settings.state_dir.resolve()}",
        consumer_auto_offset_reset="none",
        consumer_max_fetch_size=1 << 19,
        consumer_metadata_max_age_ms=30_000,
        stream_buffer_maxsize=8,
        stream_wait_empty=False,
        broker_commit_interval=2.0,
        broker_session_timeout=session,
        broker_heartbeat_interval=min(3.0, session / 5),
        broker_request_timeout=max(40.0, session),
        broker_rebalance_timeout=30.0,
    )


async def start(app: faust.App, stopping: asyncio.Event) -> None:
    """Faust's own returns once the first assignment is through, which may take long, and is no reason not to stop."""
    starting, told = asyncio.create_task(app.start()), asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()


async def stop(app: faust.App, id: str) -> None:
    """Within 8 s: Faust may wait for Kafka for ever, and takes no cancellation."""
    _, late = await asyncio.wait({asyncio.create_task(app.stop())}, timeout=8)
    if late:
        log.warning("%s: Kafka did not let go in time; what it still holds is read again", id)
