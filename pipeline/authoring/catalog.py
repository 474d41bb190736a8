"""The catalog: the source's tables, columns and keys as last seen, kept in git so that `cdc check` runs offline."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from pipeline.errors import SettingsError, UnknownColumn, UnknownTable

ReplicaIdentity = Literal["default", "full", "index", "nothing"]

SAYS_UNCHANGED = ("text", "character varying", "bigint", "integer", "json", "jsonb", "bytea", "uuid")
"""Item types of arrays for which Debezium can say UNCHANGED; for all others it sends null."""
NEVER_SAYS_UNCHANGED = ("bit varying", "bit", "line", "lseg", "box", "path", "polygon", "circle")


UNREADABLE = "unreadable"
"""The base of a type whose values can't be taken from the events."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MaskedBy(_Entry):
    """How a connector masks a column: SHA-256 of the salt and the value, or stars for every value and for null."""

    way: Literal["hash", "redact"]
    salt: SecretStr | None = None
    """None where this process was not told it: then the values can't be read as events have them."""


class Column(_Entry):
    """One column of a source table."""

    name: str
    type: str
    """As the source writes it: `bigint`, `numeric(12,2)`, `timestamp with time zone`, `text[]`, `shop.mood`."""
    nullable: bool = True
    generated: bool = False
    """Computed by the source from other columns (`GENERATED ALWAYS AS`); it is not in the events."""
    default: bool = False
    """Has a default or is an identity."""
    toastable: bool = False
    """A long value may be kept out of line, and an update that leaves it alone says UNCHANGED."""
    base: str | None = None
    """What a named type is made of: `enum`, `composite`, `range`, or a domain's base type; or UNREADABLE."""
    masked: MaskedBy | None = Field(default=None, exclude=True)
    """What its connector sends instead of its values; said by the connector's definition, so it is not in the file."""

    @property
    def unchanged_is_null(self) -> bool:
        """Whether UNCHANGED comes as null, so that only REPLICA IDENTITY FULL keeps the column right."""
        if not self.toastable or self.generated:
            return False
        if self.type.endswith("[]"):
            return self.type.removesuffix("[]").partition("(")[0] not in SAYS_UNCHANGED
        return (self.base or self.type).partition("(")[0] in NEVER_SAYS_UNCHANGED


class Table(_Entry):
    """One source table; a partitioned one stands for all its partitions."""

    name: str
    """`schema.table`."""
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    replica_identity: ReplicaIdentity = "default"
    indexes: tuple[tuple[str, ...], ...] = ()
    """The columns of each whole, valid index over plain columns."""
    unique: tuple[tuple[str, ...], ...] = ()
    """Those of them that allow a value once, beside the primary key."""

    def column(self, name: str) -> Column:
        """The column, or UnknownColumn with the nearest name."""
        for column in self.columns:
            if column.name == name:
                return column
        names = [column.name for column in self.columns]
        raise UnknownColumn(f"{self.name} has no column {name!r}{did_you_mean(name, names)}")

    def silent_columns(self) -> tuple[str, ...]:
        """The columns that an update which leaves them alone would set to null: see Column.unchanged_is_null."""
        if self.replica_identity == "full":
            return ()
        return tuple(column.name for column in self.columns if column.unchanged_is_null)

    def identified_by(self, columns: Iterable[str]) -> bool:
        """Whether these columns lead to at most one row."""
        return any(set(index) <= set(columns) for index in (self.primary_key, *self.unique) if index)

    def indexed(self, columns: Iterable[str]) -> bool:
        """Whether an index finds rows by exactly these columns (its first ones, in any order)."""
        wanted = set(columns)
        return any(set(index[: len(wanted)]) == wanted for index in (self.primary_key, *self.indexes) if index)


class Catalog(_Entry):
    """All source tables known."""

    tables: dict[str, Table] = Field(default_factory=dict)

    @classmethod
    def of(cls, tables: Iterable[Table]) -> Self:
        return cls(tables={table.name: table for table in sorted(tables, key=lambda table: table.name)})

    def table(self, name: str) -> Table:
        """The table, or UnknownTable with the nearest name."""
        try:
            return self.tables[name]
        except KeyError:
            raise UnknownTable(f"The catalog has no table {name!r}{did_you_mean(name, self.tables)}") from None

    def text(self) -> str:
        """The lock file: sorted, one column a line, so that a diff shows what changed in the source."""
        tables = [f"    {_json(name)}: {_table(self.tables[name])}" for name in sorted(self.tables)]
        return '{\n  "tables": {\n' + ",\n".join(tables) + "\n  }\n}\n"

    def save(self, path: Path) -> bool:
        """Write the lock file; False where it already says the same."""
        text = self.text()
        if path.exists() and path.read_text() == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(path.suffix + ".new")
        fresh.write_text(text)
        fresh.replace(path)
        return True

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the lock file; SettingsError where there is none or it is damaged."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise SettingsError(f"There is no catalog {path}: run `cdc tables pull` with the source up.") from None
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise SettingsError(
                f"{path} is no catalog ({where}: {first['msg']}): run `cdc tables pull` again."
            ) from None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or what there is."""
    names = sorted(known)
    if near := get_close_matches(name, names, n=1, cutoff=0.6):
        return f"; did you mean {near[0]!r}?"
    if not names:
        return "; nothing is known yet: run `cdc tables pull`."
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"; there are {shown}."


def _table(table: Table) -> str:
    dumped = table.model_dump(mode="json", exclude={"name", "columns"})
    columns = ",\n".join(f"        {_json(c.model_dump(mode='json', exclude_defaults=True))}" for c in table.columns)
    parts = [f'"name": {_json(table.name)}', f'"columns": [\n{columns}\n      ]']
    parts += [f"{_json(key)}: {_json(value)}" for key, value in dumped.items()]
    return "{\n      " + ",\n      ".join(parts) + "\n    }"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
