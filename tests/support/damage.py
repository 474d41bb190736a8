"""Documents in Elasticsearch made wrong, as no worker would have written them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apsw
import httpx

from tests.support.project import Project


def damage(shop: Project, key: int | str, change: Callable[[dict[str, Any]], Any], name: str = "orders") -> None:
    """Write a document as no worker would have."""
    index = f"{shop.endpoints.elasticsearch}/{shop.name}-{name}-v1/_doc/{key}"
    stored = httpx.get(index).json()
    document = stored.get("_source") or {"id": int(key), "_epoch": 1}
    change(document)
    params = {"version": stored.get("_version") or newest(shop, name), "version_type": "external_gte"}
    httpx.put(index, json=document, params=params).raise_for_status()


def newest(shop: Project, name: str) -> int:
    """The newest revision that the worker can have written by now."""
    db = apsw.Connection(str(shop.folder / ".cdc" / "mirrors" / f"{shop.name}-{name}-v1.db"))
    (seq,) = db.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()
    (epoch,) = db.execute("SELECT epoch FROM sinks").fetchone()
    db.close()
    return int(epoch << 40 | seq)


def remove(shop: Project, key: int, name: str = "orders") -> None:
    index = f"{shop.endpoints.elasticsearch}/{shop.name}-{name}-v1/_doc/{key}"
    version = httpx.get(index).json()["_version"] + 1
    httpx.delete(index, params={"version": version, "version_type": "external"}).raise_for_status()
