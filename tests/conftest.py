"""The real services, for the tests that need them: one local stack for the whole session."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline.settings import Endpoints, Settings
from pipeline.stack import stack as local_stack
from pipeline.stack.connect import secrets_file
from tests.support.project import Project


def pytest_configure() -> None:
    """Ctrl-C reaches what tests start even where the whole run was started in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack_settings() -> Iterator[Settings]:
    """Settings of a running stack: the one up in CDC_TEST_STATE_DIR, which is left alone, or an own one."""
    shared = os.environ.get("CDC_TEST_STATE_DIR")
    if shared:
        settings = Settings(state_dir=Path(shared))
        if local_stack.status(settings).ready:
            yield settings
            return
    with tempfile.TemporaryDirectory(prefix="cdc-test-", ignore_cleanup_errors=True) as folder:
        # The services' user has to come through when the tests run as root.
        Path(folder).chmod(0o755)
        settings = Settings(state_dir=Path(folder))
        try:
            local_stack.up(settings)
            yield settings
        finally:
            local_stack.down(settings, erase=True)


@pytest.fixture(scope="session")
def stack(stack_settings: Settings) -> Endpoints:
    """Where the real services are."""
    endpoints = stack_settings.endpoints()
    assert endpoints is not None
    return endpoints


@pytest.fixture(scope="session")
def mariadb(stack_settings: Settings) -> str:
    """The superuser's address of the stack's MariaDB, which is started for the first test that wants it."""
    found = local_stack.up(stack_settings, also=["mariadb"]).mariadb
    assert found is not None
    return found


@pytest.fixture(scope="module")
def new_project(
    stack: Endpoints, stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Project]]:
    """Makes projects of a user's own, each with its database, connector and read models; all gone at the end.

    Names are new each time: the topics of an earlier run stay in Kafka.
    """
    made: list[Project] = []

    def make(name: str) -> Project:
        password = f"${{file:{secrets_file(stack_settings)}:source.password}}"
        made.append(Project(f"{name}_{uuid4().hex[:4]}", tmp_path_factory.mktemp(name), stack, password))
        return made[-1]

    yield make
    for project in made:
        project.remove()
