"""How long Kafka keeps what is in a topic now, and a topic that is kept no longer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from pipeline.addresses import KafkaAddress
from pipeline.reach import unreachable


async def forget_topic(kafka: KafkaAddress, topic: str) -> None:
    """Delete a topic, where there is one; raises SourceUnavailable where Kafka is away."""
    admin = AIOKafkaAdminClient(**kafka.options(), client_id="cdc-connector", request_timeout_ms=5000)
    try:
        await admin.start()
        if topic in await admin.list_topics():
            await admin.delete_topics([topic])
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    finally:
        await admin.close()


async def gone_by(kafka: KafkaAddress, topic: str) -> datetime | None:
    """When the last record that is in the topic now is deleted at the latest; None where it is kept for ever.

    Raises SourceUnavailable where Kafka is away.
    """
    admin = AIOKafkaAdminClient(**kafka.options(), client_id="cdc-erase", request_timeout_ms=5000)
    try:
        await admin.start()
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    except (KafkaError, OSError) as error:
        raise await unreachable(kafka, error) from None
    finally:
        await admin.close()
    settings = {entry[0]: entry[1] for answer in answers for resource in answer.resources for entry in resource[4]}
    kept, segment = int(settings.get("retention.ms") or -1), int(settings.get("segment.ms") or 0)
    if kept < 0 or "delete" not in settings.get("cleanup.policy", ""):
        return None
    # a segment goes as a whole, when its newest record is old enough
    return datetime.now(UTC) + timedelta(milliseconds=kept + segment)
