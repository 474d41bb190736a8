"""Starts services detached, knows them again by a pidfile, and ends them with all their children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import StackError
from pipeline.stack import users
from pipeline.stack.files import write_atomically

TAIL = 20
_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Command:
    """What to run; secrets go in neither."""

    argv: list[str]
    cwd: Path
    env: dict[str, str] = field(default_factory=dict)


def environment(extra: dict[str, str], home: Path) -> dict[str, str]:
    """A service's whole environment: nothing of the caller's, which may hold secrets, but where programs are."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "HOME": str(home), **extra}


def run(command: Command, user: users.User | None, what: str, told: bytes = b"") -> None:
    """Run a tool of a service to its end; `told` is what it reads."""
    done = subprocess.run(
        command.argv,
        cwd=command.cwd,
        env=environment(command.env, command.cwd),
        input=told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **_dropped(user),
    )
    if done.returncode:
        output = done.stdout.decode("utf-8", "replace").splitlines()[-TAIL:]
        raise StackError(f"{what} failed (exit {done.returncode}):\n" + "\n".join(output))


def spawn(command: Command, user: users.User | None, log: Path, pidfile: Path) -> int:
    """Start a service in a session of its own, so that no Ctrl-C meant for this program reaches it."""
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("wb") as output:
        try:
            child: subprocess.Popen[bytes] = subprocess.Popen(
                command.argv,
                cwd=command.cwd,
                env=environment(command.env, command.cwd),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                **_dropped(user),
            )
        except OSError as error:
            raise StackError(f"{log.stem} can't be started: {error}") from error
    # Kept so that a child which ends is reaped and not taken for a living one.
    _CHILDREN[child.pid] = child
    write_atomically(pidfile, json.dumps({"pid": child.pid, "started": _started(child.pid)}), mode=0o644)
    return child.pid


def _dropped(user: users.User | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


def running(pidfile: Path) -> int | None:
    """The pid of the living process that the pidfile means; None where it ended or the pid is a stranger's now."""
    try:
        record = json.loads(pidfile.read_text("utf-8"))
        pid, started = int(record["pid"]), record["started"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    now = _started(pid)
    return pid if now is not None and now == started else None


def _started(pid: int) -> str | None:
    """When the process began, in words that no other process of this pid would share; None for none or a dead one."""
    child = _CHILDREN.get(pid)
    if child is not None and child.poll() is not None:
        del _CHILDREN[pid]
        return None
    entry = _stat(pid)
    if entry is not None:
        state, _, ticks = entry
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return None if state in "ZX" and not _has_threads(pid) else f"{boot} {ticks}"
    if Path("/proc/self/stat").exists():
        return None
    listed = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, begun = listed.stdout.strip().partition(" ")
    return begun.strip() if begun and not state.startswith("Z") else None


def is_zombie(pid: int) -> bool:
    """Whether a dead process still has its pid, because its parent has not asked how it ended."""
    entry = _stat(pid)
    return entry is not None and entry[0] in "ZX" and not _has_threads(pid)


def _has_threads(pid: int) -> bool:
    """Whether a process whose first thread has ended is still being taken apart: till then it keeps its ports."""
    try:
        return len(list(Path(f"/proc/{pid}/task").iterdir())) > 1
    except OSError:
        return False


def _stat(pid: int) -> tuple[str, int, str] | None:
    """State, parent and start of a process by Linux's /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # The name comes in brackets and may have spaces and brackets itself.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1]), fields[19]


def family(pid: int) -> set[int]:
    """A process and all that descend from it: Postgres gives each of its children a group of its own."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*") if Path("/proc/self/stat").exists() else ():
        found = _stat(int(entry.name))
        if found is not None:
            parents[int(entry.name)] = found[1]
    members = {pid}
    while grown := {child for child, parent in parents.items() if parent in members} - members:
        members |= grown
    return members


def stop(pidfile: Path, *, how: signal.Signals = signal.SIGTERM, grace: float = 10.0) -> None:
    """End a service and its children: asked first, killed when it does not listen within `grace` seconds."""
    pid = running(pidfile)
    if pid is not None:
        members = {member: _started(member) for member in family(pid)}
        if how != signal.SIGKILL:
            _send(pid, how)
            wait_until(lambda: running(pidfile) is None, grace)
        _kill_group(pid, members)
    pidfile.unlink(missing_ok=True)


def _kill_group(pid: int, members: dict[int, str | None]) -> None:
    alive = [member for member, started in members.items() if started is not None and _started(member) == started]
    if pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    for member in alive:
        _send(member, signal.SIGKILL)
    wait_until(lambda: not any(_started(member) == members[member] for member in alive), 10.0)


def _send(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def wait_until(done: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Ask again until it is so; False when the time is over first."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def tail(log: Path, lines: int = TAIL) -> list[str]:
    """The last lines of a log, whole where it is shorter."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 500 * max(lines, 1)))
            return stream.read().decode("utf-8", "replace").splitlines()[-lines:]
    except FileNotFoundError:
        return []


def with_log(message: str, log: Path) -> StackError:
    """An error that shows the last lines of the service's log."""
    shown: Iterable[str] = tail(log) or ["(empty)"]
    return StackError(f"{message}\nThe end of {log}:\n" + "\n".join(f"  {line}" for line in shown))
