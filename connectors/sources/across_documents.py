"""What documents hold whose tables are in several databases: the rows of one moment of each, joined here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from connectors.sources.postgres_documents import snapshot_rows
from connectors.sources.row_documents import RowSnapshot, TableReader
from pipeline.addresses import MariadbAddress
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.shape import Shape


@dataclass(frozen=True, slots=True)
class Captured:
    """What one connector captures of a shape's tables, and where it reads them."""

    dsn: str
    catalog: Catalog


class AcrossDocuments:
    """The documents of one shape, as its databases say; `captured`: by connector."""

    def __init__(self, shape: Shape, captured: Mapping[str, Captured], *, patience: float = 10.0) -> None:
        self.shape, self.captured, self.patience = shape, captured, patience
        self.catalog = Catalog.of(table for of in captured.values() for table in of.catalog.tables.values())

    @contextmanager
    def snapshot(self) -> Iterator[RowSnapshot]:
        """One state of each source, one after the other; its position is that of each connector."""
        readers: dict[str, TableReader] = {}
        position: dict[str, int] = {}
        with ExitStack() as held:
            for connector, of in self.captured.items():
                rows, position[connector] = held.enter_context(_snapshot_rows(of.dsn, self.patience))
                readers |= dict.fromkeys(of.catalog.tables, rows)
            yield RowSnapshot(self.shape, self.catalog, readers.__getitem__, position)


@contextmanager
def _snapshot_rows(dsn: str, patience: float) -> Iterator[tuple[Any, int]]:
    if MariadbAddress.is_one(dsn):
        from connectors.sources.mariadb_documents import snapshot_rows as of_mariadb  # its client is an extra

        with of_mariadb(MariadbAddress.of(dsn)) as found:
            yield found
    else:
        with snapshot_rows(dsn, patience=patience) as found_here:
            yield found_here
