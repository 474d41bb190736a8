"""Named points at which a test kills the worker; costs one comparison where none is asked for."""

from __future__ import annotations

import os
import signal
from typing import Final

POINT: Final = os.environ.get("CDC_FAULT", "")
"""`received`, `checkpointed`, `writing`, `written`, `settled`, `recorded` or `asked`, alone or as `name:n`.

The process kills itself with SIGKILL at the n-th passage of that point.
"""
_name, _, _count = POINT.partition(":")
_left = int(_count or 1)


def passing(name: str) -> None:
    """A point that a test may have chosen to die at."""
    if name == _name:
        global _left
        _left -= 1
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
