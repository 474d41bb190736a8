"""The catalogue of a project's sources, however many they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from connectors.sources.debezium import ConnectorDefinition
from connectors.sources.kinds import read_catalog
from connectors.sources.masks import masked
from connectors.sources.topics import foreign_catalog
from pipeline.authoring.catalog import Catalog, Table
from pipeline.settings import Settings


def read_catalogs(
    settings: Settings, definitions: Mapping[str, ConnectorDefinition], *, schemas: Sequence[str] | None = None
) -> Catalog:
    """The tables of all sources, and of foreign topics. Where two have one of the same name, it is that which a connector
    captures."""
    foreign = foreign_catalog(settings).tables
    captured = {table: definition.source for definition in definitions.values() for table in definition.tables}
    asked = dict.fromkeys(names(settings) or ([] if foreign and not definitions else [""]))
    # the local stack's MariaDB needs no setting
    asked |= dict.fromkeys(d.source for d in definitions.values() if settings.has_source(d.source))
    found: dict[str, Table] = {}
    for source in asked:
        for name, table in read_catalog(settings.source_dsn(source), schemas=schemas).tables.items():
            if name not in found or captured.get(name) == source:
                found[name] = table
    return Catalog.of((found | foreign).values())


def captured_catalog(settings: Settings, definition: ConnectorDefinition, tables: Sequence[str]) -> Catalog:
    """These tables of a connector's database, their columns masked as in its events."""
    return masked(read_catalog(definition.dsn_in(settings), tables=tables), [definition], settings.mask.salt)


def names(settings: Settings) -> list[str]:
    """The sources that have an address; that of `[source]` or the local stack is the empty name."""
    return [name for name in ("", *sorted(settings.sources)) if settings.has_source(name)]


__all__ = ["captured_catalog", "names", "read_catalogs"]
