"""A network that misbehaves: a TCP proxy between a client and a server, told what to do with what it carries."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Literal

Mood = Literal["pass", "slow", "silent", "cut", "refuse", "busy"]
CHUNK = 4096
METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
NOBODY = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
TOO_MANY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Proxy:
    """Listens on `port`. `mood` may be changed at any time, and holds for open connections too.

    `slow`: each piece waits 50 ms; `silent`: nothing comes through, and nobody is told; `cut`: connections end after a
    random number of pieces, in the middle of a request or an answer; `refuse`: they end at once; `busy`: each request
    is answered with 429, as by a gateway that has no room. With `tls` it speaks TLS, and the server behind it does not.
    `login`: what each request has to say in its header `authorization`, or it is answered with 401.
    """

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.target, self.tls = (host, port), tls
        self.mood: Mood = "pass"
        self.login = ""
        self.cuts = self.refused = 0
        self.port = 0
        self._random = Random(1)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.tls))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in self._tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if self.mood == "refuse":
                return
            there_reader, there_writer = await asyncio.open_connection(*self.target)
            try:
                # whichever end closes first, or a cut, ends both ways
                ways = [
                    asyncio.create_task(self._carry(reader, there_writer, writer)),
                    asyncio.create_task(self._carry(there_reader, writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                there_writer.close()
        except OSError:
            pass
        finally:
            writer.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asks: asyncio.StreamWriter | None = None
    ) -> None:
        while piece := await reader.read(CHUNK):
            stranger = self.login and piece.startswith(METHODS) and self.login.encode() not in piece
            if (self.mood == "busy" or stranger) and asks is not None:
                self.refused += 1
                asks.write(NOBODY if stranger else TOO_MANY)
                await asks.drain()
                return
            if self.mood == "refuse" or (self.mood == "cut" and self._random.random() < 0.1):
                self.cuts += 1
                return
            if self.mood == "slow":
                await asyncio.sleep(0.05)
            while self.mood == "silent":
                await asyncio.sleep(0.05)
            writer.write(piece)
            await writer.drain()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@contextmanager
def proxied(host: str, port: int, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    proxy = Proxy(host, port, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
