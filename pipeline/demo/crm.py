"""The shop's CRM: a database of its own, in a MariaDB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.addresses import MariadbAddress


@contextmanager
def crm_session(uri: str) -> Iterator[Any]:
    """A session of it; raises SourceUnavailable where it is away."""
    from connectors.sources.mariadb_client import connected  # its client is an extra, which the benchmarks do without

    with connected(MariadbAddress.of(uri)) as session:
        yield session
