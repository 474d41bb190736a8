"""Everything a projection's author imports. Nothing here touches Kafka, Elasticsearch or Postgres."""

from pipeline.authoring.documents import Document, Text, column, derived, hidden, many, one
from pipeline.authoring.projection import Projection, elasticsearch, projection

__all__ = [
    "Document",
    "Projection",
    "Text",
    "column",
    "derived",
    "elasticsearch",
    "hidden",
    "many",
    "one",
    "projection",
]
