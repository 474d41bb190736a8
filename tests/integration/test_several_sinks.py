"""One projection with four sinks on the real stack: Elasticsearch, Postgres read by SQL, Redis, and Kafka."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Any

import psycopg
import pytest
from aiokafka import AIOKafkaProducer
from redis import Redis

from pipeline.demo import truth
from tests.support.project import Project, until
from tests.support.web import expected

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_sinks")
    project.create(
        orders=150,
        also=f'postgres("crm.orders", children=["lines"], indexes=["customer.id", "lines.quantity"]), redis("{project.name}:orders", lookups=["status", "customer.id"], ttl=86400),'
        f' kafka("{project.name}.orders", partitions=3)',
    )
    project.start_worker()
    yield project


def in_postgres(shop: Project) -> dict[str, Any]:
    """The documents, and the lines from the table that they have to themselves, as one statement sees both."""
    query = (
        "SELECT _id, document, (SELECT json_agg(_item ORDER BY _position) FROM crm.orders_lines l WHERE l._id = o._id)"
        " FROM crm.orders o"
    )
    with psycopg.connect(shop.dsn) as db:
        return {id: document | ({"lines": lines} if lines else {}) for id, document, lines in db.execute(query)}


def in_redis(shop: Project) -> dict[str, Any]:
    return dict(truth.in_redis(shop.endpoints.redis, f"{shop.name}:orders"))


def in_kafka(shop: Project) -> dict[str, Any]:
    return truth.in_kafka(shop.endpoints.kafka, f"{shop.name}.orders")


async def damage(topic: str, kafka: str, documents: Iterable[tuple[str, bytes | None]]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for id, document in documents:
            await producer.send_and_wait(topic, document, id.encode(), headers=[("revision", b"1")])


def looked_up(shop: Project) -> dict[str, set[str]]:
    """The sets of the version that readers take, by field and value; the ids in them."""
    with Redis.from_url(shop.endpoints.redis, decode_responses=True) as db:
        prefix = str(db.get(f"{shop.name}:orders"))
        found = {
            key.removeprefix(f"{prefix}by:"): db.smembers(key) for key in db.scan_iter(f"{prefix}by:*", count=1000)
        }
    return {name: {key.removeprefix(prefix) for key in keys} for name, keys in found.items()}


def written(shop: Project, lsn: int) -> None:
    """All sinks say that they are past the position."""

    def passed() -> bool:
        sinks = shop.status()["sinks"]
        return len(sinks) == 4 and all(s["watermark"].get(shop.name, {}).get("lsn", -1) >= lsn for s in sinks)

    until(passed, 90, f"all sinks at {lsn}: {shop.status()}\n{shop.log()}")


def assert_equal(shop: Project) -> None:
    shop.assert_equal()
    assert in_postgres(shop) == in_redis(shop) == in_kafka(shop) == expected(shop)
    sets: dict[str, set[str]] = {}
    for id, order in expected(shop).items():
        for name in (f"status:{order['status']}", f"customer.id:{order['customer']['id']}"):
            sets.setdefault(name, set()).add(id)
    assert looked_up(shop) == sets


def test_each_sink_has_every_document(shop: Project) -> None:
    written(shop, truth.position(shop.dsn))
    assert len(expected(shop)) == 150
    assert_equal(shop)


def test_a_worker_killed_under_load_leaves_each_sink_as_the_source_says(shop: Project) -> None:
    random = Random(5)
    for round in range(3):
        for n in range(40):
            order = random.randrange(1, 151)
            shop.sql(
                f"UPDATE shop.orders SET status = 'r{round} {n}' WHERE id = {order}",
                f"UPDATE shop.customers SET name = 'n{round} {n}' WHERE id = (SELECT customer_id FROM shop.orders WHERE id = {order})",
                f"DELETE FROM shop.orders WHERE id = {random.randrange(1, 151)} AND NOT EXISTS"
                " (SELECT 1 FROM shop.order_lines l WHERE l.order_id = orders.id)",
                f"DELETE FROM shop.order_lines WHERE order_id = {random.randrange(1, 151)} AND line_no = 1",
                "UPDATE shop.orders o SET charged = (SELECT coalesce(sum(l.quantity * l.unit_price), 0) FROM shop.order_lines l"
                " WHERE l.order_id = o.id)",
            )
            if n == 25:
                (worker,) = shop.workers
                worker.send_signal(signal.SIGKILL)
                worker.wait()
                shop.workers.clear()
        shop.start_worker()
    written(shop, truth.position(shop.dsn))
    assert_equal(shop)


def test_a_reader_by_sql_never_sees_half_a_source_transaction_over_several_documents(shop: Project) -> None:
    # from here each state of the source has one status
    written(shop, shop.sql("UPDATE shop.orders SET status = 'all'"))
    seen = set()
    with psycopg.connect(shop.dsn, autocommit=True) as db:
        for n in range(15):
            lsn, passed = shop.sql(f"UPDATE shop.orders SET status = 'all {n}'"), False
            while not passed:
                seen.add(db.execute("SELECT count(DISTINCT document ->> 'status') FROM crm.orders").fetchone()[0])  # type: ignore[index]
                passed = shop.status()["sinks"][1]["watermark"][shop.name]["lsn"] >= lsn
    assert seen == {1}


def test_an_absent_sink_holds_up_the_others_in_nothing(shop: Project) -> None:
    shop.stop_workers()
    shop.start_worker(CDC_POSTGRES__DSN="postgresql://nobody:s3cret@127.0.0.1:9/none")
    lsn = shop.sql("UPDATE shop.orders SET status = 'not all' WHERE id % 2 = 0")
    shop.wait_for(lsn)
    shop.assert_equal()
    until(lambda: in_redis(shop) == in_kafka(shop) == expected(shop), 30, "Redis and Kafka have them, too")

    def named() -> bool:
        state = shop.status()["sinks"][1]
        return "can't be reached" in (state["error"] or "") and state["dirty"] > 0

    until(named, 30, f"the absent sink's error and its waiting documents: {shop.status()}")
    assert "s3cret" not in json.dumps(shop.status()) + shop.log(1000)
    shop.stop_workers()
    shop.start_worker()
    written(shop, lsn)
    assert_equal(shop)


def test_verify_compares_all_and_explain_tells_of_all(shop: Project) -> None:
    table = "crm.orders_v1"
    story = json.loads(shop.cdc("explain", f"{shop.name}-orders", "20", "-o", "json").stdout)
    assert [(s["sink"], s["equal"]) for s in story["sinks"]] == [
        (f"elasticsearch:{shop.name}-orders-v1", True), (f"postgres:{table}", True),
        (f"redis:{shop.name}:orders:v1", True), (f"kafka:{shop.name}.orders.v1", True),
    ]  # fmt: skip
    shop.cdc("verify", f"{shop.name}-orders", "--all")
    shop.sql(f"UPDATE {table} SET document = jsonb_set(document, '{{status}}', '\"wrong\"') WHERE _id = '20'")
    shop.sql(
        "UPDATE crm.orders_lines_v1 SET _item = '{}' WHERE _id = '22'",
        "DELETE FROM crm.orders_lines_v1 WHERE _id = '23'",
    )
    done = shop.cdc("verify", f"{shop.name}-orders", "--all", "-o", "json", check=False)
    assert done.returncode == 3 and [s["different"] for s in json.loads(done.stdout)["sinks"]] == [0, 3, 0, 0]
    key = f"{shop.name}:orders:v1:20"
    with Redis.from_url(shop.endpoints.redis) as db:
        db.set(key, '{"id":20}')
        db.pexpireat(f"{shop.name}:orders:v1:21", 1)
    # somebody else's producer: nothing but verify finds it
    wrong = ("22", b'{"id": 22}'), ("23", None), ("none", b'{"id": 0}')
    asyncio.run(damage(f"{shop.name}.orders.v1", shop.endpoints.kafka, wrong))
    done = shop.cdc("verify", f"{shop.name}-orders", "--all", "-o", "json", check=False)
    sinks = json.loads(done.stdout)["sinks"]
    assert done.returncode == 3 and [s["different"] for s in sinks] == [0, 3, 1, 1]
    assert [(s["missing"], s["ended"]) for s in sinks] == [(0, 0), (0, 0), (0, 1), (1, 0)]
    shop.cdc("verify", f"{shop.name}-orders", "--all", "--repair")
    story = json.loads(shop.cdc("explain", f"{shop.name}-orders", "21", "-o", "json").stdout)
    assert story["sinks"][2]["equal"] is None and "has ended" in story["sinks"][2]["error"]
    written(shop, shop.sql("UPDATE shop.orders SET status = 'again' WHERE id = 21"))
    assert_equal(shop)


def test_the_table_and_the_keys_are_shown_before_anything_runs(shop: Project) -> None:
    shown = shop.cdc("preview", f"{shop.name}-orders", "--as", "ddl").stdout
    assert 'CREATE TABLE IF NOT EXISTS "crm"."orders_v1"' in shown and 'VIEW "crm"."orders"' in shown
    assert "'{customer,id}'" in shown
    assert 'CREATE TABLE IF NOT EXISTS "crm"."orders_lines_v1"' in shown and 'VIEW "crm"."orders_lines"' in shown
    assert '"quantity" bigint' in shown and 'ON "crm"."orders_lines_v1" ("quantity")' in shown
    assert f"{shop.name}:orders:v1:" in shown and f"{shop.name}.orders.v1 of this version (3 partitions" in shown


def test_a_rebuild_moves_all_sinks_readers_and_a_rollback_moves_them_back(shop: Project) -> None:
    shop.stop_workers()
    shop.start_run()
    name = f"{shop.name}-orders"

    def followed() -> dict[str, str]:
        told = asyncio.run(truth.kafka_live(f"{shop.name}.orders", bootstrap_servers=shop.endpoints.kafka))
        assert set(told.pop("ends")) == {"0", "1", "2"}
        return told

    shop.cdc("rebuild", name, "--from", "mirror")
    written(shop, truth.position(shop.dsn))
    assert_equal(shop)
    with psycopg.connect(shop.dsn) as db, Redis.from_url(shop.endpoints.redis, decode_responses=True) as keys:
        seen = "SELECT pg_get_viewdef('crm.orders'::regclass)"
        assert keys.get(f"{shop.name}:orders") == f"{shop.name}:orders:v1.2:"
        assert followed() == {"topic": f"{shop.name}.orders.v1.2", "version": f"{shop.name}-orders-v1.2"}
        assert "orders_v1_2" in db.execute(seen.encode()).fetchone()[0]  # type: ignore[index]
        db.commit()
        shop.cdc("rollback", name, "--yes")
        assert "orders_v1_2" not in db.execute(seen.encode()).fetchone()[0]  # type: ignore[index]
        assert keys.get(f"{shop.name}:orders") == f"{shop.name}:orders:v1:"
        assert followed() == {"topic": f"{shop.name}.orders.v1", "version": f"{shop.name}-orders-v1"}
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'after' WHERE id = 30"))
    written(shop, truth.position(shop.dsn))
    assert_equal(shop)
