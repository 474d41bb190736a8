"""MariaDB of the local stack, where it is asked for: rows in its binlog, GTIDs, and the database `shop`.

Two users have the same random password: `root`, and `debezium`, who may do what a connector has to and no more.
"""

from __future__ import annotations

import shutil
import socket
from urllib.parse import quote

from pipeline.stack import artefacts, processes, users
from pipeline.stack.processes import Command
from pipeline.stack.site import DATABASE, Site

NAME = "mariadb"
SYSTEM = (
    "mariadb_system_tables.sql", "mariadb_performance_tables.sql", "mariadb_system_tables_data.sql",
    "maria_add_gis_sp_bootstrap.sql",
)  # fmt: skip
USERS = f"""
FLUSH PRIVILEGES;
ALTER USER root@localhost IDENTIFIED BY '{{password}}';
DELETE FROM mysql.global_priv WHERE User = 'root' AND Host <> 'localhost';
FLUSH PRIVILEGES;
RENAME USER root@localhost TO root@'%';
CREATE USER debezium@'%' IDENTIFIED BY '{{password}}';
GRANT SELECT, RELOAD, SHOW DATABASES, LOCK TABLES, REPLICATION SLAVE, BINLOG MONITOR ON *.* TO debezium@'%';
CREATE DATABASE {DATABASE};
"""


def address(site: Site) -> str:
    """The superuser's URI. It has the password: never print it."""
    return f"mariadb://root:{quote(site.password(NAME), safe='')}@127.0.0.1:{site.port(NAME)}/{DATABASE}"


def prepare(site: Site) -> Command:
    """Make the data directory where there is none, and say how to start it."""
    folder = site.directory(NAME)
    if not (folder / "made").exists():
        _make(site)
    settings = {
        "bind-address": "127.0.0.1",
        "port": site.free_port(NAME),
        "socket": "",
        "skip-name-resolve": "ON",
        "server-id": 1,
        "log-bin": "binlog",
        "binlog-format": "ROW",
        "binlog-row-image": "FULL",
        "gtid-strict-mode": "ON",
        "sync-binlog": 1,
        "innodb-buffer-pool-size": "64M",
        "default-time-zone": "+00:00",
    }
    return Command(_program(site, settings), cwd=folder)


def _program(site: Site, settings: dict[str, object]) -> list[str]:
    program = artefacts.place(NAME)
    common: dict[str, object] = {
        "basedir": program,
        "lc-messages-dir": program / "share",
        "character-sets-dir": program / "share" / "charsets",
        "datadir": site.directory(NAME) / "data",
        "character-set-server": "utf8mb4",
    }
    options = [f"--{key}={value}" for key, value in (common | settings).items()]
    return [str(program / "bin" / "mariadbd"), "--no-defaults", *options]


def _make(site: Site) -> None:
    """What its own script for this does, without a shell."""
    folder = site.directory(NAME)
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)  # the rest of one that was killed
    data.mkdir(mode=0o700)
    users.give(data, site.user)
    share = artefacts.place(NAME) / "share"
    sql = "CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket = NULL;\n"
    sql += "".join((share / file).read_text("utf-8") for file in SYSTEM)
    sql += USERS.format(password=site.password(NAME))
    command = Command([*_program(site, {"log-warnings": 0}), "--bootstrap"], cwd=folder)
    processes.run(command, site.user, "MariaDB's bootstrap", sql.encode())
    (folder / "made").touch()


def answers(site: Site) -> bool:
    """Whether it greets who connects, which it does once it takes statements."""
    try:
        with socket.create_connection(("127.0.0.1", site.port(NAME)), timeout=1) as connection:
            return b"MariaDB" in connection.recv(128)
    except OSError:
        return False
