"""What a mirror that was filled at one moment leaves out of its stream."""

from __future__ import annotations

import pytest

from pipeline.engine.copied import Copied
from pipeline.events.envelope import Boundary, Event, Source, TransactionBlock
from pipeline.events.sourcelog import Moment, SourceLog

LOG = SourceLog(1764017000123, "7412345", "1")
MOMENT = Moment("7412345/1", 5_000, "90:100:93,97")


def event(txid: int, lsn: int) -> Event:
    return Event("u", Source(lsn=lsn, txId=txid), transaction=TransactionBlock(f"{txid}:{lsn}", 1))


def left(moment: Moment, one: Event, log: SourceLog = LOG) -> bool:
    return Copied(moment).left([one], log) == [one]


@pytest.mark.parametrize(
    ("txid", "lsn", "expected"),
    [
        (80, 4_000, False),
        (92, 4_000, False),
        (93, 4_000, True),  # it was running
        (97, 4_999, True),
        (99, 4_999, False),
        (100, 4_999, True),  # it began after the newest that had ended
        (101, 4_000, True),
        (80, 5_000, True),  # an old id, and a new place: the ids went once round
        (101, 6_000, True),
    ],
)
def test_an_event_is_left_out_when_the_snapshot_saw_its_transaction(txid: int, lsn: int, expected: bool) -> None:
    assert left(MOMENT, event(txid, lsn)) is expected


@pytest.mark.parametrize(
    ("txid", "expected"),
    [(0xFFFF_FFF0, False), (0xFFFF_FFFE, True), (2, False), (5, True), (9, True)],
)
def test_ids_go_round(txid: int, expected: bool) -> None:
    """Events have the lower half of an id, a snapshot the whole."""
    first, end = (3 << 32) - 10, (3 << 32) + 5
    moment = Moment("7412345/1", 5_000, f"{first}:{end}:{(3 << 32) - 2},{(3 << 32) + 3}")
    assert left(moment, event(txid, 4_000)) is expected


def test_rows_of_snapshots_go_by_their_place_and_another_log_has_other_places() -> None:
    read = Event("r", Source(snapshot="true", lsn=4_000))
    assert not left(MOMENT, read)
    assert left(MOMENT, Event("r", Source(snapshot="true", lsn=5_000)))
    assert left(MOMENT, read, SourceLog(1764017000999, "7412345", "2"))
    assert left(MOMENT, Event("!", Source()))


def test_by_row_a_tombstone_goes_as_the_event_before_it_also_in_the_poll_before() -> None:
    copied, tombstone, old, new = Copied(MOMENT), Event("d", Source(), key=(1,)), event(80, 4_000), event(101, 6_000)
    assert copied.left_by_row("orders/0", [tombstone], LOG) == [], "of a delete before all that is read"
    assert copied.left_by_row("orders/0", [old], LOG) == []
    assert copied.left_by_row("orders/0", [tombstone, new], LOG) == [new]
    assert copied.left_by_row("orders/0", [tombstone], LOG) == [tombstone]
    assert copied.left_by_row("orders/1", [tombstone], LOG) == [], "another partition is where it is"


def test_an_end_is_left_out_up_to_the_moment() -> None:
    copied = Copied(MOMENT)
    assert copied.has_end(Boundary("END", "99:5000"), LOG)
    assert not copied.has_end(Boundary("END", "99:5001"), LOG)
    assert not copied.has_end(Boundary("END", "99:4000"), SourceLog(1764017000999, "7412345", "2"))


def test_it_survives_as_text() -> None:
    assert Moment.parsed(MOMENT.text) == MOMENT
