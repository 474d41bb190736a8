"""`python -m pipeline.demo.sample`: the shop that the docs speak of, in the database of the settings."""

from __future__ import annotations

import sys

from pipeline.demo import shop
from pipeline.settings import load

ORDERS = 200


def main() -> None:
    """The shop, empty before, with so many orders."""
    orders = int(sys.argv[1]) if len(sys.argv) > 1 else ORDERS
    dsn = load().source_dsn()
    shop.create(dsn)
    shop.seed(dsn, customers=max(10, orders // 5), products=max(10, orders // 50), orders=orders)
    shop.seed_more(dsn)
    print(f"A shop of {orders:,} orders.")


if __name__ == "__main__":
    main()
