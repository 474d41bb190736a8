"""Server-sent events of a read model's feed, as what they tell."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Generic

from pipeline.authoring.reading import document_of
from pipeline.client.asks import DocumentT, Model, class_of


@dataclass(frozen=True, slots=True)
class Changed(Generic[DocumentT]):
    """A document as it is now, None where it went. `place`: from where to go on for who has this."""

    id: str
    revision: int
    document: DocumentT | None
    place: str


@dataclass(frozen=True, slots=True)
class Version:
    """Readers see another version from here on, and all its documents follow: what is not among them is gone."""

    name: str
    place: str


class Events(Generic[DocumentT]):
    """Made of the lines of answers, one after another; `place` is where one stands who has all that was told."""

    def __init__(self, model: Model[DocumentT], place: str) -> None:
        self._class, self.place = class_of(model), place
        self._event: dict[str, str] = {}

    def begin(self) -> dict[str, str]:
        """What the next answer is asked with; of the one before, a half-told event is told again."""
        self._event = {}
        return {"from": self.place}

    def line(self, text: str) -> Changed[DocumentT] | Version | None:
        """What is whole with this line."""
        if text:
            name, _, said = text.partition(": ")
            self._event[name] = said
            return None
        event, self._event = self._event, {}
        self.place = event.get("id", self.place)
        if "data" not in event:
            return None
        data = json.loads(event["data"])
        if event["event"] == "version":
            return Version(data["version"], event["id"])
        document = None if data["document"] is None else document_of(self._class, data["document"])
        return Changed(data["id"], int(data["revision"]), document, event["id"])
