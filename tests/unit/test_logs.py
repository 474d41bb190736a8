"""What the processes that stay log: JSON an object a line where nobody looks, text where it is asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import logging
from pipeline.cli import logs
from pipeline.settings import Settings
logs.start(Settings(), projection="orders")
log = logging.getLogger("cdc.worker")
log.info("%s: two\\nlines", "orders-v1")
logging.getLogger("aiokafka").info("not of interest")
logging.getLogger("aiokafka").warning("no broker")
logging.getLogger("cdc.web").info("GET", extra={"fields": {"status": 200, "key": None}})
try:
    1 / 0
except ZeroDivisionError as error:
    log.critical("it ends", exc_info=error)
"""


def logged(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("CDC_")}, **environment},
    )  # fmt: skip
    assert not done.stdout
    return done.stderr.splitlines()


def test_every_line_is_an_object_where_stderr_is_no_terminal() -> None:
    lines = [json.loads(line) for line in logged()]
    assert [(line["level"], line["logger"], line["message"]) for line in lines] == [
        ("info", "cdc.worker", "orders-v1: two\nlines"), ("warning", "aiokafka", "no broker"), ("info", "cdc.web", "GET"), ("critical", "cdc.worker", "it ends"),
    ]  # fmt: skip
    assert all(line["projection"] == "orders" and line["at"].endswith("+00:00") for line in lines)
    assert (lines[2]["status"], lines[2]["key"]) == (200, None)
    assert lines[3]["traceback"].endswith("ZeroDivisionError: division by zero")


def test_text_is_given_where_it_is_asked_for() -> None:
    lines = logged(CDC_LOG__FORMAT="text")
    assert lines[0].endswith("INFO     orders-v1: two") and lines[1] == "lines"
    assert lines[-1] == "ZeroDivisionError: division by zero"
