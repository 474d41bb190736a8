"""Waiting for a place in the source's log."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from connectors.sinks.memory import MemorySink, MemoryStore
from pipeline.errors import OperationError
from pipeline.events.sourcelog import lsn_text
from pipeline.operations.wait import Token, Waited, of_connector, token_of, tokens_of, wait

OLD, NEW = "s1000/7/1", "s2000/7/2"


async def waited(watermark: dict[str, Any] | None, lsn: int, log: str | None) -> Waited:
    sink = MemorySink(store=MemoryStore(), alias="orders", projection="orders-v1")
    await sink.prepare()
    record = await sink.claim("me", 0)
    if watermark is not None:
        record.watermark = {"shop": watermark}
        await sink.save(record)
    return await wait(sink, "shop", lsn, patience=0, log=log)


@pytest.mark.edge_case(16, 53)
@pytest.mark.parametrize(
    ("watermark", "lsn", "log", "reached"),
    [
        (None, 1, OLD, False),
        ({"lsn": 5, "log": OLD}, 5, OLD, True),
        ({"lsn": 5, "log": OLD}, 6, OLD, False),
        ({"lsn": 900, "log": OLD}, 5, NEW, False),
        ({"lsn": 4, "log": NEW}, 5, NEW, False),
        ({"lsn": 5, "log": NEW}, 5, NEW, True),
        ({"lsn": 5, "log": NEW}, 900, OLD, True),
        ({"lsn": 900, "log": OLD}, 5, None, True),
        ({"lsn": 5}, 5, None, True),
        ({"lsn": 900}, 5, NEW, False),
    ],
)
async def test_a_position_is_reached_in_its_own_log_or_a_later_one(
    watermark: dict[str, Any] | None, lsn: int, log: str | None, reached: bool
) -> None:
    assert (await waited(watermark, lsn, log)).reached is reached


async def test_it_goes_on_asking_until_its_patience_is_over() -> None:
    sink = MemorySink(store=MemoryStore(), alias="orders", projection="orders-v1")
    await sink.prepare()
    record = await sink.claim("me", 0)
    asking = asyncio.create_task(wait(sink, "shop", 7, patience=20))
    await asyncio.sleep(0.15)
    assert not asking.done()
    record.watermark = {"shop": {"lsn": 7}}
    await sink.save(record)
    assert (await asking).reached


def test_a_token_is_a_transaction_or_a_place_in_the_log() -> None:
    assert token_of("txid:742") == Token(txid=742)
    assert token_of("lsn:0/16B3748") == token_of("lsn:23803720") == Token(lsn=0x16B3748)
    assert token_of("lsn:1/A@7412345/1") == Token(lsn=(1 << 32) + 10, identity="7412345/1")
    assert lsn_text((1 << 32) + 10) == "1/A"
    assert token_of("crm-2:gtid:0-1-42") == Token(lsn=42, connector="crm-2")
    assert tokens_of("shop:lsn:1/A@7412345/1, crm:txid:7") == (
        Token(lsn=(1 << 32) + 10, identity="7412345/1", connector="shop"), Token(txid=7, connector="crm"),
    )  # fmt: skip
    for wrong in (
        "742",
        "txid:",
        "txid:-1",
        "lsn:x",
        "lsn:1/2/3",
        "lsn:0/1@x",
        "txid:1 OR 1=1",
        "lsn:0/1\n",
        ":lsn:0/1",
        "a:b:lsn:0/1",
    ):
        with pytest.raises(OperationError, match="no token"):
            token_of(wrong)


@pytest.mark.parametrize("several", ["lsn:1,lsn:2", "crm:lsn:1,crm:txid:2"])
def test_there_is_one_token_for_each_connector(several: str) -> None:
    with pytest.raises(OperationError, match="one token for each connector"):
        tokens_of(several)


def test_a_token_says_which_of_several_sources_it_is_of() -> None:
    assert of_connector(Token(lsn=1), ["shop"], "orders") == Token(lsn=1, connector="shop")
    assert of_connector(Token(lsn=1, connector="crm"), ["shop", "crm"], "orders").connector == "crm"
    for token, of in ((Token(lsn=1), ["shop", "crm"]), (Token(lsn=1, connector="other"), ["shop"])):
        with pytest.raises(OperationError, match=f"orders is of {' and '.join(of)}: say which"):
            of_connector(token, of, "orders")
