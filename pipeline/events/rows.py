"""Rows read from the source itself, spelled as its events spell them: JSON to what the mirror stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.authoring.column_types import Wire
from pipeline.errors import DecodeError, UnsupportedValue
from pipeline.events.values import converter, field_type, row_reader


class RowsDecoder:
    """Decodes rows of one source table; `wires` are the columns in their order, with how their values come."""

    def __init__(self, table: str, wires: Mapping[str, Wire]) -> None:
        self.table = table
        fields = [(f"f{i}", field_type(wire)) for i, wire in enumerate(wires.values())]
        row = msgspec.defstruct(f"Read_{table}", fields, array_like=True, gc=False)
        self._decode = msgspec.json.Decoder(list[row]).decode  # type: ignore[valid-type]
        self._stored = row_reader(wires.values())
        self._converters = [converter(wire) for wire in wires.values()]

    def decode(self, rows: bytes) -> list[tuple[Any, ...]]:
        """`[[1, "a"], …]` as tuples of what the mirror stores; raises UnsupportedValue."""
        try:
            read = self._decode(rows)
            try:
                return list(map(self._stored, read))
            except ValueError:  # an infinite number, or none: the careful way
                return list(map(self._carefully, read))
        except (msgspec.MsgspecError, DecodeError, ValueError) as error:
            raise UnsupportedValue(
                f"{self.table}: a row of the source can't be read as its events are: {error}"
            ) from None

    def _carefully(self, row: msgspec.Struct) -> tuple[Any, ...]:
        return tuple(
            value if value is None or convert is None else convert(value)
            for value, convert in zip(msgspec.structs.astuple(row), self._converters, strict=True)
        )
