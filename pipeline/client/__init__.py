"""The client of the query API: documents as the classes that declare them, sync and async.

    with Client("https://read-models.example", key=key) as client:
        order = client.get(OrderDocument, 10, after=token)

`after` is a token of something that was written: run `TXID` inside the writing transaction, or `LSN` after its commit.
"""

from pipeline.client.asks import GTID, LSN, TXID, Page, Totals
from pipeline.client.clients import AsyncClient, Client
from pipeline.client.events import Changed, Version

__all__ = ["GTID", "LSN", "TXID", "AsyncClient", "Changed", "Client", "Page", "Totals", "Version"]
