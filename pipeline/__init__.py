"""Everything a projection's author imports. Nothing here touches Kafka, Elasticsearch or Postgres."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.authoring.documents import Document, Text, column, constant, derived, hidden, left_out, many, one
    from pipeline.authoring.projection import Projection, elasticsearch, projection

__all__ = [
    "Document",
    "Projection",
    "Text",
    "column",
    "constant",
    "derived",
    "elasticsearch",
    "hidden",
    "left_out",
    "many",
    "one",
    "projection",
]

_PROJECTION = {"Projection", "elasticsearch", "projection"}


def __getattr__(name: str) -> Any:
    # on first use, so that `cdc --help` does not wait for pydantic
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.authoring import documents, projection

    found = globals()[name] = getattr(projection if name in _PROJECTION else documents, name)
    return found


def __dir__() -> list[str]:
    return __all__
