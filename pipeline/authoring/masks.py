"""Masks: what stands in place of a value that nobody is to read, and which columns can have one."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import SecretStr

from pipeline.authoring.catalog import Catalog, Column
from pipeline.errors import UnknownColumn

STARS: Final = "***"
_TEXTS: Final = re.compile(r"text|character varying(\(\d+\))?|varchar\(\d+\)|(tiny|medium|long)text")
"""Types of Postgres and MariaDB of which Debezium masks every value; of others it would mask none, without a word."""


@dataclass(frozen=True, slots=True)
class Mask:
    """`hash`: SHA-256 of the salt and the value, in 64 hex digits; `keep`: stars, and the value's last `chars` characters."""

    way: Literal["hash", "keep"]
    chars: int = 0

    def of(self, value: str | None, salt: SecretStr) -> str | None:
        """What is shown of a value; null stays null."""
        if value is None:
            return None
        if self.way == "hash":
            return hashlib.sha256((salt.get_secret_value() + value).encode()).hexdigest()
        return STARS + (value[-self.chars :] if 0 < self.chars < len(value) else "")


def complaint(catalog: Catalog, name: str, way: str) -> str | None:
    """Why a connector can't mask this column (`shop.customers.email`), and what to do; None where it can.

    A table that the catalog does not know is for others to name.
    """
    table = catalog.tables.get(name.rpartition(".")[0])
    if table is None:
        return None
    try:
        column = table.column(name.rpartition(".")[2])
    except UnknownColumn as error:
        return str(error)
    if column.name in table.primary_key:
        return (
            f"{name} is of {table.name}'s primary key, and masked keys would be other keys: rows could not be told apart;"
            " leave it out of `mask`"
        )
    if not maskable(column):
        return (
            f"{name} is {column.type}, and Debezium masks texts only: it would be sent as it is; leave the table's column"
            " out of the documents, or store it as text"
        )
    if way == "hash" and column.toastable and table.replica_identity != "full":
        return (
            f"{name} may be long, and where an update leaves a long value alone Debezium would hash its own word for that;"
            f' run ALTER TABLE {table.name} REPLICA IDENTITY FULL, or write "redact"'
        )
    return None


def maskable(column: Column) -> bool:
    """Whether it is a plain text, as Debezium and the mirror have it."""
    return column.base is None and _TEXTS.fullmatch(column.type) is not None
