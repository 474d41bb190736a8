"""A machine elsewhere: a network namespace of its own, whose only way to the services can be cut, whole or to one of them.

Needs Linux's `unshare`, `nsenter` and `ip`, and the right to make a namespace (root, or user namespaces).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
USER = () if os.geteuid() == 0 else ("--user", "--map-root-user")
ENTER = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")


class Machine:
    """What runs `inside` finds the services at the addresses that they have outside."""

    def __init__(self, pid: int, ways: dict[int, subprocess.Popen[bytes]]) -> None:
        self.inside = ("nsenter", "--target", str(pid), *ENTER, "--net", "--")
        self._ways = ways

    def link(self, state: str) -> None:
        """`down`: nothing goes out or comes in, and nobody is told; `up`."""
        subprocess.run([*self.inside, "ip", "link", "set", "lo", state], check=True, timeout=10)

    def silence(self, port: int) -> None:
        """Connections to this service stay open, and nothing comes through."""
        self._ways[port].send_signal(signal.SIGSTOP)

    def speak(self, port: int) -> None:
        self._ways[port].send_signal(signal.SIGCONT)


@contextmanager
def machine(*ports: int) -> Iterator[Machine]:
    """A machine from which these ports of ours can be reached. Sockets in the file system are the only wire."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="wire-"))
        holder = ["unshare", "--net", *USER, "--kill-child", "--fork", "sh", "-c", "ip link set lo up; echo; exec cat"]
        held = _started(stack, holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert held.stdout is not None and held.stdout.readline() == b"\n", "no network namespace can be made here"
        children = Path(f"/proc/{held.pid}/task/{held.pid}/children").read_text().split()
        found = Machine(int(children[0]), {})
        for port in ports:
            wire, forward = f"{folder}/{port}", [sys.executable, "-m", "tests.support.elsewhere"]
            _started(stack, [*forward, wire, str(port)])
            found._ways[port] = _started(stack, [*found.inside, *forward, str(port), wire])
        yield found


def _started(stack: ExitStack, command: list[str], **pipes: int) -> subprocess.Popen[bytes]:
    process: subprocess.Popen[bytes] = subprocess.Popen(command, cwd=REPOSITORY, **pipes)  # type: ignore[call-overload]
    stack.enter_context(process)
    stack.callback(process.kill)
    return process


# ---- one wire: what connects to the first end goes on to the second ------------------------------------------


async def _forward(here: str, there: str) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to = await (
                asyncio.open_connection("127.0.0.1", int(there))
                if there.isdigit()
                else asyncio.open_unix_connection(there)
            )
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, to[1]), carry(to[0], writer))

    server = await (
        asyncio.start_server(connected, "127.0.0.1", int(here))
        if here.isdigit()
        else asyncio.start_unix_server(connected, here)
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_forward(*sys.argv[1:]))
