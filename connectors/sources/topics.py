"""Foreign topics as a file in git, `connectors/topics/*.toml`: who else's changes are read, how they are written, and their columns."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from connectors.sources.debezium import TableName
from connectors.sources.registry import Registry
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.errors import DefinitionError, SettingsError
from pipeline.events.avro import AvroRows
from pipeline.events.foreign import MARKS, Envelope, Foreign, JsonRows, Plain
from pipeline.settings import Settings

TYPES: Final = (
    "smallint", "integer", "bigint", "numeric", "real", "double precision", "boolean", "text", "uuid", "json", "jsonb",
    "bytea", "date", "interval", "timestamp with time zone", "timestamp without time zone", "time with time zone",
    "time without time zone",
)  # fmt: skip
"""What a column may be declared as: types of Postgres, with an item's type and `[]` for a list."""
_NUMERIC: Final = re.compile(r"numeric\(\d+, *(\d+)\)")
NOT_NULL: Final = " not null"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ForeignTable(_Section):
    """One topic, whose records are a table's rows."""

    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    key: tuple[str, ...] = Field(min_length=1)
    """Columns that name a row; the records' keys have them."""
    columns: dict[str, str]
    """Their types, of TYPES; `not null` behind one says that each record has the column."""

    @field_validator("columns")
    @classmethod
    def _readable(cls, columns: dict[str, str]) -> dict[str, str]:
        for name, written in columns.items():
            plain = re.sub(r"\([\d, ]*\)", "", written.removesuffix(NOT_NULL)).removesuffix("[]")
            if plain not in TYPES:
                raise ValueError(f"{name}: {written!r} is not read; types are {', '.join(TYPES)}, and [] behind one")
            if name in MARKS:
                raise ValueError(f"{name}: it is a mark of flattened rows, and no column")
        return columns

    @model_validator(mode="after")
    def _key_is_declared(self) -> Self:
        if unknown := [name for name in self.key if name not in self.columns]:
            raise ValueError(f"key: {', '.join(unknown)} is not among the columns")
        return self

    @property
    def required(self) -> frozenset[str]:
        return frozenset(name for name, written in self.columns.items() if written.endswith(NOT_NULL))

    @property
    def scales(self) -> dict[str, int]:
        """The digits behind the point of the columns that are declared with them."""
        return {name: int(found[1]) for name, written in self.columns.items() if (found := _NUMERIC.match(written))}

    def table(self, name: str) -> Table:
        """As the catalog has it."""
        columns = tuple(
            Column(
                name=column,
                type=written.removesuffix(NOT_NULL),
                nullable=not (written.endswith(NOT_NULL) or column in self.key),
            )
            for column, written in self.columns.items()
        )
        return Table(name=name, columns=columns, primary_key=self.key, replica_identity="full")


class ForeignTopics(_Section):
    """The topics of one producer."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    format: Literal["json", "avro"]
    envelope: Envelope
    registry: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")] | None = None
    """Avro: that of the settings' `[registries.…]`."""
    unknown_schemas: Literal["wait", "dead_letter"] = "wait"
    """Avro: what becomes of a record whose schema the registry does not know."""
    plain_times: Literal["millis", "micros", "nanos"] | None = None
    """JSON without schemas: the unit of numbers that are timestamps and times of day."""
    plain_decimals: Literal["text", "base64"] = "text"
    """JSON without schemas: how numerics are written; the scale of base64 is that of the declared type."""
    tables: dict[TableName, ForeignTable] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.format == "avro") != (self.registry is not None):
            raise ValueError("registry: Avro needs one, of the settings' [registries.…]; JSON has none")
        topics = [table.topic for table in self.tables.values()]
        if twice := sorted({topic for topic in topics if topics.count(topic) > 1}):
            raise ValueError(f"tables: several are of topic {', '.join(twice)}")
        return self

    def topic(self, table: str) -> str:
        """The topic of a table's changes."""
        return self.tables[table].topic

    def foreign(self, table: str, registry: Registry | None) -> Foreign:
        """How a table's topic is read; `registry` is that of Avro."""
        own = self.tables[table]
        if registry is not None:
            return Foreign(partial(AvroRows, envelope=self.envelope, schemas=registry.schemas), own.required)
        plain = Plain(self.plain_times or "", self.plain_decimals == "base64", own.scales)
        return Foreign(partial(JsonRows, envelope=self.envelope, plain=plain), own.required)


def load_topics(folder: Path) -> dict[str, ForeignTopics]:
    """All definitions of a folder by name; raises SettingsError that names every wrong key, or what two share."""
    found: dict[str, ForeignTopics] = {}
    for path in sorted(folder.glob("*.toml")):
        new = _load(path)
        if new.name in found:
            raise SettingsError(f"{path} has the name of other topics, {new.name}: each needs its own.")
        for other in found.values():
            if shared := sorted(new.tables.keys() & other.tables.keys()):
                raise SettingsError(f"{path} has {shared[0]}, which {other.name} has: a table is of one topic.")
        found[new.name] = new
    return found


def _load(path: Path) -> ForeignTopics:
    try:
        return ForeignTopics.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML: {error}.") from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError(f"The definition of topics {path} is wrong:\n" + "\n".join(lines)) from None


def foreign_tables(settings: Settings) -> dict[str, ForeignTopics]:
    """Whose each foreign table is."""
    return {table: of for of in load_topics(settings.topics).values() for table in of.tables}


def foreign_catalog(settings: Settings) -> Catalog:
    """The foreign tables, as they are declared."""
    return Catalog.of(of.tables[name].table(name) for name, of in foreign_tables(settings).items())


def refuse_foreign(settings: Settings, tables: Iterable[str], subject: str) -> None:
    """Raise DefinitionError where some of these tables are of foreign topics."""
    found = foreign_tables(settings)
    if theirs := sorted(set(tables) & found.keys()):
        names = ", ".join(f"{table} ({found[table].name})" for table in theirs)
        raise DefinitionError(
            f"{subject} reads topics that others produce, {names}: their positions and their database are not known, so it"
            " can't be waited for, verified, rebuilt or read again from the source. Raise its version for a new one, which"
            " reads the topics from their beginning."
        )


def open_registry(settings: Settings, topics: ForeignTopics) -> Registry | None:
    """The registry of Avro topics; raises SettingsError where it has no address."""
    if topics.registry is None:
        return None
    return Registry(topics.registry, settings.registry_address(topics.registry), unknown=topics.unknown_schemas)
