"""A database of a test's own in the stack's MariaDB, as the second source of a project on the real stack."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pymysql

from pipeline.addresses import MariadbAddress
from tests.support.project import Project


@dataclass
class Database:
    """One database; `DB` in a statement stands for its name."""

    uri: str
    name: str

    @property
    def dsn(self) -> str:
        return replace(MariadbAddress.of(self.uri), database=self.name).uri

    def sql(self, *statements: str) -> int:
        """Run statements in one transaction; the sequence of its GTID."""
        with self.connection() as db, db.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement.replace("DB.", f"{self.name}."))
            db.commit()
            cursor.execute("SELECT @@last_gtid, @@gtid_binlog_pos")
            last, now = cursor.fetchone()
            return int((last or now).rpartition("-")[2])

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.connection() as db, db.cursor() as cursor:
            cursor.execute(statement.replace("DB.", f"{self.name}."), parameters or None)
            return list(cursor.fetchall())

    @contextmanager
    def connection(self) -> Iterator[Any]:
        at = MariadbAddress.of(self.uri)
        db = pymysql.connect(
            host=at.host, port=at.port, user=at.user, password=at.password.get_secret_value(), database=self.name,
            charset="utf8mb4", init_command="SET time_zone = '+00:00'",
        )  # fmt: skip
        try:
            yield db
        finally:
            db.close()


@contextmanager
def database(uri: str, name: str, *statements: str) -> Iterator[Database]:
    admin = Database(uri, MariadbAddress.of(uri).database)
    admin.sql(f"CREATE DATABASE {name}")
    try:
        made = Database(uri, name)
        made.sql(*statements)
        yield made
    finally:
        admin.sql(f"DROP DATABASE {name}")


@contextmanager
def only_source(
    project: Project, uri: str, statements: Sequence[str], tables: Sequence[str], projections: str
) -> Iterator[Database]:
    """A MariaDB whose tables the project's projections (a file's text, `DB` in it) read; its connector goes at the end.

    Each table's topic has two partitions: rows of one transaction come by several ways.
    """
    with database(uri, f"{project.name}_m", *statements) as own:

        def second(project: Project) -> None:
            define(project, own, tables, "partitions = 2")
            project.cdc("connector", "apply", own.name, "--yes")
            project.cdc("tables", "pull")

        project.before_connector = second
        project.create_with(
            "CREATE SCHEMA shop; CREATE TABLE shop.stores (id int PRIMARY KEY);", ["shop.stores"],
            {"orders": projections.replace("DB.", f"{own.name}.")}, pulled=False,
        )  # fmt: skip
        yield own
        project.stop_workers()
        project.cdc("connector", "delete", own.name, "--drop-slot", "--yes")


def define(project: Project, own: Database, tables: Sequence[str], more: str = "") -> str:
    """The definition of a connector to this database, as the user with the least rights; its name."""
    name = own.name
    project.settings["CDC_SOURCES__MARIADB__DSN"] = own.dsn
    password = re.sub(r"source\.password", "sources.mariadb.password", project.password)
    listed = ", ".join(f'"{name}.{table}"' for table in tables)
    (project.folder / "connectors/debezium" / f"{name}.toml").write_text(
        f'name = "{name}"\nkind = "mariadb"\nsource = "mariadb"\ntables = [{listed}]\n'
        f'heartbeat_table = "cdc.heartbeat"\n{more}\n[database]\nuser = "debezium"\npassword = "{password}"\n'
    )
    return name
