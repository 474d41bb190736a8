"""Read models that are filled by copies of the source's tables, beside a connector that streams and has no snapshot."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from pipeline.demo import truth
from pipeline.demo.shop import Load
from pipeline.engine.sql import connect, rows
from tests.support.project import Project, until

pytestmark = pytest.mark.stack
ORDERS = (Path(__file__).parents[2] / "projections" / "orders.py").read_text()
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


@pytest.mark.edge_case(35, 38)
def test_each_of_two_workers_copies_the_rows_that_it_owns(new_project: Callable[[str], Project]) -> None:
    shop = new_project("it_copied_parts")
    name, text = (
        f"{shop.name}-orders",
        ORDERS.replace('to=elasticsearch("orders")', 'to=elasticsearch("orders"), workers=2'),
    )
    shop.create(definition=COPY, projections=(), own={"orders": text})

    def caught_up() -> None:
        shop.cdc("wait", name, "--now", "--timeout", "120")
        assert_right(shop)

    with load(shop):
        worker = shop.start_worker(fault="copied")
        assert worker.wait(60) == -signal.SIGKILL, shop.log()
        shop.workers.clear()
        shop.start_run()
        shop.cdc("wait", name, "--now", "--timeout", "120")
    caught_up()
    orders = [rows_of(shop, name, part, "shop.orders") for part in (0, 1)]
    with shop.connection() as db:
        assert orders[0] | orders[1] == {key for (key,) in db.execute("SELECT id FROM shop.orders")}
    assert orders[0] and orders[1] and not orders[0] & orders[1]
    assert rows_of(shop, name, 0, "shop.customers") == rows_of(shop, name, 1, "shop.customers")

    with load(shop):
        built = shop.cdc("rebuild", name, "--from", "source")
    assert f"{name}-v1.2 is built from the source" in built.stderr
    caught_up()
    assert shop.cdc("verify", name, "--all").returncode == 0


def rows_of(shop: Project, name: str, part: int, table: str) -> set[int]:
    """The keys of a table's rows in a partition's mirror."""
    with closing(connect(str(shop.folder / ".cdc" / "mirrors" / f"{name}-v1@{part}.db"), readonly=True)) as db:
        return {key for (key,) in rows(db, f'SELECT id FROM "{table}"')}
