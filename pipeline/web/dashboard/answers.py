"""Reports that ask other services: in threads, each with a time limit, the same one once at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from pipeline.errors import CdcError

LIMIT: Final = 8.0
"""Seconds that a page waits for a report."""
LOOKS_AROUND: Final = 20.0
"""Seconds for the doctor, who waits for one service after the other."""
THREADS: Final = 6
Report = TypeVar("Report")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Report]):
    """A report, or why there is none."""

    value: Report | None
    problem: str | None = None


class Answers:
    """A report that hangs keeps its one thread until its client gives up; whoever asks for it meanwhile waits for the same."""

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self._pool = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="report")
        self._under_way: dict[Hashable, asyncio.Future[Any]] = {}

    async def ask(
        self, what: Hashable, command: str, take: Callable[[], Report], *, limit: float | None = None
    ) -> Answer[Report]:
        """`what` tells one report from another; `command` is the one that says the same."""
        limit = limit or self.limit
        if (future := self._under_way.get(what)) is None:
            future = asyncio.get_running_loop().run_in_executor(self._pool, take)
            self._under_way[what] = future
            future.add_done_callback(lambda done: self._over(what, done))
        try:
            return Answer(await asyncio.wait_for(asyncio.shield(future), limit))
        except TimeoutError:
            return Answer(
                None, f"No answer within {limit:g} s: a service that is asked does not answer. Try `{command}`."
            )
        except CdcError as error:
            return Answer(None, f"{type(error).__name__}: {error}")
        except Exception as error:  # a client's: its words may hold a DSN
            log.warning("%s failed: %s", command, type(error).__name__)
            return Answer(None, f"{type(error).__name__}: `{command}` says more.")

    def _over(self, what: Hashable, done: asyncio.Future[Any]) -> None:
        del self._under_way[what]
        if not done.cancelled():
            done.exception()  # whoever waited has it; nobody may be waiting any more

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
