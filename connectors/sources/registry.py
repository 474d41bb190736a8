"""A schema registry: the schemas that Avro records name, asked for once each, by the API that Confluent's and Apicurio's have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import httpx

from pipeline.addresses import ConnectAddress
from pipeline.errors import SourceUnavailable
from pipeline.events.avro import AvroSchema, schema_ids

REQUEST_TIMEOUT: Final = 10.0


class Registry:
    """One registry; `unknown` says what becomes of records whose schema it does not know."""

    def __init__(self, name: str, address: ConnectAddress, *, unknown: Literal["wait", "dead_letter"] = "wait") -> None:
        self.name, self._address, self._unknown = name, address, unknown
        self.schemas: dict[int, AvroSchema] = {}
        """Those that were asked for; an id always means the same."""

    async def learn(self, records: Iterable[tuple[int, bytes | None, bytes | None]]) -> None:
        """Ask for the schemas of these records that are not known; raises SourceUnavailable where that can't be done now."""
        if missing := schema_ids(records) - self.schemas.keys():
            async with httpx.AsyncClient(**self._address.options(), timeout=REQUEST_TIMEOUT) as http:
                for id in sorted(missing):
                    self.schemas[id] = await self._ask(http, id)

    async def _ask(self, http: httpx.AsyncClient, id: int) -> AvroSchema:
        where = f"The schema registry {self.name} at {httpx.URL(self._address.url, userinfo=b'')}"
        try:
            answer = await http.get(f"schemas/ids/{id}")
        except httpx.TransportError as error:
            raise SourceUnavailable(
                f"{where} can't be reached ({str(error) or type(error).__name__}): records wait for schema {id}; check"
                f" registries.{self.name}.url and that it is up."
            ) from None
        if answer.status_code == httpx.codes.NOT_FOUND:
            if self._unknown == "dead_letter":
                return AvroSchema(wrong=f"the registry {self.name} does not know it")
            raise SourceUnavailable(
                f"{where} knows no schema {id}, and records wait for it: is it the producer's registry? Where the record is"
                ' no good, unknown_schemas = "dead_letter" in the topics\' definition passes it by.'
            )
        if answer.is_error:
            raise SourceUnavailable(f"{where} answers {answer.status_code} for schema {id}: records wait for it.")
        try:
            told = answer.json()
            text, kind, references = told["schema"], told.get("schemaType") or "AVRO", told.get("references")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceUnavailable(f"{where} gives no schema for {id}: is its url that of the API?") from None
        if kind != "AVRO":
            return AvroSchema(wrong=f"it is of {kind}, and only Avro is read")
        if references:
            return AvroSchema(wrong="it refers to other schemas, which is not read")
        return AvroSchema.of(text)
