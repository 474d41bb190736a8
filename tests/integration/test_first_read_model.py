"""The walkthrough of docs/start, typed as it is written, in a copy of what a clone has."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from pipeline.settings import Endpoints

pytestmark = pytest.mark.stack
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/start/first-read-model.md").read_text()
NOT_HERE = ("make venv", "export PATH", "cdc stack up")
"""The environment and the stack are there."""


@pytest.fixture
def clone(stack: Endpoints, mariadb: str, tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    for part in ("projections", "connectors", "tests/projections"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CDC_STATE_DIR": str(tmp_path / ".cdc"),
        "CDC_PROJECT": "walkthrough",
        "CDC_KAFKA__BOOTSTRAP": stack.kafka,
        "CDC_CONNECT__URL": stack.connect,
        "CDC_ELASTICSEARCH__URL": stack.elasticsearch,
        "CDC_SOURCE__DSN": stack.postgres,
        "CDC_POSTGRES__DSN": stack.postgres,
        "CDC_REDIS__URL": stack.redis,
        "CDC_SOURCES__MARIADB__DSN": mariadb,
    }
    yield tmp_path, environment
    subprocess.run(["cdc", "connector", "delete", "shop", "--drop-slot", "--yes"], cwd=tmp_path, env=environment)
    made = ",".join(f"{path.stem}-v1" for path in (tmp_path / "projections").glob("[!_]*.py"))
    httpx.delete(f"{stack.elasticsearch}/{made}", params={"ignore_unavailable": True}).raise_for_status()
    with psycopg.connect(stack.postgres) as db:
        db.execute("DROP SCHEMA shop, crm CASCADE")


def test_the_walkthrough_leads_from_a_fresh_clone_to_a_live_read_model(
    stack: Endpoints, clone: tuple[Path, dict[str, str]]
) -> None:
    folder, environment = clone
    script = ["set -e"]
    for kind, text in re.findall(r"^```(console|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if kind == "python":
            script.append(f"cat > projections/suppliers.py <<'END'\n{text}END")
        else:
            script += [_typed(line) for line in text.splitlines() if not line.startswith(NOT_HERE)]
    log = folder / "said.log"
    with log.open("w") as out:
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            assert shell.wait(300) == 0, log.read_text()
        finally:
            os.killpg(shell.pid, signal.SIGTERM)  # the worker that it left running
    found = httpx.get(f"{stack.elasticsearch}/suppliers/_doc/1").json()
    assert found["_source"]["sold"] == sum(sale["quantity"] for sale in found["_source"]["sales"]) > 0, log.read_text()


def _typed(line: str) -> str:
    """A plan that is not empty says so by its exit code, which ends no terminal."""
    return f"{line} || [ $? = 2 ]" if line == "cdc plan" else line
