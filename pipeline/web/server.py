"""The server that `cdc web` runs."""

from __future__ import annotations

from types import FrameType

import uvicorn

from pipeline.web.feeds import Feeds


class Server(uvicorn.Server):
    """Its feeds end with it: uvicorn waits for answers to end, and theirs have none."""

    def __init__(self, config: uvicorn.Config, feeds: Feeds) -> None:
        super().__init__(config)
        self._feeds = feeds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._feeds.ending = True
        super().handle_exit(sig, frame)
