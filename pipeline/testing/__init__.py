"""Everything an author's tests import: a projection on the real engine, without Kafka, Docker or asyncio."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.events.envelope import UNCHANGED
    from pipeline.testing.scenario import Received, Scenario, Story

__all__ = ["UNCHANGED", "Received", "Scenario", "Story"]


def __getattr__(name: str) -> Any:
    # on first use: every pytest session of the environment imports this package, for its plugin
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.testing import scenario

    found = globals()[name] = getattr(scenario, name)
    return found


def __dir__() -> list[str]:
    return __all__
