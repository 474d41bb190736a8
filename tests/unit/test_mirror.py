"""How a mirror's file is opened: with little memory, above all while it loads."""

from __future__ import annotations

from pathlib import Path

from pipeline.authoring.shape import shape_of
from pipeline.engine.apply import Applier
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.engine.sql import rows, value
from projections.orders import OrderDocument

FILE, MEMORY = 1, 2
LAYOUT = lay_out(shape_of(OrderDocument))


def memory(mirror: Mirror) -> tuple[int, int, int]:
    """Kilobytes of its cache, where it sorts, and bytes of the file that are mapped."""
    return tuple(value(mirror.db, f"PRAGMA {name}") or 0 for name in ("cache_size", "temp_store", "mmap_size"))  # type: ignore[return-value]


def test_what_it_sorts_is_in_files_while_it_loads_and_in_memory_afterwards(tmp_path: Path) -> None:
    mirror = Mirror(str(tmp_path / "m.db"), LAYOUT, owner="a")
    Applier(mirror)
    temporary = rows(mirror.db, "SELECT name, sql FROM sqlite_temp_schema ORDER BY name")
    assert len(temporary) >= 2 * len(LAYOUT.tables)
    with mirror.checkpoint():
        pass
    assert memory(mirror) == (-16_384, FILE, 0)
    with mirror.checkpoint():
        mirror.set("loaded", 1)
    assert memory(mirror) == (-16_384, MEMORY, 0)
    assert rows(mirror.db, "SELECT name, sql FROM sqlite_temp_schema ORDER BY name") == temporary
    mirror.close()
    again = Mirror(str(tmp_path / "m.db"), LAYOUT, owner="b")
    assert memory(again) == (-16_384, MEMORY, 0)
    again.close()
