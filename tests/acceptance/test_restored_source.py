"""A source database that is restored from a backup: positions go back, rows are taken back, a new timeline begins."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from pipeline.demo import truth
from pipeline.settings import Endpoints, Settings
from pipeline.stack import stack as local_stack
from pipeline.stack.connect import secrets_file
from pipeline.stack.site import open_site
from tests.support.project import Project, until

pytestmark = pytest.mark.stack


@dataclass
class Server:
    """A Postgres of the test's own."""

    settings: Settings
    endpoints: Endpoints

    @property
    def data(self) -> Path:
        return open_site(self.settings).directory("postgres") / "data"

    def stop(self) -> None:
        local_stack.stop_service(self.settings, "postgres")

    def start(self) -> None:
        local_stack.start_service(self.settings, "postgres")

    def back_up(self) -> Path:
        """A cold backup."""
        self.stop()
        copy = self.data.with_name("backup")
        _copy(self.data, copy)
        self.start()
        return copy

    def restore(self, backup: Path) -> None:
        """Put the backup in place of what there is, and recover from it: that begins a new timeline."""
        self.stop()
        shutil.rmtree(self.data)
        backup.rename(self.data)
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.write("restore_command = 'false'\n")
        (self.data / "recovery.signal").touch()
        self.start()
        with psycopg.connect(self.endpoints.postgres, autocommit=True) as db:
            until(lambda: db.execute("SELECT NOT pg_is_in_recovery()").fetchone() == (True,), 30, "it is promoted")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    for path in (target, *target.rglob("*")):
        own = (source / path.relative_to(target)).stat()
        shutil.chown(path, own.st_uid, own.st_gid)


@pytest.fixture
def server(stack: Endpoints, stack_settings: Settings) -> Iterator[Server]:
    """Its password is the stack's, for Connect's reference to it is given to the connector."""
    with tempfile.TemporaryDirectory(prefix="cdc-restore-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        elsewhere = {name: {"url": getattr(stack, name)} for name in ("connect", "elasticsearch", "redis")}
        settings = Settings(state_dir=Path(folder), kafka={"bootstrap": stack.kafka}, **elsewhere)  # type: ignore[arg-type]
        secret = open_site(settings).root / "postgres.password"
        secret.parent.mkdir(parents=True)
        secret.parent.chmod(0o755)
        secret.write_text(str(conninfo_to_dict(stack.postgres)["password"]))
        secret.chmod(0o600)
        try:
            yield Server(settings, local_stack.up(settings))
        finally:
            local_stack.down(settings, erase=True)


@pytest.fixture
def shop(server: Server, stack_settings: Settings, tmp_path: Path) -> Iterator[Project]:
    password = f"${{file:{secrets_file(stack_settings)}:source.password}}"
    project = Project(f"restored_{uuid4().hex[:4]}", tmp_path / "project", server.endpoints, password)
    project.folder.mkdir()
    yield project
    project.remove()


@pytest.mark.edge_case(16)
def test_a_restored_source_is_refused_and_ends_right_after_what_the_refusal_says(shop: Project, server: Server) -> None:
    shop.create(orders=300)
    shop.start_worker()
    shop.wait_for(truth.position(shop.dsn))
    backup = server.back_up()
    until(lambda: shop.cdc("connector", "apply", shop.name, "--yes", check=False).returncode == 0, 60, "it goes on")
    shop.sql(
        "INSERT INTO shop.orders SELECT i, 1, 'later', now(), 0 FROM generate_series(901, 990) i",
        "UPDATE shop.orders SET status = 'later' WHERE id <= 100",
        "DELETE FROM shop.orders WHERE id BETWEEN 200 AND 210",
        "CREATE TABLE filler AS SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i",
        "DROP TABLE filler",
    )
    later = shop.sql("UPDATE shop.orders SET status = 'last' WHERE id = 1")
    shop.wait_for(later)
    shop.assert_equal()
    before = shop.status()["sinks"][0]["watermark"][shop.name]

    server.restore(backup)
    restored = shop.sql("UPDATE shop.orders SET status = 'restored' WHERE id = 2")
    assert restored < later
    refused = shop.cdc("connector", "apply", shop.name, "--yes", check=False)
    said = " ".join(refused.stderr.split())
    assert refused.returncode == 1 and "restored to an earlier state" in said, said
    assert f"cdc connector apply {shop.name} --anew" in said
    found = json.loads(shop.cdc("doctor", "-o", "json", check=False).stdout)
    assert any(f["subject"] == f"source log of {shop.name}" and f["level"] == "error" for f in found)

    shop.cdc("connector", "apply", shop.name, "--anew", "--yes")

    def after() -> dict[str, object]:
        found: dict[str, object] = shop.status()["sinks"][0]["watermark"][shop.name]
        return found

    until(lambda: after()["log"] != before["log"], 90, "a watermark in the new source log")
    shop.wait_for(shop.sql("UPDATE shop.orders SET status = 'new log' WHERE id = 3"))
    shop.assert_equal()
    assert shop.document(950) is None, "the restore took it back"
    assert shop.document(205) is not None, "the restore brought it back"
    assert [log["identity"].partition("/")[2] for log in shop.status()["source_logs"]] == ["1", "2"]
