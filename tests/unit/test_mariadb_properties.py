"""MariaDB's events against the oracle: GTIDs, connectors killed amid a transaction that count anew; one worker, and several."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.testing.source import Message, SourceModel, Transaction
from tests.unit.test_engine_properties import deliver, small_fanouts
from tests.unit.test_exchange_moves import SHOPS
from tests.unit.test_exchange_properties import ORDERS, converge

__all__ = ["small_fanouts"]


class MariaModel(SourceModel):
    """The same tables, and what MariaDB's connector sends of them; a truncate is none of its transactions, and left out."""

    def truncate(self, table: str) -> None:
        pass

    def _commit(self, transaction: Transaction) -> None:
        transaction.lsn = transaction.txid  # the sequence of its GTID
        first = len(self.messages)
        super()._commit(transaction)
        gtid = f"0-1-{transaction.txid}"
        for message in self.messages[first:]:
            if message.value is None:
                continue
            value = json.loads(message.value)
            if message.topic == self.boundaries:
                value["id"] = gtid
                message.key = json.dumps({"id": gtid}).encode()
            else:
                value["transaction"]["id"] = gtid
                value["before"] = value["before"] or {}  # it always sends them
                value["source"] = {
                    "gtid": gtid, "pos": 1000, "row": 0, "snapshot": "false", "ts_ms": value["source"]["ts_ms"],
                }  # fmt: skip
            message.value = json.dumps(value).encode()

    def _source(self, lsn: int, snapshot: str, txid: int | None, last: int) -> dict[str, Any]:
        if txid is None:  # a snapshot's
            return {"gtid": None, "pos": 1000, "row": 0, "snapshot": snapshot, "ts_ms": self._clock}
        return super()._source(lsn, snapshot, txid, last)

    def restart(self, back: int) -> None:
        """Amid a transaction it says BEGIN once more, sends the rest, counts that from 1, and its END counts no more."""
        super().restart(back)
        if self.sent < len(self.messages) and self.messages[self.sent].value is None:
            self.sent -= 1  # a tombstone and its delete have one place
        at = self.sent
        gtid = None if at == len(self.messages) else self._gtid(self.messages[at])
        if gtid is None or self.messages[at].topic == self.boundaries:
            return
        end = at
        while (
            self.messages[end].topic != self.boundaries
            or json.loads(self.messages[end].value or b"")["status"] == "BEGIN"
        ):
            end += 1
        rest = [self._counted(m, n) for n, m in enumerate(self._rows(self.messages[at:end]), 1)]
        counts = Counter(m.topic.removeprefix(f"{self.name}.") for m in self._rows(rest))
        told = json.loads(self.messages[end].value or b"")
        told["event_count"] = counts.total()
        told["data_collections"] = [{"data_collection": t, "event_count": n} for t, n in counts.items()]
        begin = Message(self.boundaries, None, json.dumps({"status": "BEGIN", "id": gtid, "ts_ms": 1}).encode())
        over = Message(self.boundaries, None, json.dumps(told).encode())
        self.messages[at : end + 1] = [begin, *rest, over]

    @staticmethod
    def _rows(messages: list[Message]) -> list[Message]:
        return [m for m in messages if m.value is not None and not m.topic.endswith(".transaction")]

    def _gtid(self, message: Message) -> str | None:
        if message.value is None:
            return None
        value = json.loads(message.value)
        found: str | None = value["id"] if message.topic == self.boundaries else (value["transaction"] or {}).get("id")
        return found

    @staticmethod
    def _counted(message: Message, number: int) -> Message:
        value = json.loads(message.value or b"")
        value["transaction"]["total_order"] = number
        return Message(message.topic, message.key, json.dumps(value).encode(), message.again, message.label)


SOME = {"documents": ORDERS, **{name: SHOPS[name] for name in ("children with keys of their own", "groups")}}


@pytest.mark.edge_case(6, 8, 13, 38, 40, 41)
@pytest.mark.parametrize("consistency", ["transaction", "row"])
@given(
    random=st.randoms(use_true_random=False),
    partitions=st.integers(1, 3),
    rounds=st.integers(5, 60),
    staged_bytes=st.sampled_from([300, 4_000, 64_000_000]),
    begin=st.sampled_from(["log", "snapshot"]),
)
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_connector_that_counts_anew_loses_and_doubles_nothing(
    consistency: str, random: Random, partitions: int, rounds: int, staged_bytes: int, begin: str
) -> None:
    deliver(consistency, random, partitions, rounds, staged_bytes, begin, MariaModel)


@pytest.mark.edge_case(6, 8, 13, 38, 40, 41)
@pytest.mark.parametrize("shop", SOME.values(), ids=SOME.keys())
@given(
    random=st.randoms(use_true_random=False),
    workers=st.integers(1, 3),
    partitions=st.integers(1, 3),
    rounds=st.integers(10, 70),
    staged_bytes=st.sampled_from([300, 64_000_000]),
    begin=st.sampled_from(["log", "snapshot"]),
)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_several_workers_of_a_mariadb_are_exact(
    shop: Any, random: Random, workers: int, partitions: int, rounds: int, staged_bytes: int, begin: str
) -> None:
    converge(shop, random, workers, partitions, rounds, staged_bytes, begin, MariaModel)
