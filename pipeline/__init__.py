"""Everything a projection's author imports. Nothing here touches Kafka or a sink's server."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.authoring.aggregates import (
        Aggregate,
        average,
        collect,
        count,
        count_distinct,
        group,
        latest,
        maximum,
        minimum,
        total,
    )
    from pipeline.authoring.documents import (
        Document,
        Text,
        column,
        constant,
        derived,
        hashed,
        hidden,
        left_out,
        many,
        masked,
        one,
    )
    from pipeline.authoring.event_documents import EventDocument, on
    from pipeline.authoring.projection import Projection, elasticsearch, kafka, postgres, projection, redis

__all__ = [
    "Aggregate",
    "Document",
    "EventDocument",
    "Projection",
    "Text",
    "average",
    "collect",
    "column",
    "constant",
    "count",
    "count_distinct",
    "derived",
    "elasticsearch",
    "group",
    "hashed",
    "hidden",
    "kafka",
    "latest",
    "left_out",
    "many",
    "masked",
    "maximum",
    "minimum",
    "on",
    "one",
    "postgres",
    "projection",
    "redis",
    "total",
]


def __getattr__(name: str) -> Any:
    # on first use, so that `cdc --help` does not wait for pydantic
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.authoring import aggregates, documents, event_documents, projection

    home = next(m for m in (projection, documents, aggregates, event_documents) if hasattr(m, name))
    found = globals()[name] = getattr(home, name)
    return found


def __dir__() -> list[str]:
    return __all__
