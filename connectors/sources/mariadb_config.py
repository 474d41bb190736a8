"""What Debezium's MariaDB connector is told, beside what connectors of every kind are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from pipeline.addresses import MariadbAddress
from pipeline.errors import SettingsError

if TYPE_CHECKING:
    from connectors.sources.debezium import ConnectorDefinition

CONNECTOR_CLASS: Final = "io.debezium.connector.mariadb.MariaDbConnector"
UNPARSED: Final = frozenset({"inet4", "inet6", "vector"})
"""Types that stop the connector: it can't parse their table's definition."""
RIGHTS: Final = ("RELOAD", "SHOW DATABASES", "LOCK TABLES", "REPLICATION SLAVE", "BINLOG MONITOR")
OWN_TABLE: Final = "id INT PRIMARY KEY, system_id VARCHAR(64) NOT NULL, timeline INT NOT NULL, at TIMESTAMP(6) NOT NULL"
TYPES: Final = {
    "decimal.handling.mode": "string",
    "time.precision.mode": "isostring",
    "binary.handling.mode": "base64",
    # else those beyond 2^63 come as negative numbers
    "bigint.unsigned.handling.mode": "precise",
    # else the year 50 is 2050
    "enable.time.adjuster": "false",
    # else a year of 0 stops the snapshot
    "driver.yearIsDateType": "false",
}


def mariadb_config(definition: ConnectorDefinition, dsn: str, reference: str | None, kafka: str) -> dict[str, str]:
    """The connector's full configuration; raises SettingsError where Kafka's address is not known."""
    address, own = MariadbAddress.of(dsn), definition.database
    bootstrap = definition.history_bootstrap or kafka
    if not bootstrap:
        raise SettingsError(
            f"Connector {definition.name} keeps the history of its tables in Kafka: set kafka.bootstrap, or"
            " history_bootstrap in its definition where Connect sees Kafka elsewhere."
        )
    databases = sorted({table.partition(".")[0] for table in definition.captured})
    history = "schema.history.internal"
    return {
        "connector.class": CONNECTOR_CLASS,
        "tasks.max": "1",
        "topic.prefix": definition.topic_prefix,
        "database.hostname": address.host,
        "database.port": str(address.port),
        "database.user": own.user or address.user,
        **({} if reference is None else {"database.password": reference}),
        "database.server.id": str(definition.server_id),
        "database.include.list": ",".join(map(re.escape, databases)),
        "connect.timeout.ms": "10000",
        "include.schema.changes": "false",
        # the topic is made by the connector: one partition, kept for ever
        f"{history}.kafka.bootstrap.servers": bootstrap,
        f"{history}.kafka.topic": history_topic(definition),
        # a table that nobody captures may have what the connector can't parse
        f"{history}.store.only.captured.tables.ddl": "true",
        f"{history}.store.only.captured.databases.ddl": "true",
        "heartbeat.interval.ms": str(definition.heartbeat_ms),
        "heartbeat.action.query": heartbeat_query(definition.heartbeat_table),
        **TYPES,
        **definition.common(),
    }


def history_topic(definition: ConnectorDefinition) -> str:
    """The topic with the definitions of the tables, by which the connector reads the binlog."""
    return f"{definition.topic_prefix}.schema-history"


def heartbeat_query(table: str) -> str:
    """The heartbeat's statement: an idle source has a new transaction by it."""
    return (
        f"INSERT INTO {table} (id, system_id, timeline, at) VALUES (1, @@server_id, @@gtid_domain_id, NOW(6)) "
        "ON DUPLICATE KEY UPDATE system_id = VALUES(system_id), timeline = VALUES(timeline), at = VALUES(at)"
    )


def quoted(name: str) -> str:
    """A name in SQL; `database.table` as two."""
    return ".".join("`" + part.replace("`", "``") + "`" for part in name.split("."))
