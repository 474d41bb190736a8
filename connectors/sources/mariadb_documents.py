"""What documents hold, asked of MariaDB in one snapshot whose position in the binlog is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from connectors.sources.mariadb_client import Session, connected
from connectors.sources.mariadb_rows import SNAPSHOT, MariadbRows
from connectors.sources.row_documents import RowSnapshot
from pipeline.addresses import MariadbAddress
from pipeline.authoring.catalog import Catalog
from pipeline.authoring.shape import Shape
from pipeline.events.sourcelog import Gtid


class MariadbDocuments:
    """The documents of one shape, as the database says."""

    def __init__(self, dsn: str, shape: Shape, catalog: Catalog) -> None:
        self.address, self.shape, self.catalog = MariadbAddress.of(dsn), shape, catalog

    @contextmanager
    def snapshot(self) -> Iterator[RowSnapshot]:
        """One state of the source."""
        with snapshot_rows(self.address) as (rows, at):
            yield RowSnapshot(self.shape, self.catalog, lambda _: rows, at)


@contextmanager
def snapshot_rows(address: MariadbAddress) -> Iterator[tuple[MariadbRows, int]]:
    """A reader of the rows of one state of the source, and its position."""
    with connected(address) as session:
        at = begun(session)
        yield MariadbRows(session), at


def begun(session: Session) -> int:
    """Begin a snapshot; its position: what committed up to there is seen, and nothing after."""
    session.rows("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    session.rows(SNAPSHOT)
    place = {str(name).lower(): value for name, value in session.rows("SHOW STATUS LIKE 'binlog_snapshot_%'")}
    file, at = place["binlog_snapshot_file"], int(place["binlog_snapshot_position"])
    gtid = session.one("SELECT BINLOG_GTID_POS(%s, %s)", (file, at))[0]
    return Gtid.newest(str(gtid)).sequence if gtid else 0
