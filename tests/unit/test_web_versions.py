"""The canary: what counts as the same, and when the next version is slower."""

from __future__ import annotations

import pytest

from pipeline.ports import Found
from pipeline.web.versions import COMPARED, Times, same


@pytest.mark.parametrize(
    ("live", "following", "equal"),
    [
        (b'{"id":1,"total":"1.10"}', b'{"id":1,"total":"1.10"}', True),
        (b'{"id":1,"total":"1.10"}', b'{"total": "1.10", "id": 1}', True),
        (b'{"id":1,"total":"1.10"}', b'{"id":1,"total":"1.1"}', False),
        (b'{"id":1}', b'{"id":1,"new":true}', True),
        (b'{"id":1,"old":true}', b'{"id":1}', True),
        (b'{"id":1,"old":null}', b'{"id":1,"old":0}', False),
        (b'{"n":1e400}', b'{"n":1e400,"new":1}', True),
        (b'{"n":1e400}', b'{"n":1e401}', False),
        (None, None, True),
        (b'{"id":1}', None, False),
        (None, b'{"id":1}', False),
    ],
)
def test_versions_say_the_same_where_the_fields_that_both_have_are_equal(
    live: bytes | None, following: bytes | None, equal: bool
) -> None:
    one, other = ({} if document is None else {"1": Found(1, document)} for document in (live, following))
    assert same(one, other) is equal


@pytest.mark.parametrize(
    ("live", "following", "reason"),
    [
        (0.010, 0.019, ""),
        (0.010, 0.025, "its p95 is 25 ms, that of the live version 10 ms"),
        (0.001, 0.004, ""),
        (0.001, 0.009, "its p95 is 9 ms, that of the live version 1 ms"),
    ],
)
def test_the_next_version_is_slower_where_its_slowest_reads_are(live: float, following: float, reason: str) -> None:
    times = Times()
    said = []
    for n in range(COMPARED):
        times.live.append(0.001 if n % 10 else live)
        times.next.append(0.001 if n % 10 else following)
        said.append(times.slower(2.0))
    assert said == [""] * (COMPARED - 1) + [reason]
