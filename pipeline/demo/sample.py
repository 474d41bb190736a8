"""`python -m pipeline.demo.sample`: the shop and the CRM that the docs speak of, in the databases of the settings."""

from __future__ import annotations

import sys

from pipeline.demo import shop
from pipeline.settings import load

ORDERS = 200


def main() -> None:
    """The shop, empty before, with so many orders; the CRM where there is a MariaDB."""
    orders = int(sys.argv[1]) if len(sys.argv) > 1 else ORDERS
    settings = load()
    dsn, customers = settings.source_dsn(), max(10, orders // 5)
    shop.create(dsn)
    shop.seed(dsn, customers=customers, products=max(10, orders // 50), orders=orders)
    shop.seed_more(dsn)
    if settings.has_source("mariadb"):
        shop.seed_crm(settings.source_dsn("mariadb"), customers)
    print(f"A shop of {orders:,} orders.")


if __name__ == "__main__":
    main()
