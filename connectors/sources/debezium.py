"""A Debezium connector as a file in git: `connectors/debezium/*.toml`, and the configuration that Connect gets."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zlib import crc32

from psycopg.conninfo import make_conninfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from connectors.sources import masks
from connectors.sources.mariadb_config import TYPES as OF_MARIADB
from connectors.sources.mariadb_config import mariadb_config
from connectors.sources.postgres import heartbeat_query, parsed
from pipeline.addresses import MariadbAddress
from pipeline.errors import DefinitionError, SettingsError
from pipeline.settings import ColumnName, Settings

TableName = Annotated[str, Field(pattern=r"^[^.\s]+\.[^.\s]+$")]
Reference = Annotated[str, Field(pattern=r"^\$\{[^}]+\}$")]
OwnTable = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*$")]
PgName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]

CONNECTOR_CLASS = "io.debezium.connector.postgresql.PostgresConnector"
HEARTBEAT_TOPICS = "__debezium-heartbeat"
SECRET = re.compile(r"password|secret|passphrase", re.IGNORECASE)

TLS = ("sslmode", "sslrootcert", "sslcert", "sslkey")
"""Parameters of the source's DSN that are the connector's too."""
TYPES = {
    "decimal.handling.mode": "string",
    "time.precision.mode": "isostring",
    # the same base64 text as with `base64`, which sends null for an unchanged TOASTed value
    "binary.handling.mode": "bytes",
    "hstore.handling.mode": "json",
    "interval.handling.mode": "string",
    "include.unknown.datatypes": "true",
}
EVENTS = {
    "provide.transaction.metadata": "true",
    "tombstones.on.delete": "false",
    "skipped.operations": "none",
    "topic.transaction": "transaction",
    "extended.headers.enabled": "false",
    "key.converter": "org.apache.kafka.connect.json.JsonConverter",
    "key.converter.schemas.enable": "false",
    "value.converter": "org.apache.kafka.connect.json.JsonConverter",
    "value.converter.schemas.enable": "false",
}
SPELLED = "other spellings of values are refused one by one, or taken for other values"
RELIED_ON = {
    "provide.transaction.metadata": "without it no transaction is seen whole",
    "skipped.operations": "rows that the source no longer has would stay",
    "key.converter": "only JSON is read, with schemas or without",
    "value.converter": "only JSON is read, with schemas or without",
    "topic.transaction": "no transaction's end would be found",
}
"""What `extra` may not say otherwise, beside the types, and why: nothing would be read, or less than there is."""
FOREIGN = {"mariadb": ("slot", "publication", "signal_table"), "postgres": ("server_id", "history_bootstrap")}
"""What only the other kind of source has."""
RESHAPING = re.compile(r"ExtractNewRecordState|Router|Filter|Flatten|HoistField|ExtractField|ValueToKey")
"""Transforms after which a record is elsewhere, gone, or no longer the envelope that orders rows and transactions."""
THROUGHPUT = {
    "max.batch.size": "8192",
    "max.queue.size": "32768",
    "max.queue.size.in.bytes": "134217728",
    "producer.override.linger.ms": "5",
    "producer.override.compression.type": "lz4",
    "producer.override.batch.size": "262144",
}
RETRIES = {
    # some six waits of up to 10 s; then the task fails, which `status` sees, where endless retries would look healthy
    "errors.max.retries": "6",
    "errors.retry.delay.initial.ms": "500",
    "errors.retry.delay.max.ms": "10000",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Database(_Section):
    """Where the source is, as Connect sees it; what is not given comes from the settings' source DSN."""

    host: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    dbname: str | None = None
    user: str | None = None
    password: Reference | None = None
    """A reference that Connect resolves, `${file:/run/secrets/source.properties:password}`; never the password."""
    password_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The name of a variable in Connect's environment that has the password."""

    @model_validator(mode="after")
    def _one_password(self) -> Self:
        if self.password is not None and self.password_env is not None:
            raise ValueError("give password or password_env, not both")
        return self


class Snapshot(_Section):
    """How the tables' rows are read at first; with `copy` by each worker, and the topics have what changes since."""

    mode: Literal["copy", "always", "initial", "initial_only", "no_data", "when_needed", "configuration_based"] = (
        "initial"
    )
    threads: int = Field(default=1, ge=1, le=64)
    fetch_size: int = Field(default=10_240, ge=1)
    chunk_size: int = Field(default=8_192, ge=1)
    """Rows of one chunk of an incremental snapshot (`cdc backfill`)."""


class ConnectorDefinition(_Section):
    """One Debezium connector."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    kind: Literal["postgres", "mariadb"] = "postgres"
    tables: tuple[TableName, ...] = Field(min_length=1)
    """`schema.table`; their changes are captured."""
    source: str = Field(default="", pattern=r"^([a-z][a-z0-9]*)?$")
    """The source of the settings that it reads, of `[sources.…]`; `[source]` unless given."""
    kafka: str = Field(default="", pattern=r"^([a-z][a-z0-9]*)?$")
    """The Kafka cluster that it writes to, of `[kafkas.…]`, by the Connect of that name; `[kafka]` unless given."""
    database: Database = Database()
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """Topics are `<prefix>.<schema>.<table>`; the connector's name unless given."""
    partitions: int = Field(default=1, ge=1)
    retention_days: float = Field(default=7, gt=0)
    max_message_bytes: int = Field(default=10_485_760, ge=1024)
    """A row whose event is larger stops the connector."""
    signal_table: OwnTable = "cdc.signals"
    heartbeat_table: OwnTable = "cdc.heartbeat"
    heartbeat_ms: int = Field(default=1000, ge=100)
    server_id: int = Field(default=0, ge=0, le=(1 << 32) - 1)
    """MariaDB: by which number it registers as a replica, unlike all others; made of its name unless given."""
    history_bootstrap: str = ""
    """MariaDB: Kafka as Connect sees it, for its history of the tables' definitions; kafka.bootstrap unless given."""
    slot: PgName = ""
    publication: PgName = ""
    snapshot: Snapshot = Snapshot()
    mask: dict[ColumnName, Literal["hash", "redact"]] = {}
    """Columns whose values never leave the source in clear: Kafka gets their hash, or stars."""
    poll_ms: int = Field(default=20, ge=1)
    extra: dict[str, str | int | bool] = {}
    """Debezium or Connect properties that win over all of the above; those that reading relies on are refused."""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            return data
        kind = str(data.get("kind", "postgres"))
        if found := [name for name in FOREIGN.get(kind, ()) if name in data]:
            raise ValueError(f"{', '.join(found)}: a connector of kind {kind} has none")
        own = "cdc_" + re.sub(r"[^a-z0-9_]", "_", data["name"])
        number = 1_000_000_000 + crc32(data["name"].encode()) % 1_000_000_000
        return {"topic_prefix": data["name"], "slot": own, "publication": own, "server_id": number, **data}

    @field_validator("tables")
    @classmethod
    def _distinct(cls, tables: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({table for table in tables if tables.count(table) > 1}):
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return tables

    @field_validator("mask")
    @classmethod
    def _captured(cls, mask: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if strange := [name for name in mask if name.rpartition(".")[0] not in info.data.get("tables", ())]:
            raise ValueError(f"{', '.join(strange)}: of no table in `tables`")
        return mask

    @field_validator("extra")
    @classmethod
    def _no_secrets(cls, extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for key, value in extra.items():
            if SECRET.search(key) and not str(value).startswith("${"):
                raise ValueError(f"{key} would put a secret into git: write a reference, ${{env:NAME}}")
        return extra

    @field_validator("extra")
    @classmethod
    def _readable(cls, extra: dict[str, str | int | bool], info: ValidationInfo) -> dict[str, str | int | bool]:
        types = OF_MARIADB if info.data.get("kind") == "mariadb" else TYPES
        own = {**types, **EVENTS}
        for key, why in {**dict.fromkeys(types, SPELLED), **RELIED_ON}.items():
            if key in extra and _property(extra[key]) != own[key]:
                raise ValueError(f"{key} must stay {own[key]!r}, for {why}: leave it out")
        if own_masks := [key for key in extra if key.startswith(("column.mask.", "column.truncate."))]:
            raise ValueError(f"{own_masks[0].split('.with.')[0]}: only what [mask] says is known to verify and preview")
        if info.data.get("mask") and "message.key.columns" in extra:
            raise ValueError("message.key.columns: keys are not masked, so they can't be chosen beside [mask]")
        if "topic.prefix" in extra:
            raise ValueError("topic.prefix would part the events from their readers: set topic_prefix instead")
        for key, value in extra.items():
            if key.startswith("transforms.") and key.endswith(".type") and RESHAPING.search(str(value)):
                raise ValueError(
                    f"{key}: after {str(value).rpartition('.')[2]} the events could not be read; whoever needs them so"
                    " gets a connector of their own, with its own slot"
                )
        return extra

    @property
    def captured(self) -> tuple[str, ...]:
        """All tables in the stream: the author's, then the heartbeat table and the signal table (Postgres)."""
        return (*self.tables, self.heartbeat_table, *((self.signal_table,) if self.kind == "postgres" else ()))

    @property
    def transaction_topic(self) -> str:
        return f"{self.topic_prefix}.transaction"

    @property
    def heartbeat_topic(self) -> str:
        return f"{HEARTBEAT_TOPICS}.{self.topic_prefix}"

    @property
    def notification_topic(self) -> str:
        """What the connector says of its snapshots."""
        return f"{self.topic_prefix}.notifications"

    def topic(self, table: str) -> str:
        """The topic of a table's changes."""
        return f"{self.topic_prefix}.{table}"

    def dsn(self, source_dsn: str) -> str:
        """The settings' source DSN, pointed at this definition's database (its user is the connector's own)."""
        if MariadbAddress.is_one(source_dsn) != (self.kind == "mariadb"):
            raise SettingsError(
                f"Connector {self.name} is of kind {self.kind}, and the dsn of its source is not: set `kind`, or `source`,"
                " in its definition."
            )
        own = self.database
        if self.kind == "mariadb":
            at = MariadbAddress.of(source_dsn)
            return replace(
                at, host=own.host or at.host, port=own.port or at.port, database=own.dbname or at.database
            ).uri
        return make_conninfo(source_dsn, **own.model_dump(include={"host", "port", "dbname"}, exclude_none=True))

    def dsn_in(self, settings: Settings) -> str:
        """The DSN of the database that it reads, in these settings. It has the password: never print it."""
        return self.dsn(settings.source_dsn(self.source))

    def config(
        self, source_dsn: str, password: str | None = None, kafka: str = "", salt: masks.Salt = None
    ) -> dict[str, str]:
        """The connector's full configuration.

        `password` is the reference to use where the definition has none (`${file:…:source.password}`).
        `kafka`: its bootstrap servers, for a connector that keeps the history of its tables there.
        `salt`: of hashed columns; it is in a key, so never print those but by `masks.unsalted`.
        """
        masking = masks.options(self, salt)
        if self.kind == "mariadb":
            return mariadb_config(self, self.dsn(source_dsn), self.reference(password), kafka) | masking
        return {
            **masking,
            "connector.class": CONNECTOR_CLASS,
            "tasks.max": "1",
            "topic.prefix": self.topic_prefix,
            **self._database(source_dsn, password),
            "plugin.name": "pgoutput",
            "slot.name": self.slot,
            "slot.drop.on.stop": "false",
            # a slot that was made anew beneath the connector is an error, not a silent gap
            "offset.mismatch.strategy": "trust_offset",
            "publication.name": self.publication,
            "publication.autocreate.mode": "filtered",
            "publish.via.partition.root": "true",
            **self._signals(),
            **TYPES,
            **self.common(),
        }

    def common(self) -> dict[str, str]:
        """What connectors of every kind are told; `extra` comes last."""
        return {
            "table.include.list": ",".join(map(re.escape, self.captured)),
            **self._snapshot(),
            **EVENTS,
            **self._topics(),
            **THROUGHPUT,
            "poll.interval.ms": str(self.poll_ms),
            "producer.override.max.request.size": str(self.max_message_bytes),
            **RETRIES,
            **{key: _property(value) for key, value in self.extra.items()},
        }

    def reference(self, password: str | None) -> str | None:
        """What stands for the password in the configuration; raises SettingsError where that is the password."""
        own = self.database
        reference = own.password or (f"${{env:{own.password_env}}}" if own.password_env else password)
        if reference is not None and not reference.startswith("${"):
            raise SettingsError(
                f"The password of connector {self.name} must be a reference (${{file:…}}, ${{env:…}}):"
                " set database.password_env in its definition."
            )
        return reference

    def _database(self, source_dsn: str, password: str | None) -> dict[str, str]:
        source, own, reference = parsed(source_dsn), self.database, self.reference(password)
        config = {
            "database.hostname": own.host or source.get("host") or "localhost",
            "database.port": str(own.port or source.get("port") or 5432),
            "database.user": own.user or source.get("user") or "postgres",
            "database.dbname": own.dbname or source.get("dbname") or "postgres",
        }
        if reference is not None:
            config["database.password"] = reference
        # the files are those of the machine that Connect runs on
        config |= {f"database.{name}": str(source[name]) for name in TLS if name in source}
        return config

    def _snapshot(self) -> dict[str, str]:
        return {
            "snapshot.mode": "no_data" if self.snapshot.mode == "copy" else self.snapshot.mode,
            "snapshot.max.threads": str(self.snapshot.threads),
            "snapshot.fetch.size": str(self.snapshot.fetch_size),
        }

    def _signals(self) -> dict[str, str]:
        return {
            "signal.enabled.channels": "source",
            "signal.data.collection": self.signal_table,
            # a window's row is deleted at its end, so that the signal table stays empty
            "incremental.snapshot.watermarking.strategy": "insert_delete",
            "incremental.snapshot.chunk.size": str(self.snapshot.chunk_size),
            "notification.enabled.channels": "sink",
            "notification.sink.topic.name": self.notification_topic,
            "heartbeat.interval.ms": str(self.heartbeat_ms),
            "heartbeat.action.query": heartbeat_query(self.heartbeat_table),
        }

    def _topics(self) -> dict[str, str]:
        """Compaction is nowhere: it drops what a replay needs and refuses the keyless truncate."""
        own = (*(self.topic(table) for table in self.captured[len(self.tables) :]), self.notification_topic)
        single = (self.transaction_topic, *own)
        return {
            "topic.heartbeat.prefix": HEARTBEAT_TOPICS,
            "topic.creation.default.replication.factor": "-1",
            "topic.creation.default.partitions": str(self.partitions),
            "topic.creation.default.cleanup.policy": "delete",
            "topic.creation.default.retention.ms": str(round(self.retention_days * 86_400_000)),
            "topic.creation.default.max.message.bytes": str(self.max_message_bytes),
            "topic.creation.groups": "transaction,heartbeat",
            "topic.creation.transaction.include": ",".join(map(re.escape, single)),
            "topic.creation.transaction.partitions": "1",
            "topic.creation.heartbeat.include": re.escape(self.heartbeat_topic),
            "topic.creation.heartbeat.partitions": "1",
            "topic.creation.heartbeat.retention.ms": "86400000",
        }


def load_definition(path: Path) -> ConnectorDefinition:
    """Read one definition; a wrong one raises SettingsError that names the file and every wrong key."""
    try:
        return ConnectorDefinition.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise SettingsError(
            f"There is no connector definition {path}: write it, or see `cdc connector list`."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML: {error}.") from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError(f"The connector definition {path} is wrong:\n" + "\n".join(lines)) from None


def load_definitions(folder: Path) -> dict[str, ConnectorDefinition]:
    """All definitions of a folder by name; two that share a name, a slot or a topic prefix raise SettingsError."""
    found: dict[str, ConnectorDefinition] = {}
    for path in sorted(folder.glob("*.toml")):
        new = load_definition(path)
        for other in found.values():
            for field in ("name", "topic_prefix", "slot", "server_id"):
                if getattr(new, field) == getattr(other, field):
                    raise SettingsError(f"{path} has the {field} of connector {other.name}: each needs its own.")
        found[new.name] = new
    return found


def capturing(definitions: Mapping[str, ConnectorDefinition], tables: Set[str]) -> ConnectorDefinition | None:
    """The first that captures all these tables; DefinitionError where those of several sources do: which is meant?"""
    found = [definition for definition in definitions.values() if tables <= set(definition.tables)]
    if len({definition.source for definition in found}) > 1:
        raise DefinitionError(
            f"{', '.join(sorted(tables))}: captured from several sources, by {' and '.join(d.name for d in found)}; take"
            " what is not meant out of `tables` of the others, and run `cdc connector apply`."
        )
    return found[0] if found else None


def _property(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
