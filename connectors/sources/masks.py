"""Masked columns: what Debezium is told of them, and the same done to values that are read from the source itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql
from pydantic import SecretStr

from pipeline.authoring.catalog import Catalog, Column, MaskedBy, Table
from pipeline.authoring.masks import STARS, Mask
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from connectors.sources.debezium import ConnectorDefinition

Salt = SecretStr | None
"""None where no mask needs it, or this process was not told it."""
HASH: Final = "column.mask.hash.v2.SHA-256.with.salt."
REDACT: Final = f"column.mask.with.{len(STARS)}.chars"
_LENGTH: Final = re.compile(r"(?:character varying|varchar)\((\d+)\)")


def options(definition: ConnectorDefinition, salt: Salt) -> dict[str, str]:
    """Debezium's options; raises SettingsError where the salt is missing. It is in a key, where Connect resolves nothing."""
    by: dict[str, list[str]] = {}
    for name, way in definition.mask.items():
        by.setdefault(way, []).append(re.escape(name))
    found = {} if "redact" not in by else {REDACT: ",".join(by["redact"])}
    if "hash" in by:
        if salt is None:
            raise SettingsError(
                f"Connector {definition.name} hashes columns: set mask.salt in cdc.toml or CDC_MASK__SALT."
            )
        found[HASH + salt.get_secret_value()] = ",".join(by["hash"])
    return found


def unsalted(key: str) -> str:
    """A key of the configuration, fit to be shown."""
    return f"{HASH}**********" if key.startswith(HASH) else key


def masked(catalog: Catalog, definitions: Iterable[ConnectorDefinition], salt: Salt) -> Catalog:
    """The catalogue, its columns masked as these connectors' events have them."""
    mask = {name: way for definition in definitions for name, way in definition.mask.items()}
    return Catalog.of(_table(table, mask, salt) for table in catalog.tables.values()) if mask else catalog


def _table(table: Table, mask: Mapping[str, Any], salt: Salt) -> Table:
    columns = tuple(
        column.model_copy(update={"masked": MaskedBy(way=way, salt=salt)})
        if (way := mask.get(f"{table.name}.{column.name}"))
        else column
        for column in table.columns
    )
    return table.model_copy(update={"columns": columns})


# ---- values that are read from the source ------------------------------------------------------------------


def salted(connection: psycopg.Connection[Any], columns: Iterable[Column]) -> None:
    """Tell a session of Postgres the salt, where a column needs it: in a query's text it would get into errors and logs."""
    hashed = next((c.masked for c in columns if c.masked is not None and c.masked.way == "hash"), None)
    if hashed is not None:
        connection.execute("SELECT set_config('cdc.salt', %s, false)", (_salt(hashed).get_secret_value(),))


def in_sql(column: Column, written: sql.Composable) -> sql.Composable:
    """The expression of a column's value, masked as in events; a session's salt is told by `salted`."""
    if column.masked is None:
        return written
    if column.masked.way == "redact":
        return sql.Literal(STARS)
    hashed = "encode(sha256(convert_to(current_setting('cdc.salt') || {}::text, 'UTF8')), 'hex')"
    length = _length(column)
    return sql.SQL(hashed if length is None else f"left({hashed}, {length})").format(written)


def in_python(column: Column, write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same for values that Python writes as events have them."""
    own = column.masked
    if own is None:
        return write
    if own.way == "redact":
        return lambda _: STARS
    mask, salt, length = Mask("hash"), _salt(own), _length(column)

    def hashed(value: Any) -> Any:
        found = mask.of(write(value), salt)
        return found if found is None else found[:length]

    return hashed


def _length(column: Column) -> int | None:
    """A hash is cut to what the column can hold."""
    found = _LENGTH.fullmatch(column.type)
    return int(found[1]) if found else None


def _salt(mask: MaskedBy) -> SecretStr:
    if mask.salt is None:
        raise SettingsError("Columns of the source are hashed: set mask.salt in cdc.toml or CDC_MASK__SALT.")
    return mask.salt
