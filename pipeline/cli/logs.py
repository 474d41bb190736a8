"""What a process that stays says of itself, on stderr: lines to read on a terminal, JSON for whatever collects them elsewhere."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import msgspec

from pipeline.cli.output import terminal
from pipeline.settings import Settings

LINE = "%(asctime)s %(levelname)-8s %(message)s"


class Json(logging.Formatter):
    """One object a line: `at`, `level`, `logger`, `message`, what is always so, and a record's own `fields`."""

    def __init__(self, always: dict[str, str]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(), "logger": record.name, **self._always, "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def start(settings: Settings, **always: str) -> None:
    """From here on this process logs; `always` is said with every line of JSON. Libraries are heard from warnings on."""
    as_text = sys.stderr.isatty() if settings.log.format == "auto" else settings.log.format == "text"
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(LINE) if as_text else Json(always))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    level = logging.WARNING if terminal.quiet else logging.DEBUG if terminal.verbose else logging.INFO
    logging.getLogger("cdc").setLevel(level)
