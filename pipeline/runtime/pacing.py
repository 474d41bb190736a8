"""How long to wait before trying a sink again."""

from __future__ import annotations

import random


class Backoff:
    """Doubling from `first` to `longest` seconds, with jitter; `reset` after a success."""

    def __init__(self, first: float = 0.2, longest: float = 10.0) -> None:
        self._first, self._longest, self._next = first, longest, first

    def reset(self) -> None:
        self._next = self._first

    def delay(self, at_least: float = 0.0) -> float:
        """Seconds to wait now."""
        now, self._next = self._next, min(self._next * 2, self._longest)
        return max(at_least, now * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
