"""Settings: one class, read from `cdc.toml` in the working directory and from `CDC_…` in the environment."""

from __future__ import annotations

import json
import re
from pathlib import Path
from ssl import SSLContext
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from pipeline.addresses import ConnectAddress, KafkaAddress, Secret, tls_context
from pipeline.errors import SettingsError

ENDPOINTS = "stack/endpoints.json"


class Endpoints(BaseModel):
    """Where a running local stack listens; written by `cdc stack up` to `<state_dir>/stack/endpoints.json`."""

    model_config = ConfigDict(extra="forbid")

    kafka: str
    """Bootstrap servers, `127.0.0.1:9092`."""
    connect: str
    """Kafka Connect's REST address, `http://127.0.0.1:8083`."""
    elasticsearch: str
    """`http://127.0.0.1:9200`."""
    postgres: str
    """A libpq URI of a superuser on the database `shop`, `postgresql://postgres:…@127.0.0.1:5432/shop`."""
    redis: str
    """`redis://127.0.0.1:6379/0`."""
    mariadb: str | None = None
    """`mariadb://root:…@127.0.0.1:3306/shop`; None in a stack without MariaDB."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Tls(_Section):
    """Paths of PEM files."""

    ca: Path | None = None
    """Who has signed the server's certificate; the system's own authorities where it is not given."""
    certificate: Path | None = None
    """The client's certificate, for a server that asks for one."""
    key: Path | None = None
    """Its key."""
    key_password: Secret | None = None

    def context(self, section: str) -> SSLContext:
        return tls_context(section, self.ca, self.certificate, self.key, self.key_password)


ColumnName = Annotated[str, Field(pattern=r"^[^.\s]+\.[^.\s]+\.[^.\s]+$")]
SinkName = Annotated[str, Field(pattern=r"^[a-z]+(:\S+)?$")]
RowValues = Annotated[tuple[bool | int | str, ...], Field(min_length=1)]
Withheld = tuple[ColumnName, ...]
"""Columns of the source that never go there, `shop.customers.email`; `shop.cards.*` are all of a table."""


class KafkaSettings(_Tls):
    bootstrap: str | None = None
    tls: bool = False
    """Speak TLS; a CA or a certificate says so too."""
    username: str | None = None
    password: Secret | None = None
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How user name and password are told (SASL)."""
    withheld: Withheld = ()
    bulk_bytes: int = Field(default=900_000, ge=1_000)
    """Upper bound of the documents that a sink sends to a partition at once, in bytes (a single larger one goes alone)."""
    request_timeout: float = Field(default=20.0, gt=0, le=300)
    """Seconds until a sink's request counts as failed."""
    in_flight: ClassVar[int] = 1
    """A sink's transactions come one after the other."""


class ConnectSettings(_Tls):
    url: str | None = None
    username: str | None = None
    password: Secret | None = None


class ElasticsearchSettings(_Tls):
    url: str | None = None
    username: str | None = None
    password: Secret | None = None
    api_key: Secret | None = None
    withheld: Withheld = ()
    bulk_bytes: int = Field(default=2_000_000, ge=1_000)
    """Upper bound of one bulk request, in bytes (a single larger document goes alone)."""
    in_flight: int = Field(default=2, ge=1, le=16)
    """Bulk requests under way at once."""
    request_timeout: float = Field(default=20.0, gt=0)
    """Seconds until a request counts as failed; less than worker.session_timeout."""


class PostgresSettings(_Section):
    dsn: Secret | None = None
    """A libpq URI of the database that the Postgres sinks write to; never printed."""
    withheld: Withheld = ()
    in_flight: int = Field(default=2, ge=1, le=16)
    """Transactions under way at once, where a document may be seen before another of its source transaction."""
    request_timeout: float = Field(default=20.0, gt=0)
    """Seconds until a statement counts as failed."""
    cut_rows: int = Field(default=5000, ge=1)
    """Documents that one transaction changes at most; what a source transaction changes beyond it is seen in parts."""


class RedisSettings(_Tls):
    url: Secret | None = None
    """`redis://user:password@host:6379/0`, `rediss://` with TLS; never printed."""
    withheld: Withheld = ()
    bulk_bytes: int = Field(default=1_000_000, ge=1_000)
    """Upper bound of what one step writes, in bytes (a single larger document goes alone)."""
    in_flight: int = Field(default=2, ge=1, le=16)
    """Steps under way at once."""
    request_timeout: float = Field(default=20.0, gt=0)
    """Seconds until a request counts as failed."""


class SourceSettings(_Section):
    dsn: Secret | None = None
    """A libpq URI of the source database, used by check, preview and verify; never printed."""


class RegistrySettings(_Tls):
    url: str
    """A schema registry's Confluent-compatible API: `http://registry:8081`, of Apicurio `…/apis/ccompat/v7`."""
    username: str | None = None
    password: Secret | None = None


def _plain(salt: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[A-Za-z0-9_-]{8,200}", salt.get_secret_value()):
        raise ValueError("has to be 8 to 200 letters, digits, - or _")
    return SecretStr(salt.get_secret_value())  # the same for as long as the process lives, whatever its file says then


class MaskSettings(_Section):
    salt: Annotated[Secret, AfterValidator(_plain)] | None = None
    """Goes before every value that is hashed, by a connector or by `hashed()`: another salt gives other hashes."""


SourceName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*$")]


class WorkerSettings(_Section):
    consistency: Literal["transaction", "row"] = "transaction"
    session_timeout: float = Field(default=30.0, gt=0)
    """Seconds until Kafka gives a silent worker's partitions away; it writes nothing from request_timeout before that."""
    incomplete_after: float = Field(default=30.0, gt=0)
    """Seconds a transaction may stay incomplete before it is released and counted."""
    missing_columns: Literal["stop", "unknown"] = "stop"
    """What an event without a column that it had before does: the worker stops and says so, or the value is unknown."""
    staged_bytes: int = Field(default=64_000_000, ge=100_000)
    """Bytes of changes of open transactions kept in memory; more spill to the mirror."""
    sweep_limit: float = Field(default=0.2, ge=0, le=1)
    """The share of a table's rows that a new snapshot may leave out before they are kept until `cdc sweep`."""
    flush_rows: int = Field(default=1000, ge=1)
    """Documents assembled at a time."""
    flush_rate: float = Field(default=0.0, ge=0)
    """Documents written a second at most; 0 for all that the sink takes. `cdc rebuild --rate` sets it for the new build."""


class StateSettings(_Section):
    snapshots: str | None = Field(default=None, pattern=r"^[^@]+$")
    """Where mirrors are copied to: a folder, or what fsspec knows, `s3://bucket/cdc`; credentials come from the environment."""
    every: float = Field(default=300.0, gt=0)
    """Seconds from one copy to the next, where anything has changed."""
    keep: int = Field(default=3, ge=1)
    """Copies of each build; older ones go."""


class LogSettings(_Section):
    format: Literal["auto", "json", "text"] = "auto"
    """How `cdc run`, `worker` and `web` log: `auto` is text on a terminal and JSON, an object a line, elsewhere."""


class TraceSettings(_Section):
    endpoint: str | None = None
    """`http://collector:4318/v1/traces` (OTLP by HTTP); its headers by OTEL_EXPORTER_OTLP_HEADERS. Nothing is traced without it."""
    share: float = Field(default=0.05, ge=0, le=1)
    """Of the traces that begin here; those that a reader's request brings along are its to decide."""


class WebSettings(_Section):
    rate: float = Field(default=500.0, ge=0)
    """Requests a second that one key may make, twice as many in one of them; 0: as many as come."""
    body_bytes: int = Field(default=1_000_000, ge=1_000)
    """Upper bound of a request's body, in bytes."""
    request_timeout: float = Field(default=20.0, gt=0)
    """Seconds that a request may take, beside what it waits for."""
    wait: float = Field(default=5.0, ge=0)
    """Seconds that a read with a token waits, where it does not say how long."""
    wait_limit: float = Field(default=30.0, ge=0)
    """Seconds that it may wait at most."""
    feeds: int = Field(default=100, ge=0)
    """Feeds of changes that may be open at once in one process."""
    canary: float = Field(default=0.0, ge=0, le=1)
    """Share of the keys that are read from the version that waits for its cut-over too, and compared."""
    canary_slower: float = Field(default=2.0, gt=0)
    """By which factor its slowest reads may take longer."""
    hosts: tuple[str, ...] = ()
    """Further names by which `cdc web --open` may be asked; this machine's own it always answers to."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="CDC_", env_nested_delimiter="__", toml_file="cdc.toml", extra="forbid", validate_default=True
    )

    project: str = Field(default="shop", pattern=r"^[a-z][a-z0-9-]*$")
    """Prefix of consumer groups and of the source's topics."""
    state_dir: Path = Path(".cdc")
    """Mirrors, the local stack's data, logs."""
    projections: Path = Path("projections")
    connectors: Path = Path("connectors/debezium")
    topics: Path = Path("connectors/topics")
    """Definitions of topics that others produce."""
    catalog: Path = Path("projections/catalog.lock.json")
    kafka: KafkaSettings = KafkaSettings()
    connect: ConnectSettings = ConnectSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    postgres: PostgresSettings = PostgresSettings()
    redis: RedisSettings = RedisSettings()
    source: SourceSettings = SourceSettings()
    sources: dict[SourceName, SourceSettings] = {}
    """Further source databases, `[sources.crm]`; a connector's definition says which it reads (`source = "crm"`)."""
    registries: dict[SourceName, RegistrySettings] = {}
    """Schema registries, `[registries.billing]`; a definition of foreign topics says which is theirs."""
    kafkas: dict[SourceName, KafkaSettings] = {}
    """Further Kafka clusters, `[kafkas.west]`; a connector's definition says to which it writes (`kafka = "west"`)."""
    connects: dict[SourceName, ConnectSettings] = {}
    """The Connect of each of these, `[connects.west]`."""
    withheld_rows: dict[SinkName, dict[ColumnName, RowValues]] = {}
    """Rows that never go to sinks of a kind (`redis`) or to one target (`elasticsearch:orders`), by the values of a column."""
    mask: MaskSettings = MaskSettings()
    worker: WorkerSettings = WorkerSettings()
    state: StateSettings = StateSettings()
    web: WebSettings = WebSettings()
    log: LogSettings = LogSettings()
    traces: TraceSettings = TraceSettings()

    def withheld(self, kind: str) -> tuple[str, ...]:
        """The columns that never go to sinks of this kind."""
        return tuple(getattr(getattr(self, kind, None), "withheld", ()))

    def rows_withheld(self, kind: str, name: str) -> dict[str, tuple[bool | int | str, ...]]:
        """By column the values of the rows that never go to this target."""
        found: dict[str, tuple[bool | int | str, ...]] = {}
        for rules in (self.withheld_rows.get(kind, {}), self.withheld_rows.get(f"{kind}:{name}", {})):
            for column, values in rules.items():
                found[column] = tuple(dict.fromkeys((*found.get(column, ()), *values)))
        return found

    @model_validator(mode="after")
    def _no_request_outlives_the_session(self) -> Self:
        if self.elasticsearch.request_timeout >= self.worker.session_timeout:
            raise ValueError(
                f"elasticsearch.request_timeout ({self.elasticsearch.request_timeout:g} s) has to be less than "
                f"worker.session_timeout ({self.worker.session_timeout:g} s): a replaced worker's last request must be over"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, TomlConfigSettingsSource(settings_cls)

    def endpoints(self) -> Endpoints | None:
        """The local stack's addresses, or None where none is up."""
        path = self.state_dir / ENDPOINTS
        try:
            return Endpoints.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise SettingsError(
                f"{path} is no endpoints file: {error.error_count()} errors; run `cdc stack up`"
            ) from None

    def kafka_address(self, name: str = "") -> KafkaAddress:
        """A Kafka cluster's, that of `[kafka]` where no name is given, which is that of documents in topics too."""
        own = self.kafkas.get(name, KafkaSettings()) if name else self.kafka
        bootstrap = own.bootstrap or self._further(name, "kafka", "kafka.bootstrap")
        tls = own.context(f"kafkas.{name}" if name else "kafka") if own.tls or own.ca or own.certificate else None
        return KafkaAddress(bootstrap, tls, own.username, own.password, own.mechanism)

    def connect_address(self, name: str = "") -> ConnectAddress:
        """The Connect that writes to the Kafka cluster of that name."""
        own = self.connects.get(name, ConnectSettings()) if name else self.connect
        url = own.url or self._further(name, "connect", "connect.url")
        tls = own.context(f"connects.{name}" if name else "connect") if url.startswith("https:") else None
        return ConnectAddress(url, tls, own.username, own.password)

    def registry_address(self, name: str) -> ConnectAddress:
        own = self.registries.get(name)
        if own is None:
            raise SettingsError(
                f"No address of the schema registry {name}: set registries.{name}.url in cdc.toml or"
                f" CDC_REGISTRIES__{name.upper()}__URL."
            )
        tls = own.context(f"registries.{name}") if own.url.startswith("https:") else None
        return ConnectAddress(own.url, tls, own.username, own.password)

    def _further(self, name: str, service: str, key: str) -> str:
        """The local stack has the first cluster only."""
        if not name:
            return self._local(service, key)
        kind, _, what = key.partition(".")
        raise SettingsError(
            f"No address of {service} {name}: set {kind}s.{name}.{what} in cdc.toml or CDC_{kind.upper()}S__{name.upper()}__{what.upper()}."
        )

    def elasticsearch_url(self) -> str:
        return self.elasticsearch.url or self._local("elasticsearch", "elasticsearch.url")

    def postgres_dsn(self) -> str:
        """The Postgres sinks' libpq URI. It has the password: never print it."""
        if self.postgres.dsn is not None:
            return self.postgres.dsn.get_secret_value()
        return self._local("postgres", "postgres.dsn")

    def redis_url(self) -> str:
        """The Redis sinks' URL. It may have a password: never print it."""
        return self.redis.url.get_secret_value() if self.redis.url else self._local("redis", "redis.url")

    def source_dsn(self, name: str = "") -> str:
        """A source's libpq URI, that of `[source]` where no name is given. It has the password: never print it."""
        if not name:
            return self.source.dsn.get_secret_value() if self.source.dsn else self._local("postgres", "source.dsn")
        own = self.sources.get(name)
        if (own is None or own.dsn is None) and (local := self._local_source(name)):
            return local
        if own is None or own.dsn is None:
            known = ", ".join(sorted(self.sources)) or "none"
            raise SettingsError(
                f"No address of the source {name}: set sources.{name}.dsn in cdc.toml or CDC_SOURCES__{name.upper()}__DSN;"
                f" named sources are {known}."
            )
        return own.dsn.get_secret_value()

    def salt(self, what: str) -> SecretStr:
        """What goes before hashed values; raises SettingsError where it is not set, and `what` needs it."""
        if self.mask.salt is None:
            raise SettingsError(f"{what} has hashed columns: set mask.salt in cdc.toml or CDC_MASK__SALT.")
        return self.mask.salt

    def has_source(self, name: str = "") -> bool:
        """Whether a source has an address here; the local stack is that of `[source]`."""
        if name:
            return name in self.sources or bool(self._local_source(name))
        return self.source.dsn is not None or self.endpoints() is not None

    def _local_source(self, name: str) -> str | None:
        """The local stack's MariaDB is the source of that name."""
        up = self.endpoints() if name == "mariadb" else None
        return None if up is None else up.mariadb

    def _local(self, service: str, key: str) -> str:
        up = self.endpoints()
        if up is None:
            variable = "CDC_" + key.upper().replace(".", "__")
            raise SettingsError(
                f"No address of {service}: set {key} in cdc.toml or {variable}, or start the local stack with `cdc stack up`."
            )
        return str(getattr(up, service))

    def shown(self) -> dict[str, Any]:
        """All settings as plain JSON values, secrets as `**********`."""
        return dict(json.loads(self.model_dump_json()))


def load(env_file: str | Path | None = None) -> Settings:
    """Read the settings; a wrong one raises SettingsError naming every wrong key."""
    try:
        return Settings(_env_file=env_file)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError("Wrong settings (cdc.toml or CDC_… in the environment):\n" + "\n".join(lines)) from None
