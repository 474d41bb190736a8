"""Read models that are filled by copies of the source's tables, beside a connector that streams and has no snapshot."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from tests.support.project import Project, until

pytestmark = pytest.mark.stack
COPY = '[snapshot]\nmode = "copy"\n'


@pytest.fixture
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_copied")
    project.create(definition=COPY)
    yield project


def assert_right(shop: Project) -> None:
    found = truth.compare(shop.dsn, shop.endpoints.elasticsearch, f"{shop.name}-orders", truth.ORDERS)
    assert found.none, f"{found.counts()} {found.stale[:5]}\n{shop.log()}"


@contextmanager
def load(shop: Project) -> Iterator[None]:
    """Sixty transactions a second meanwhile, over orders that there are."""
    running = Load(shop.dsn, rate=60, seconds=600)
    running._any_order = lambda: running._random.randint(1, 200)  # type: ignore[method-assign]
    running.start()
    try:
        yield
    finally:
        running.stop()
        running.join(30)
    assert running.error is None and running.done > 50


@pytest.mark.edge_case(35)
def test_a_first_load_while_the_source_changes(shop: Project) -> None:
    with load(shop):
        worker = shop.start_worker(fault="copying:2")
        assert worker.wait(60) == -signal.SIGKILL
        worker = shop.start_worker(fault="copied")
        assert worker.wait(60) == -signal.SIGKILL
        shop.start_worker()
        shop.wait_for(truth.position(shop.dsn))
    shop.wait_for(truth.position(shop.dsn))
    assert_right(shop)
    assert shop.cdc("verify", f"{shop.name}-orders", "--all").returncode == 0
    # the log has not the rows: a mirror that is lost is copied again, and what is gone meanwhile goes
    shop.stop_workers()
    for path in (shop.folder / ".cdc" / "mirrors").glob("*.db*"):
        path.unlink()
    shop.sql("DELETE FROM shop.order_lines WHERE order_id = 40", "DELETE FROM shop.orders WHERE id = 40")
    with load(shop):
        shop.start_worker()
        shop.wait_for(truth.position(shop.dsn))
    shop.wait_for(truth.position(shop.dsn))
    until(lambda: shop.document(40) is None, 120, f"the order that is gone\n{shop.log()}")
    assert_right(shop)
    # a connector that begins anew has missed something: its snapshot brings it, and takes away what is gone
    shop.cdc("connector", "delete", shop.name, "--drop-slot", "--yes")
    shop.sql("UPDATE shop.orders SET status = 'missed' WHERE id % 5 = 0")
    shop.sql("DELETE FROM shop.order_lines WHERE order_id = 41", "DELETE FROM shop.orders WHERE id = 41")
    shop.cdc("connector", "apply", shop.name, "--yes")
    assert "unchanged" in shop.cdc("connector", "apply", shop.name, "--yes").stdout
    shop.wait_for(truth.position(shop.dsn))
    assert_right(shop)


def test_a_worker_waits_for_its_connector(new_project: Callable[[str], Project]) -> None:
    shop = new_project("it_copied_late")

    def early(project: Project) -> None:
        project.cdc("tables", "pull", "--from", project.dsn)
        project.cdc("apply", "--yes")
        project.start_worker()
        until(lambda: f"waits until connector {project.name} streams" in project.log(), 60, "a worker that waits")

    shop.before_connector = early
    shop.create(definition=COPY)
    shop.wait_for(truth.position(shop.dsn))
    assert_right(shop)
