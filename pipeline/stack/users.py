"""Whom the services run as: Postgres and Elasticsearch refuse to run as root, so root drops to an ordinary user."""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class User:
    uid: int
    gid: int


def service_user() -> User | None:
    """The user to drop to, or None where this process is an ordinary user's already."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return User(65534, 65534)
    return User(entry.pw_uid, entry.pw_gid)


def reachable(path: Path, user: User) -> bool:
    """Whether the user may pass through every existing directory above and at `path`."""
    return all(_may_pass(folder, user) for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _may_pass(folder: Path, user: User) -> bool:
    entry = folder.stat()
    if entry.st_uid == user.uid:
        return bool(entry.st_mode & stat.S_IXUSR)
    if entry.st_gid == user.gid:
        return bool(entry.st_mode & stat.S_IXGRP)
    return bool(entry.st_mode & stat.S_IXOTH)


def give(path: Path, user: User | None) -> None:
    """Make the service's user the owner of one file or directory."""
    if user is not None:
        os.chown(path, user.uid, user.gid)
