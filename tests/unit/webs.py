"""Tables that refer to each other in every way the language knows, two documents over them, and their oracle."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

from pipeline import Document, constant, derived, left_out, many, one

Row = dict[str, Any]
Rows = Mapping[str, Mapping[tuple[Any, ...], Row]]

KEYS = {
    "web.people": ("id",),
    "web.tags": ("id",),
    "web.links": ("person_id", "tag_id"),
    "web.notes": ("id",),
}


class Tag(Document, source="web.tags"):
    id: int
    label: str


class Note(Document, source="web.notes"):
    id: int
    kind: str
    rank: int | None
    pinned: bool | None


class Person(Document, source="web.people"):
    id: int
    name: str | None
    parent: Person | None = one(via="parent_id", depth=2)


class Web(Document, source="web.people"):
    """All in SQL."""

    what: str = constant('per"son')
    id: int
    name: str | None
    parent: Person | None = one(via="parent_id")
    children: tuple[Web, ...] = many(by="parent_id", depth=1)
    favourite: Tag | None = one(via="favourite", to="label", where={"id": (1, 2)})
    tags: tuple[Tag, ...] = many(through="web.links", by="person_id", via="tag_id", order_by="-label", limit=2)
    more_tags: int = left_out("tags")
    notes: tuple[Note, ...] = many(
        by="author", to="name", where={"kind": ("a", "b"), "pinned": (True, None)}, order_by=("-rank", "kind"), limit=2
    )
    more_notes: int = left_out("notes")


class PythonWeb(Web, source="web.people"):
    """The same by way of Python."""

    children: tuple[PythonWeb, ...] = many(by="parent_id", depth=1)

    @derived
    def tagged(self) -> str:
        return ",".join(tag.label for tag in self.tags) + f"+{self.more_tags}"


def fresh(random: Random, table: str) -> Row:
    """A random row."""
    if table == "web.people":
        parent, label = random.choice((None, 1, 2, 3, 4)), random.choice((None, "a", "b", "c"))
        return {"id": random.randint(1, 4), "name": random.choice("xy"), "parent_id": parent, "favourite": label}
    if table == "web.tags":
        return {"id": random.randint(1, 4), "label": random.choice("abc")}
    if table == "web.links":
        return {"person_id": random.randint(1, 4), "tag_id": random.randint(1, 4)}
    return {
        "id": random.randint(1, 6),
        "author": random.choice("xy"),
        "kind": random.choice("abc"),
        "rank": random.choice((None, 1, 2, 10)),
        "pinned": random.choice((True, False, None)),
    }


# ---- what the documents must be ---------------------------------------------------------------------------


def _person(rows: Rows, id: int | None, depth: int) -> Any:
    row = None if id is None else rows["web.people"].get((id,))
    if row is None:
        return None
    found = {"id": row["id"], "name": row["name"]}
    return found | ({"parent": _person(rows, row["parent_id"], depth - 1)} if depth else {})


def _tags(rows: Rows, row: Row) -> list[Row]:
    linked = [link["tag_id"] for link in rows["web.links"].values() if link["person_id"] == row["id"]]
    found = [dict(rows["web.tags"][tag,]) for tag in linked if (tag,) in rows["web.tags"]]
    return sorted(sorted(found, key=lambda tag: tag["id"]), key=lambda tag: tag["label"], reverse=True)


def _notes(rows: Rows, row: Row) -> list[Row]:
    found = [
        {name: note[name] for name in ("id", "kind", "rank", "pinned")}
        for note in rows["web.notes"].values()
        if note["author"] == row["name"] and note["kind"] in "ab" and note["pinned"] is not False
    ]
    high = 1 << 60
    return sorted(found, key=lambda note: (-(high if note["rank"] is None else note["rank"]), note["kind"], note["id"]))


def _web(rows: Rows, row: Row, depth: int = 1) -> Row:
    tags, notes = _tags(rows, row), _notes(rows, row)
    liked = sorted(
        (tag for tag in rows["web.tags"].values() if tag["label"] == row["favourite"] and tag["id"] in (1, 2)),
        key=lambda tag: tag["id"],
    )
    children = [child for child in rows["web.people"].values() if child["parent_id"] == row["id"]]
    found = {
        "what": 'per"son',
        "id": row["id"],
        "name": row["name"],
        "parent": _person(rows, row["parent_id"], 2),
        "favourite": dict(liked[0]) if liked else None,
        "tags": tags[:2],
        "more_tags": max(0, len(tags) - 2),
        "notes": notes[:2],
        "more_notes": max(0, len(notes) - 2),
    }
    if depth:
        found["children"] = [_web(rows, child, 0) for child in sorted(children, key=lambda child: child["id"])]
    return found


def webs(rows: Rows) -> dict[str, Any]:
    return {str(row["id"]): _web(rows, row) for row in rows["web.people"].values()}


def python_webs(rows: Rows) -> dict[str, Any]:
    found = webs(rows)
    for document in [*found.values(), *(child for own in found.values() for child in own["children"])]:
        document["tagged"] = ",".join(tag["label"] for tag in document["tags"]) + f"+{document['more_tags']}"
    return found
