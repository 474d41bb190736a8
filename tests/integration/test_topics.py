"""Topics are made before they are read, and what Kafka says of them is heard; against a real server."""

from __future__ import annotations

from uuid import uuid4

import pytest

from connectors.sources.debezium import ConnectorDefinition
from pipeline.addresses import KafkaAddress
from pipeline.errors import SourceUnavailable
from pipeline.runtime.topics import ends_of
from pipeline.settings import Endpoints

pytestmark = pytest.mark.stack

DEFINITION = ConnectorDefinition.model_validate({"name": "topics", "tables": ["shop.orders"], "partitions": 3})


@pytest.mark.edge_case(36)
async def test_topics_made_a_moment_ago_are_read_with_all_their_partitions(stack: Endpoints) -> None:
    for _ in range(5):
        names = [f"topics.{uuid4().hex[:8]}" for _ in range(3)]
        found = await ends_of(KafkaAddress(stack.kafka), DEFINITION, names)
        assert found == {f"{name}/{number}": 0 for name in names for number in range(3)}


async def test_a_topic_that_kafka_does_not_make_is_named_with_what_to_do(stack: Endpoints) -> None:
    with pytest.raises(
        SourceUnavailable, match=r"did not make the topic no!good \(InvalidTopicError.*with 3 partitions"
    ):
        await ends_of(KafkaAddress(stack.kafka), DEFINITION, ["no!good"])
