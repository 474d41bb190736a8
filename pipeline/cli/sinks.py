"""The sinks as operations and `preview` see them."""

from __future__ import annotations

import re

from connectors.sinks import SINKS
from connectors.sinks.elasticsearch_mapping import mapping
from pipeline.operations.sinks import SinkRules

_INDEX = re.compile(r"(?=.{1,200}$)[a-z0-9][^A-Z\\/*?\"<>| ,#:]*")

RULES = {kind: SinkRules() for kind in SINKS} | {
    "elasticsearch": SinkRules(
        mapping, _INDEX, 'write small letters, digits, - and _ (no \\ / * ? " < > | , # :), a letter or digit first'
    )
}
