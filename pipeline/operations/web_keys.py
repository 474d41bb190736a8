"""API keys of `cdc web`: made, listed and removed here; the file has their hashes, never the keys."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.authoring.catalog import did_you_mean
from pipeline.authoring.leaves import Leaf, leaves
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.errors import OperationError
from pipeline.settings import Settings

EVERYTHING = "*"
OWN_SCOPES = (EVERYTHING, "dashboard", "operate")
"""Scopes beside the read models' names: all of those, the dashboard's pages, and what its buttons do."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(_Entry):
    """A key without itself. Its 256 random bits can't be guessed, so one round of SHA-256 is enough."""

    name: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: datetime

    def may(self, scope: str) -> bool:
        """Whether it has the scope; `*` stands for all read models."""
        named = any(own.partition(":")[0] == scope for own in self.scopes)
        return named or (EVERYTHING in self.scopes and scope not in OWN_SCOPES)

    def fields(self, name: str) -> frozenset[str] | None:
        """What it sees of a read model's documents, by the scope `orders:id,customer`; None: all."""
        said = [own.partition(":") for own in self.scopes if own.partition(":")[0] == name]
        if not said or any(not colon for _, colon, _ in said):
            return None
        return frozenset(field for _, _, fields in said for field in fields.split(","))


class Keys(_Entry):
    """All keys of an app."""

    keys: tuple[Key, ...] = ()

    def find(self, text: str) -> Key | None:
        """The key that was given."""
        wanted = digest(text)
        return next((key for key in self.keys if secrets.compare_digest(key.sha256, wanted)), None)


def file(settings: Settings) -> Path:
    return settings.state_dir.resolve() / "web" / "keys.json"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def read(settings: Settings) -> Keys:
    path = file(settings)
    try:
        return Keys.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Keys()
    except ValidationError:
        raise OperationError(f"{path} is damaged: restore it, or delete it and add the keys again.") from None


def seen(leaves: Mapping[str, Leaf], fields: Iterable[str]) -> dict[str, Leaf]:
    """The leaves of these fields, in the document's order; a relation stands for all below it."""
    wanted = [(field, f"{field}.") for field in fields]
    return {n: leaf for n, leaf in leaves.items() if any(n == own or n.startswith(below) for own, below in wanted)}


def check_fields(projections: Sequence[Projection[Any]], scopes: Sequence[str]) -> None:
    """Raises OperationError where a scope names a field that its documents have not."""
    for scope in scopes:
        name, _, fields = scope.partition(":")
        projection = next((one for one in projections if one.name == name), None)
        known = leaves(shape_of(projection.shape)) if projection is not None else {}
        for field in fields.split(",") if fields and known else ():
            if not seen(known, [field]):
                raise OperationError(f"{name} has no field {field!r}{did_you_mean(field, known)}")


def add(settings: Settings, name: str, scopes: Sequence[str], known: Sequence[str]) -> str:
    """A new key; it is told this once. `known`: the names of the read models. Raises OperationError.

    `orders` is a scope, and so is `orders:id,customer` for one that sees only these fields of it.
    """
    if not scopes:
        raise OperationError(f"Say what the key may read: --scope NAME, or --scope '{EVERYTHING}'.")
    for scope in scopes:
        own, colon, fields = scope.partition(":")
        if own not in (*known, *OWN_SCOPES) or (colon and own in OWN_SCOPES) or bool(colon) != bool(fields):
            raise OperationError(f"There is no scope {scope!r}{did_you_mean(own, [*known, *OWN_SCOPES])}")
    text = f"cdc_{secrets.token_urlsafe(32)}"
    key = Key(name=name, sha256=digest(text), scopes=tuple(dict.fromkeys(scopes)), created_at=datetime.now(UTC))

    def with_it(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        if any(other.name == name for other in keys):
            raise OperationError(f"There is a key {name!r} already: remove it first, or take another name.")
        return (*keys, key)

    _change(settings, with_it)
    return text


def remove(settings: Settings, name: str) -> None:
    """From now on the key opens nothing; raises OperationError where there is none."""

    def without(keys: tuple[Key, ...]) -> tuple[Key, ...]:
        left = tuple(key for key in keys if key.name != name)
        if left == keys:
            raise OperationError(
                f"There is no key {name!r}{did_you_mean(name, [key.name for key in keys] or ['none'])}"
            )
        return left

    _change(settings, without)


def _change(settings: Settings, change: Callable[[tuple[Key, ...]], tuple[Key, ...]]) -> None:
    path = file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        changed = Keys(keys=change(read(settings).keys))
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(changed.model_dump_json(indent=2) + "\n")
            out.flush()
            os.fsync(out.fileno())
        fresh.replace(path)
