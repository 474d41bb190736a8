"""The sinks as operations and `preview` see them."""

from __future__ import annotations

import re

from connectors.sinks import SINKS
from connectors.sinks.elasticsearch_mapping import mapping
from connectors.sinks.kafka_topics import NAME as TOPIC
from connectors.sinks.kafka_topics import described as topics
from connectors.sinks.postgres_tables import ddl, list_views
from connectors.sinks.redis_keys import NAME, described
from pipeline.operations.sinks import SinkRules

_INDEX = re.compile(r"(?=.{1,200}$)[a-z0-9][^A-Z\\/*?\"<>| ,#:]*")
# the version and `_deleted` of an index have to fit into 63 bytes behind it
_TABLE = re.compile(r"([a-z_][a-z0-9_]{0,62}\.)?[a-z_][a-z0-9_-]{0,45}")

RULES = {kind: SinkRules() for kind in SINKS} | {
    "elasticsearch": SinkRules(
        mapping,
        _INDEX,
        'write small letters, digits, - and _ (no \\ / * ? " < > | , # :), a letter or digit first',
    ),
    "postgres": SinkRules(
        name=_TABLE,
        name_rule="write schema.table or table: small letters, digits, _ and (in the table) -, no digit first, at most 46 of the table",
        ddl=ddl,
        also=list_views,
    ),
    "redis": SinkRules(
        name=NAME,
        name_rule="write letters, digits, _, . and -, in parts with : between them, the first not cdc, at most 200",
        ddl=described,
    ),
    "kafka": SinkRules(
        name=TOPIC,
        name_rule="write letters, digits, _, . and -, a letter or digit first, at most 200, and no version (.v3) at the end",
        ddl=topics,
    ),
}
