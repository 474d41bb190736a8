"""What the engine is fed, and what it says of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from pipeline.engine.layout import Layout, Table
from pipeline.engine.sourcelog import in_log
from pipeline.errors import DecodeError, PositionWentBack
from pipeline.events.envelope import Event, TableDecoder, dead_letter, placed
from pipeline.events.foreign import Foreign, ForeignDecoder
from pipeline.events.sourcelog import Gtid, SourceLog

SNAPSHOT: Final = frozenset({"true", "first", "first_in_data_collection", "last_in_data_collection", "last", True})
"""What events say that a snapshot of all tables read."""
Record = tuple[int, bytes | None, bytes | None]
"""Offset, key and value of one Kafka record."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the engine is fed: `topics` maps each data topic to its source table."""

    topics: Mapping[str, str]
    boundaries: str | None
    """The transaction topic; None where there is none (then `consistency` must be `row`)."""
    connector: str = ""
    others: Mapping[str, str] = field(default_factory=dict)
    """The connector of each topic that is not of that one, of transaction topics too, and the producer of foreign ones: then
    all is applied by row, for the transactions of two have no common order."""
    exchange: str | None = None
    """The partition of the exchange topic, `topic/number`, by which all of these come; None where they are read themselves."""
    partitions: int = 1
    """Of the exchange topic."""

    foreign: Mapping[str, Foreign] = field(default_factory=dict)
    """How the topics that others produce are read."""

    @property
    def transactions(self) -> dict[str, str]:
        """The connector of each transaction topic."""
        own = {} if self.boundaries is None else {self.boundaries: self.connector}
        return own | {topic: of for topic, of in self.others.items() if topic not in self.topics}

    @property
    def connectors(self) -> tuple[str, ...]:
        """Them all, and the producers of foreign topics: that of the boundaries first."""
        return tuple(dict.fromkeys((self.connector, *self.others.values())))

    def decoder(self, topic: str, table: Table) -> TableDecoder | ForeignDecoder:
        """What decodes a topic's records."""
        if (foreign := self.foreign.get(topic)) is not None:
            return foreign.decoder(table.name, table.number, table.wires, table.key)
        return TableDecoder(table.name, table.number, table.wires, table.key)

    def connector_of(self, topic: str) -> str:
        return self.others.get(topic, self.connector)

    def tables_of(self, connector: str) -> frozenset[str]:
        """The tables that come by a connector."""
        return frozenset(table for topic, table in self.topics.items() if self.connector_of(topic) == connector)

    def named(self, name: str, connector: str) -> str:
        """What the mirror calls a connector's line of its meta."""
        return name if connector == self.connector else f"{name}/{connector}"


def decoders(inputs: Inputs, layout: Layout) -> dict[str, TableDecoder | ForeignDecoder]:
    """The decoder of each data topic."""
    return {topic: inputs.decoder(topic, layout.tables[table]) for topic, table in inputs.topics.items()}


@dataclass(slots=True)
class Progress:
    """What one step did."""

    applied: int = 0
    transactions: int = 0
    newest_ms: int = 0
    """Source time of the newest event applied, in ms since 1970."""
    offsets: dict[str, int] = field(default_factory=dict)


def decoded(
    decoder: TableDecoder | ForeignDecoder, records: Sequence[Record], log: SourceLog, by_row: bool
) -> tuple[list[Event], int]:
    """The events of one partition and source log, in order; and how many tombstones said nothing new."""
    decode, number, tombstones = decoder.decode, log.number, 0
    events: list[Event] = []
    txid = own = ""
    for offset, key, data in records:
        try:
            event = decode(key, data)
            event.offset = offset
            if event.source.gtid is not None:
                placed(event)
        except DecodeError as error:
            event = dead_letter(decoder.number, offset, key, data, error)
        if data is None and not (by_row and alone(event, events)):
            tombstones += 1
            continue
        event.log = number
        if (block := event.transaction) is not None:
            # only the part before the colon is the same from event to event
            found = block.id.partition(":")[0]
            if found != txid:
                txid, own = found, in_log(found, number)
                if event.source.gtid is not None:
                    _check_domain(event.source.gtid, log)
            block.id = own
        events.append(event)
    return events, tombstones


def _check_domain(gtid: str, log: SourceLog) -> None:
    """Positions are those of one GTID domain, which the connector's label names."""
    if log.number and log.timeline != str(Gtid.of(gtid).domain):
        raise PositionWentBack(
            f"The source wrote {gtid} in another GTID domain than {log.timeline}, which its connector reads: the order of"
            " two is not known. Have all write in one (gtid_domain_id), and run `cdc connector apply NAME --anew`."
        )


def alone(event: Event, before: Sequence[Event]) -> bool:
    """Whether a Kafka tombstone is all that says of a delete (compaction took the event before it)."""
    return event.op == "!" or not (before and before[-1].op == "d" and before[-1].key == event.key)
