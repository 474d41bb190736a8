"""What the contracts of sinks and readers have in common."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pipeline.settings import Endpoints


@pytest.fixture(scope="session")
def database(stack: Endpoints) -> Iterator[str]:
    """A database for sinks and readers alone."""
    name = f"documents_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(stack.postgres, autocommit=True) as db:
        db.execute(f"CREATE DATABASE {name}".encode())
    yield make_conninfo(stack.postgres, dbname=name)
    with psycopg.connect(stack.postgres, autocommit=True) as db:  # tests after this one restart the server
        db.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
