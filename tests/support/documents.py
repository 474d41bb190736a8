"""Documents straight from events: a mirror filled with them, and what it says of each root key."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.documents import Document
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror

Records = Sequence[tuple[bytes | None, bytes | None]]
"""Keys and values of one table's topic."""


class Documents:
    """The documents of one shape over tables whose events it is given."""

    def __init__(
        self, folder: Path, document: type[Document], catalog: Catalog | None, events: dict[str, Records]
    ) -> None:
        layout = lay_out(shape_of(document), catalog)
        self.mirror = Mirror(str(folder / "mirror.db"), layout, owner="test")
        engine = Engine(self.mirror, Inputs({name: name for name in layout.tables}, None), consistency="row")
        for table, of in events.items():
            engine.receive(f"{table}/0", [(n, key, value) for n, (key, value) in enumerate(of)])
        engine.step()
        self.dead = list(self.mirror.db.execute("SELECT error FROM dead_letters"))
        names = ", ".join(f'"{name}"' for name in layout.root.key)
        self.keys = list(self.mirror.db.execute(f'SELECT {names} FROM "{layout.root.name}"'))
        self._reader = engine.reader()

    def text(self, *key: Any) -> str | None:
        return self._reader.documents([key])[key]

    def all(self) -> dict[tuple[Any, ...], str | None]:
        return {key: self.text(*key) for key in self.keys}

    def close(self) -> None:
        self._reader.close()
        self.mirror.close()


Make = Callable[..., Documents]
"""What the fixture `make` gives: documents of a class, from the events of each table, with a catalog or None."""


def event(row: dict[str, Any], op: str = "c") -> tuple[bytes, bytes]:
    body = {"op": op, "source": {"ts_ms": 0}, "after": row}
    return json.dumps({"id": row["id"]}).encode(), json.dumps(body, separators=(",", ":")).encode()


SOURCE = Catalog.of(
    [
        Table(
            name="x.rows",
            primary_key=("id",),
            columns=(
                Column(name="id", type="integer", nullable=False),
                *(
                    Column(name=name, type=type_)
                    for name, type_ in {
                        "n": "numeric", "f": "double precision", "at": "timestamp with time zone",
                        "ts": "timestamp without time zone", "d": "date", "t": "time without time zone",
                        "iv": "interval", "u": "uuid", "b": "bytea", "j": "json", "s": "text", "r": "numeric[]",
                        "e": "x.mood", "up": "integer",
                    }.items()
                ),
            ),
        )
    ]
)  # fmt: skip
"""A table with a column of most types."""
