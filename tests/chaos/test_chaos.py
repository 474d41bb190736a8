"""A short chaos run, so that each change meets one."""

import pytest

from tests.chaos.run import chaos


@pytest.mark.stack
@pytest.mark.timeout(600)
def test_a_short_chaos_run_leaves_every_document_right() -> None:
    right, summary = chaos(45, seed=5, orders=1500, rate=30)
    assert right, summary
    assert summary["kills_done"] >= 2 and summary["documents_read_meanwhile"] > 1000
