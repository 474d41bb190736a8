"""A worker's process: its projection is found and looked at, then it works until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from typing import NoReturn

from pipeline.authoring.builds import keep_code
from pipeline.authoring.discovery import find
from pipeline.errors import DefinitionError, SettingsError
from pipeline.runtime import tracing, wiring
from pipeline.runtime.copies import assure_copyable
from pipeline.runtime.member import Member
from pipeline.runtime.telemetry import StatusFile
from pipeline.runtime.worker import EXIT_STOP_AND_SAY, Worker
from pipeline.settings import Settings

log = logging.getLogger("cdc.worker")


def run(settings: Settings, name: str, build: int | None = None, number: int = 1) -> int:
    """`cdc worker NAME`: run one projection's worker until it is told to stop, and end the process; its exit code where it never began.

    `number`: which of its workers, where it has several.
    """
    projection = find(settings, name)
    projection = projection if build is None else replace(projection, build=build)
    try:
        wired = wiring.wire(settings, projection)
        assure_copyable(settings, wired)
        wiring.check_workers(settings, wired)
    except DefinitionError as error:
        log.critical("%s: %s: %s", projection.id, type(error).__name__, error)
        StatusFile(settings, projection.id).never_began(projection, f"{type(error).__name__}: {error}")
        return EXIT_STOP_AND_SAY
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(settings.state_dir, os.W_OK):
        raise SettingsError(f"The state folder {settings.state_dir} can't be written to.")
    keep_code(settings, wired.projection)

    async def main() -> NoReturn:
        if projection.workers > 1:
            code = await Member(settings, wired, number).run()
        else:
            wiring.open_sinks(settings, wired)
            code = await Worker(settings, wired).run()
        tracing.stop()
        logging.shutdown()
        # a thread of Faust's that does not let go would keep the process, and its partitions
        os._exit(code)

    return asyncio.run(main())
