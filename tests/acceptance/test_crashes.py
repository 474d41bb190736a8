"""ARCHITECTURE.md's crash table, each row by a real `kill -9` at that very point, under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_crash")
    project.create(orders=500)
    yield project


@pytest.mark.edge_case(38)
@pytest.mark.parametrize(
    "point",
    [
        "received:40",  # before the mirror's commit
        "checkpointed:40",  # after it, before the write
        "writing:20",
        "written:20",  # after the write, before the dirty keys are cleared
        "settled:20",
        "recorded:3",  # after all of it
    ],
)
def test_nothing_is_lost_stale_or_extra_after_a_kill(shop: Project, point: str) -> None:
    worker = shop.start_worker(fault=point)
    load = Load(shop.dsn, rate=60, seconds=60, seed=len(point))
    load.start()
    try:
        assert worker.wait(60) == -9, f"the worker did not get to {point}\n{shop.log()}"
    finally:
        load.stop()
        load.join(10)
    assert load.error is None
    shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    shop.stop_workers()


def test_a_mirror_that_is_lost_is_made_again_and_documents_never_go_back(shop: Project) -> None:
    for path in (shop.folder / ".cdc" / "mirrors").glob("*.db*"):
        path.unlink()
    shop.sql("UPDATE shop.orders SET status = 'after the loss' WHERE id = 1")
    shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    shop.assert_equal()
    shop.stop_workers()
