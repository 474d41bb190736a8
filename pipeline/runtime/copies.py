"""Whether a read model can be filled by copies of the source's tables, and what that takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from connectors.sources import kinds
from connectors.sources.masks import masked
from connectors.sources.postgres_copy import open_copies, streams
from pipeline.authoring.catalog import Catalog
from pipeline.errors import DefinitionError
from pipeline.operations.copying import Copying
from pipeline.runtime.faults import passing
from pipeline.runtime.topics import ends_of
from pipeline.runtime.wiring import Wired
from pipeline.settings import Settings

PATIENCE = 300.0
"""Seconds that a copy waits for transactions which are open in the source."""


def copyable(settings: Settings, wired: Wired) -> str:
    """Why these tables can't be copied, or nothing where they can."""
    if wired.foreign:
        return f"others produce {', '.join(sorted(wired.foreign))}"
    if {of.kind for of in wired.by_table.values()} != {"postgres"}:
        return "tables of Postgres alone are copied"
    if len({of.name for of in wired.by_table.values()}) > 1:
        return "its tables are captured by several connectors"
    catalog, dsn = Catalog.load(settings.catalog), wired.definition.dsn_in(settings)
    hidden = [
        f"{name}.{column}"
        for name, table in wired.layout.tables.items()
        for column in table.columns
        if not kinds.readable(dsn, catalog.table(name).column(column))
    ]
    return f"SQL does not give {', '.join(hidden)} as its events do" if hidden else ""


def assure_copyable(settings: Settings, wired: Wired) -> None:
    """Raises DefinitionError where a connector has its tables copied, and they can't be."""
    for of in wired.by_table.values():
        if of.snapshot.mode == "copy" and (reason := copyable(settings, wired)):
            raise DefinitionError(
                f'{wired.projection.id}: {reason}, and connector {of.name} has snapshot.mode = "copy": see `cdc check`.'
            )


def copying(
    settings: Settings, wired: Wired, say: Callable[[str], None], going: Callable[[], bool] = lambda: True
) -> Copying:
    """What `fill` is handed."""
    definition, kafka = wired.definition, settings.kafka_address(wired.definition.kafka)
    dsn = definition.dsn_in(settings)
    topics = [*wired.inputs.topics, definition.transaction_topic]
    return Copying(
        connector=definition.name, catalog=masked(Catalog.load(settings.catalog), [definition], settings.mask.salt), streams=partial(streams, definition, dsn, kafka),
        ends=partial(ends_of, kafka, definition, topics), copies=partial(open_copies, dsn, PATIENCE),
        say=say, going=going, passing=passing,
    )  # fmt: skip
