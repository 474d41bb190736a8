"""The keys of a projection version in Redis: one for each document, the sets of lookups, and four of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from pipeline.authoring.leaves import Leaf, leaves
from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError

OPTIONS = ("key", "lookups", "ttl")
# Equal values of the other kinds may be spelled apart.
LOOKED_UP = ("int", "bool", "text", "datetime", "date", "time", "uuid")
PART = r"[A-Za-z0-9_.-]+"
NAME = re.compile(rf"(?!cdc:)(?=.{{1,200}}$){PART}(:{PART})*")
PATTERN = re.compile(rf"(?!cdc:)(?=.{{1,200}}$)(({PART}|\{{version\}}):)+\{{id\}}")


@dataclass(frozen=True, slots=True)
class Keys:
    """What one version has in the server. `target`: `crm:customers`; `projection`: `customers-v3.2`."""

    target: str
    projection: str
    shape: Shape
    options: Mapping[str, object]
    fields: tuple[Leaf, ...] = field(init=False)
    """Those that documents are looked up by."""
    ttl: int | None = field(init=False, default=None)
    """Milliseconds that a document stays after it was last written; None: for ever."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.options if name not in OPTIONS]:
            raise DefinitionError(
                f"redis({self.target!r}) has no option {', '.join(unknown)}; known are {', '.join(OPTIONS)}."
            )
        pattern = self.options.get("key", "{version}:{id}")
        if not isinstance(pattern, str) or not PATTERN.fullmatch(pattern) or pattern.count("{version}") != 1:
            raise DefinitionError(
                f"redis({self.target!r}): key={pattern!r} is no pattern of keys; write parts of letters, digits, _, . and -"
                " with : between them, {version} once among them and {id} at the end: 'crm:customer:{version}:{id}'."
            )
        object.__setattr__(self, "fields", tuple(self._looked_up()))
        if self.options.get("ttl") is not None:
            object.__setattr__(self, "ttl", self._milliseconds(self.options["ttl"]))

    @property
    def version(self) -> str:
        """`v3`, its second build `v3.2`."""
        return self.projection.rpartition("-")[2]

    @property
    def prefix(self) -> str:
        """`crm:customers:v3:`; a document's key has its id behind it, and the key `target` says which prefix readers take."""
        pattern = str(self.options.get("key", f"{self.target}:{{version}}:{{id}}"))
        return pattern.removesuffix("{id}").replace("{version}", self.version)

    def document(self, id: bytes) -> bytes:
        return self.prefix.encode() + id

    @property
    def sets(self) -> str:
        """`crm:customers:v3:by:`; `email:ada@example.com` behind it has the keys of the documents with that value."""
        return f"{self.prefix}by:"

    @property
    def by(self) -> str:
        """The fields' names, as the record keeps them."""
        return ", ".join(leaf.name for leaf in self.fields)

    def looked_up(self, document: Mapping[str, Any]) -> list[str]:
        """`email:ada@example.com` of each field and value that the document is looked up by."""
        return sorted({f"{leaf.name}:{value}" for leaf in self.fields for value in _values(document, leaf.path)})

    def taken(self, id: str) -> bool:
        """The document's key could be that of a set."""
        return any(id.startswith(f"by:{leaf.name}:") for leaf in self.fields)

    @property
    def record(self) -> str:
        """What the version is, and its checkpoint record where it has one only; the version is there while this is."""
        return f"cdc:{self.prefix}record"

    @property
    def revisions(self) -> str:
        """The revision of each document, by its id."""
        return f"cdc:{self.prefix}revisions"

    @property
    def deleted(self) -> str:
        """The revision of each document deleted since the last claim, by its id; each partition has its own."""
        return f"cdc:{self.prefix}deleted"

    @property
    def lookups(self) -> str:
        """What each document is looked up by now, by its id."""
        return f"cdc:{self.prefix}lookups"

    def _looked_up(self) -> Iterator[Leaf]:
        names = self.options.get("lookups", ())
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise DefinitionError(
                f"redis({self.target!r}): lookups={names!r} is no list of fields: write lookups=['email', 'customer.id']."
            )
        known = {name: leaf for name, leaf in leaves(self.shape).items() if leaf.kind in LOOKED_UP}
        for name in sorted(set(names)):
            if name not in known:
                raise DefinitionError(
                    f"redis({self.target!r}): nothing is looked up by {name!r}: lookups are by fields of {self.shape.name} whose"
                    f" values have one spelling, which are {', '.join(known)}."
                )
            yield known[name]

    def _milliseconds(self, ttl: object) -> int:
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= 1e9:
            raise DefinitionError(
                f"redis({self.target!r}): ttl={ttl!r} is no time that documents stay: write seconds, 0.001 to 1e9, or a timedelta."
            )
        return round(seconds * 1000)


def _values(part: Any, path: Sequence[str]) -> Iterator[str]:
    """The values at the path, as they stand in the document; null is none."""
    if isinstance(part, list):
        for item in part:
            yield from _values(item, path)
    elif path and isinstance(part, Mapping):
        yield from _values(part.get(path[0]), path[1:])
    elif part is not None:
        yield part if isinstance(part, str) else json.dumps(part)


def described(target: Target, projection: str, shape: Shape) -> str:
    """What `preview` shows beside the SQL of other sinks, as a comment of SQL."""
    keys = Keys(target.name, projection, shape, target.options)
    return (
        f"-- Redis, documents of {shape.name}: GET {keys.target} tells readers the prefix, {keys.prefix} of this version;\n"
        f"-- GET {keys.prefix}ID is a document.\n"
        + (f"-- It ends {keys.ttl / 1000:g} s after it was last written.\n" if keys.ttl else "")
    ) + "".join(
        f"-- SMEMBERS {keys.sets}{leaf.name}:VALUE gives the keys of those with that value.\n" for leaf in keys.fields
    )
