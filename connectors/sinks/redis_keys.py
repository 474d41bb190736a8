"""The keys of a projection version in Redis: one for each document, and three of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.authoring.projection import Target
from pipeline.authoring.shape import Shape
from pipeline.errors import DefinitionError

OPTIONS = ("key",)
PART = r"[A-Za-z0-9_.-]+"
NAME = re.compile(rf"(?!cdc:)(?=.{{1,200}}$){PART}(:{PART})*")
PATTERN = re.compile(rf"(?!cdc:)(?=.{{1,200}}$)(({PART}|\{{version\}}):)+\{{id\}}")


@dataclass(frozen=True, slots=True)
class Keys:
    """What one version has in the server. `target`: `crm:customers`; `projection`: `customers-v3.2`."""

    target: str
    projection: str
    options: Mapping[str, object]

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
    def record(self) -> str:
        """The checkpoint record; the version is there while this is."""
        return f"cdc:{self.prefix}record"

    @property
    def revisions(self) -> str:
        """The revision of each document, by its id."""
        return f"cdc:{self.prefix}revisions"

    @property
    def deleted(self) -> str:
        """The revision of each document deleted since the last claim, by its id."""
        return f"cdc:{self.prefix}deleted"


def described(target: Target, projection: str, shape: Shape) -> str:
    """What `preview` shows beside the SQL of other sinks, as a comment of SQL."""
    keys = Keys(target.name, projection, target.options)
    return (
        f"-- Redis, documents of {shape.name}: GET {keys.target} tells readers the prefix, {keys.prefix} of this version;\n"
        f"-- GET {keys.prefix}ID is a document.\n"
    )
