"""The sample shop and its CRM: their tables, their first data, and customers who keep ordering."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import psycopg

from pipeline.demo.crm import crm_session
from pipeline.errors import SourceUnavailable

SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS shop;
CREATE TABLE IF NOT EXISTS shop.customers(
    id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(), deleted_at timestamptz);
CREATE TABLE IF NOT EXISTS shop.products(
    id bigint PRIMARY KEY, sku text NOT NULL, title text NOT NULL, stock integer NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS shop.orders(
    id bigint PRIMARY KEY, customer_id bigint NOT NULL REFERENCES shop.customers, status text NOT NULL,
    placed_at timestamptz NOT NULL, charged numeric(12, 2) NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS shop.order_lines(
    order_id bigint NOT NULL REFERENCES shop.orders ON DELETE CASCADE, line_no integer NOT NULL,
    product_id bigint NOT NULL REFERENCES shop.products, quantity integer NOT NULL, unit_price numeric(10, 2) NOT NULL,
    PRIMARY KEY(order_id, line_no));
CREATE TABLE IF NOT EXISTS shop.tags(id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE IF NOT EXISTS shop.product_tags(
    product_id bigint NOT NULL REFERENCES shop.products, tag_id bigint NOT NULL REFERENCES shop.tags,
    PRIMARY KEY(product_id, tag_id));
CREATE TABLE IF NOT EXISTS shop.outbox(
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text NOT NULL, aggregate_id bigint NOT NULL,
    type text NOT NULL, payload jsonb NOT NULL);
CREATE INDEX IF NOT EXISTS orders_by_customer ON shop.orders(customer_id);
CREATE INDEX IF NOT EXISTS lines_by_product ON shop.order_lines(product_id);
CREATE INDEX IF NOT EXISTS products_by_tag ON shop.product_tags(tag_id);
"""
TABLES: Final = ("shop.order_lines", "shop.orders", "shop.products", "shop.customers")
MORE: Final = ("shop.product_tags", "shop.tags", "shop.outbox")
"""What `seed_more` fills, and a load that tells."""
TAGS: Final = ("new", "sale", "vegan", "local", "gift", "bulk", "rare", "slow")
CRM: Final = (
    "CREATE DATABASE IF NOT EXISTS crm",
    "CREATE TABLE IF NOT EXISTS crm.members(customer_id BIGINT PRIMARY KEY, level VARCHAR(20) NOT NULL, points INT NOT NULL)",
)
LEVELS: Final = ("bronze", "silver", "gold")
REWARD: Final = (
    "INSERT INTO crm.members VALUES(%s, 'bronze', 1) ON DUPLICATE KEY UPDATE points = points + 1, level = %s"
)
TELL: Final = "INSERT INTO shop.outbox(aggregate_type, aggregate_id, type, payload) "


def create(dsn: str) -> None:
    """The empty shop; what an earlier demo left in it goes."""
    with psycopg.connect(dsn) as db:
        db.execute(SCHEMA.encode())
        db.execute(f"TRUNCATE {', '.join((*MORE, *TABLES))}".encode())


def seed(dsn: str, *, customers: int, products: int, orders: int, lines: int = 3) -> None:
    """First data: every order has `lines` lines, and what it is charged is their sum."""
    with psycopg.connect(dsn) as db:
        db.execute(
            "INSERT INTO shop.customers SELECT i, 'Customer ' || i, 'customer' || i || '@example.org',"
            " timestamptz '2026-01-01' + i * interval '1 minute' FROM generate_series(1, %s) i",
            (customers,),
        )
        db.execute(
            "INSERT INTO shop.products SELECT i, 'SKU-' || i, 'Product number ' || i || ', hand made', i %% 100"
            " FROM generate_series(1, %s) i",
            (products,),
        )
        db.execute(
            "INSERT INTO shop.orders SELECT i, 1 + (i * 7919) %% %s, (ARRAY['new','paid','sent'])[1 + i %% 3],"
            " timestamptz '2026-06-01' + i * interval '1 second' FROM generate_series(1::bigint, %s) i",
            (customers, orders),
        )
        db.execute(
            "INSERT INTO shop.order_lines SELECT o, l, 1 + (o * 31 + l * 17) %% %s, 1 + (o + l) %% 5,"
            " ((o * 37 + l * 11) %% 9900 + 100)::numeric / 100"
            " FROM generate_series(1::bigint, %s) o, generate_series(1, %s) l",
            (products, orders, lines),
        )
        db.execute(
            "UPDATE shop.orders o SET charged = (SELECT sum(quantity * unit_price) FROM shop.order_lines WHERE order_id = o.id)"
        )
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("ANALYZE")


def seed_more(dsn: str) -> int:
    """Tags, and the outbox as if it had told of all orders; how many rows."""
    with psycopg.connect(dsn) as db:
        done = [
            db.execute(
                "INSERT INTO shop.tags SELECT n, t FROM unnest(%s::text[]) WITH ORDINALITY x(t, n)", (list(TAGS),)
            ),
            db.execute(
                "INSERT INTO shop.product_tags SELECT DISTINCT id, 1 + (id * step) %% %s FROM shop.products,"
                " unnest(ARRAY[1, 3]) step",
                (len(TAGS),),
            ),
            db.execute(
                f"{TELL}SELECT 'order', id, 'OrderPlaced', jsonb_build_object('total', charged) FROM shop.orders".encode()
            ),
            db.execute(
                f"{TELL}SELECT 'order', id, 'OrderPaid', jsonb_build_object('amount', charged) FROM shop.orders"
                " WHERE status <> 'new'".encode()
            ),
        ]
        return sum(cursor.rowcount for cursor in done)


def seed_crm(uri: str, customers: int) -> int:
    """The CRM, in a MariaDB, with two of three customers as members; what an earlier demo left goes. How many rows."""
    rows = [(n, LEVELS[n % 3], n % 100) for n in range(1, customers + 1) if n % 3]
    with crm_session(uri) as session:
        for statement in (*CRM, "DELETE FROM crm.members"):
            session.rows(statement)
        for start in range(0, len(rows), 1000):
            some = rows[start : start + 1000]
            values = ", ".join(["(%s, %s, %s)"] * len(some))
            session.rows(f"INSERT INTO crm.members VALUES {values}", [value for row in some for value in row])
    return len(rows)


@dataclass
class Load:
    """A steady writer: `rate` transactions a second for `seconds`, in a thread of its own.

    Each transaction keeps the invariant that an order is charged the sum of its lines.
    """

    dsn: str
    rate: float
    seconds: float
    seed: int = 1
    done: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    committed: Callable[[int, float], None] | None = None
    """Told of each order that a transaction changed, and when it had committed (time.time())."""
    share: tuple[int, int] = (0, 1)
    """(i, n): of n loads at once this one touches the orders whose number leaves i when divided by n."""

    tells: bool = False
    """Each change of an order is told in the outbox too, in its transaction, and products are tagged."""

    crm: str = ""
    """The MariaDB where members are rewarded, too; while it is away none is."""

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._stop = threading.Event()
        self._random = random.Random(self.seed)  # noqa: S311 - a reproducible load

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            with psycopg.connect(self.dsn) as db:
                self._limits(db)
                started = time.monotonic()
                while (now := time.monotonic()) - started < self.seconds and not self._stop.is_set():
                    due = started + self.done / self.rate
                    if due > now:
                        self._stop.wait(due - now)
                        continue
                    self._one(db)
        except psycopg.Error as error:
            self.error = f"{type(error).__name__}: {error}"

    def _limits(self, db: psycopg.Connection) -> None:
        def highest(table: str) -> int:
            row = db.execute(f"SELECT coalesce(max(id), 0) FROM shop.{table}".encode()).fetchone()
            return int(row[0]) if row else 0

        self._customers, self._products = highest("customers"), highest("products")
        mine, of = self.share
        self._next = (highest("orders") // of + 1) * of + mine
        db.commit()

    def _one(self, db: psycopg.Connection) -> None:
        kinds: tuple[Callable[[psycopg.Connection], tuple[int, ...]], ...] = (
            self.order,
            self.change,
            self.rename_customer,
            self.rename_product,
            self.move_line,
            self.delete,
            self.restock,
        )
        weights: tuple[int, ...] = (40, 25, 6, 2, 12, 5, 10)
        if self.tells:
            kinds, weights = (*kinds, self.tag), (*weights, 4)
        if self.crm:
            kinds, weights = (*kinds, self.reward, self.leave), (*weights, 6, 2)
        kind = self._random.choices(kinds, weights)[0]
        with db.transaction():
            touched = kind(db)
        now = time.time()
        self.done += 1
        self.by_kind[kind.__name__] = self.by_kind.get(kind.__name__, 0) + 1
        if self.committed is not None:
            for order in touched:
                self.committed(order, now)

    def _any_order(self) -> int:
        of = self.share[1]
        return self._next - of * self._random.randint(1, max(1, min(20_000, self._next - 1) // of))

    def _line(self, order: int, number: int) -> tuple[int, int, int, int, Decimal]:
        pick = self._random
        return (
            order,
            number,
            pick.randint(1, self._products),
            pick.randint(1, 5),
            Decimal(pick.randint(100, 9999)) / 100,
        )

    @staticmethod
    def _charge(db: psycopg.Connection, *orders: int) -> None:
        db.execute(
            "UPDATE shop.orders o SET charged = coalesce((SELECT sum(quantity * unit_price) FROM shop.order_lines"
            " WHERE order_id = o.id), 0) WHERE id = ANY(%s)",
            (sorted(orders),),
        )

    def order(self, db: psycopg.Connection) -> tuple[int, ...]:
        order, self._next = self._next, self._next + self.share[1]
        customer = self._random.randint(1, self._customers)
        lines = [self._line(order, n) for n in range(1, self._random.randint(2, 5))]
        db.execute(
            "INSERT INTO shop.orders VALUES(%s, %s, 'new', clock_timestamp(), %s)",
            (order, customer, sum(line[3] * line[4] for line in lines)),
        )
        db.cursor().executemany("INSERT INTO shop.order_lines VALUES(%s, %s, %s, %s, %s)", lines)
        self._tell(db, order, "OrderPlaced", "'total', %s::numeric", sum(line[3] * line[4] for line in lines))
        return (order,)

    def _tell(self, db: psycopg.Connection, order: int, type: str, payload: str, value: object) -> None:
        if self.tells:
            db.execute(f"{TELL}VALUES('order', %s, %s, jsonb_build_object({payload}))".encode(), (order, type, value))

    def change(self, db: psycopg.Connection) -> tuple[int, ...]:
        order = self._any_order()
        db.execute("UPDATE shop.order_lines SET quantity = quantity %% 9 + 1 WHERE order_id = %s", (order,))
        db.execute("UPDATE shop.orders SET status = 'paid' WHERE id = %s", (order,))
        self._charge(db, order)
        for (charged,) in db.execute("SELECT charged FROM shop.orders WHERE id = %s", (order,)).fetchall():
            self._tell(db, order, "OrderPaid", "'amount', %s::numeric", charged)
        return (order,)

    def rename_customer(self, db: psycopg.Connection) -> tuple[int, ...]:
        customer = self._random.randint(1, self._customers)
        db.execute("UPDATE shop.customers SET name = name || '.' WHERE id = %s", (customer,))
        return ()

    def rename_product(self, db: psycopg.Connection) -> tuple[int, ...]:
        product = self._random.randint(1, self._products)
        db.execute("UPDATE shop.products SET title = left(title, 60) || '!' WHERE id = %s", (product,))
        return ()

    def move_line(self, db: psycopg.Connection) -> tuple[int, ...]:
        a, b = sorted((self._any_order(), self._any_order()))
        if a == b:
            return ()
        db.execute(
            "UPDATE shop.order_lines SET order_id = %s, line_no = coalesce((SELECT max(line_no) FROM shop.order_lines"
            " WHERE order_id = %s), 0) + 1 WHERE order_id = %s AND line_no ="
            " (SELECT max(line_no) FROM shop.order_lines WHERE order_id = %s)"
            " AND EXISTS(SELECT 1 FROM shop.orders WHERE id = %s)",
            (b, b, a, a, b),
        )
        self._charge(db, a, b)
        return a, b

    def delete(self, db: psycopg.Connection) -> tuple[int, ...]:
        order = self._any_order()
        gone = db.execute("DELETE FROM shop.orders WHERE id = %s RETURNING status, charged", (order,))
        for status, charged in gone.fetchall():
            self._tell(db, order, "OrderRefused", "'reason', %s::text", "out of stock")
            if status != "new":
                self._tell(db, order, "OrderCompensated", "'amount', %s::numeric", charged)
        return ()

    def tag(self, db: psycopg.Connection) -> tuple[int, ...]:
        """A product gets a tag, or loses it where it has it."""
        link = self._random.randint(1, self._products), self._random.randint(1, len(TAGS))
        if not db.execute("DELETE FROM shop.product_tags WHERE product_id = %s AND tag_id = %s", link).rowcount:
            db.execute("INSERT INTO shop.product_tags VALUES(%s, %s)", link)
        return ()

    def reward(self, db: psycopg.Connection) -> tuple[int, ...]:
        """In the CRM; the customer is renamed in the shop at the same time."""
        customer = self._random.randint(1, self._customers)
        db.execute("UPDATE shop.customers SET name = name || '*' WHERE id = %s", (customer,))
        self._in_crm(REWARD, (customer, self._random.choice(LEVELS)))
        return ()

    def leave(self, db: psycopg.Connection) -> tuple[int, ...]:
        self._in_crm("DELETE FROM crm.members WHERE customer_id = %s", (self._random.randint(1, self._customers),))
        return ()

    def _in_crm(self, statement: str, values: tuple[object, ...]) -> None:
        with suppress(SourceUnavailable), crm_session(self.crm) as session:
            session.rows(statement, values)

    def restock(self, db: psycopg.Connection) -> tuple[int, ...]:
        product = self._random.randint(1, self._products)
        db.execute("UPDATE shop.products SET stock = stock + 1 WHERE id = %s", (product,))
        return ()
