"""The sample shop: its tables, its first data, and customers who keep ordering."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

import psycopg

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
CREATE INDEX IF NOT EXISTS orders_by_customer ON shop.orders(customer_id);
CREATE INDEX IF NOT EXISTS lines_by_product ON shop.order_lines(product_id);
"""
TABLES: Final = ("shop.order_lines", "shop.orders", "shop.products", "shop.customers")


def create(dsn: str) -> None:
    """The empty shop; what an earlier demo left in it goes."""
    with psycopg.connect(dsn) as db:
        db.execute(SCHEMA.encode())
        db.execute(f"TRUNCATE {', '.join(TABLES)}".encode())


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
            " timestamptz '2026-06-01' + i * interval '1 second' FROM generate_series(1, %s) i",
            (customers, orders),
        )
        db.execute(
            "INSERT INTO shop.order_lines SELECT o, l, 1 + (o * 31 + l * 17) %% %s, 1 + (o + l) %% 5,"
            " ((o * 37 + l * 11) %% 9900 + 100)::numeric / 100"
            " FROM generate_series(1, %s) o, generate_series(1, %s) l",
            (products, orders, lines),
        )
        db.execute(
            "UPDATE shop.orders o SET charged = (SELECT sum(quantity * unit_price) FROM shop.order_lines WHERE order_id = o.id)"
        )
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("ANALYZE")


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
        kinds = (
            self.order,
            self.change,
            self.rename_customer,
            self.rename_product,
            self.move_line,
            self.delete,
            self.restock,
        )
        kind = self._random.choices(kinds, (40, 25, 6, 2, 12, 5, 10))[0]
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
        return (order,)

    def change(self, db: psycopg.Connection) -> tuple[int, ...]:
        order = self._any_order()
        db.execute("UPDATE shop.order_lines SET quantity = quantity %% 9 + 1 WHERE order_id = %s", (order,))
        db.execute("UPDATE shop.orders SET status = 'paid' WHERE id = %s", (order,))
        self._charge(db, order)
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
        db.execute("DELETE FROM shop.orders WHERE id = %s", (order,))
        return ()

    def restock(self, db: psycopg.Connection) -> tuple[int, ...]:
        product = self._random.randint(1, self._products)
        db.execute("UPDATE shop.products SET stock = stock + 1 WHERE id = %s", (product,))
        return ()
