"""A connector's definition: what its file may say, and what Connect gets from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from connectors.sources.connect import first_useful_line
from connectors.sources.debezium import ConnectorDefinition, load_definition, load_definitions
from connectors.sources.lifecycle import check_tables, masked, warnings
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.errors import NoPrimaryKey, NoReplicaIdentity, SettingsError, UnknownTable

DSN = "postgresql://reader:very-secret@db.example:6432/shop?sslmode=require"
REFERENCE = "${file:secrets.properties:source.password}"
SHOP = ConnectorDefinition(name="shop", tables=("shop.customers", "shop.orders"))


def test_the_database_comes_from_the_source_dsn() -> None:
    config = SHOP.config(DSN, REFERENCE)
    assert config["database.hostname"] == "db.example"
    assert config["database.port"] == "6432"
    assert config["database.dbname"] == "shop"
    assert config["database.user"] == "reader"
    assert config["database.sslmode"] == "require"


def test_the_definition_wins_over_the_source_dsn() -> None:
    own = ConnectorDefinition.model_validate(
        {
            "name": "shop",
            "tables": ["shop.orders"],
            "database": {"host": "replica", "user": "cdc", "password_env": "PW"},
        }
    )
    config = own.config(DSN, REFERENCE)
    assert (config["database.hostname"], config["database.user"]) == ("replica", "cdc")
    assert config["database.password"] == "${env:PW}"
    assert config["database.port"] == "6432"


def test_the_password_never_is_in_the_configuration() -> None:
    assert "very-secret" not in json.dumps(SHOP.config(DSN, REFERENCE))
    assert "very-secret" not in json.dumps(SHOP.config(DSN))
    with pytest.raises(SettingsError, match="must be a reference"):
        SHOP.config(DSN, "very-secret")


@pytest.mark.parametrize("database", [{"password": "clear"}, {"password": "${env:A}", "password_env": "B"}])
def test_a_definition_can_not_hold_a_password(database: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ConnectorDefinition.model_validate({"name": "shop", "tables": ["a.b"], "database": database})


def test_extra_can_not_hold_a_password_either() -> None:
    with pytest.raises(ValidationError, match="would put a secret into git"):
        ConnectorDefinition(name="shop", tables=("a.b",), extra={"database.ssl.password": "clear"})


def test_the_settings_that_decoding_relies_on() -> None:
    config = SHOP.config(DSN, REFERENCE)
    wanted = {
        "plugin.name": "pgoutput",
        "decimal.handling.mode": "string",
        "time.precision.mode": "isostring",
        "hstore.handling.mode": "json",
        "interval.handling.mode": "string",
        "provide.transaction.metadata": "true",
        "tombstones.on.delete": "false",
        "skipped.operations": "none",
        "publication.autocreate.mode": "filtered",
        "signal.data.collection": "cdc.signals",
        "value.converter.schemas.enable": "false",
    }
    assert {key: config[key] for key in wanted} == wanted


def test_unchanged_bytes_are_not_sent_as_null() -> None:
    assert SHOP.config(DSN, REFERENCE)["binary.handling.mode"] == "bytes"


def test_the_heartbeat_and_signal_tables_are_captured() -> None:
    tables = SHOP.config(DSN)["table.include.list"].split(",")
    assert tables == [r"shop\.customers", r"shop\.orders", r"cdc\.heartbeat", r"cdc\.signals"]


def test_the_heartbeat_says_which_source_log_it_comes_from() -> None:
    query = SHOP.config(DSN)["heartbeat.action.query"]
    assert "pg_control_system()" in query and "pg_walfile_name" in query and "ON CONFLICT (id) DO UPDATE" in query


def test_topics_are_never_compacted_and_the_transaction_topic_has_one_partition() -> None:
    wide = ConnectorDefinition(name="shop", tables=("shop.orders",), partitions=6, retention_days=2)
    config = wide.config(DSN)
    assert config["topic.creation.default.cleanup.policy"] == "delete"
    assert config["topic.creation.default.partitions"] == "6"
    assert config["topic.creation.default.retention.ms"] == str(2 * 86_400_000)
    assert config["topic.creation.transaction.partitions"] == "1"
    assert r"shop\.transaction" in config["topic.creation.transaction.include"].split(",")
    assert config["topic.creation.heartbeat.include"] == r"__debezium\-heartbeat\.shop"


def test_extra_wins_over_everything() -> None:
    own = ConnectorDefinition(name="shop", tables=("a.b",), extra={"poll.interval.ms": 7, "tombstones.on.delete": True})
    config = own.config(DSN)
    assert (config["poll.interval.ms"], config["tombstones.on.delete"]) == ("7", "true")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("provide.transaction.metadata", False, "no transaction is seen whole"),
        ("skipped.operations", "t", "rows that the source no longer has would stay"),
        ("value.converter", "io.confluent.connect.avro.AvroConverter", "only JSON is read"),
        ("key.converter", "org.apache.kafka.connect.storage.StringConverter", "only JSON is read"),
        ("topic.transaction", "tx", "no transaction's end"),
        ("binary.handling.mode", "hex", "must stay 'bytes'"),
        ("decimal.handling.mode", "precise", "taken for other values"),
        ("topic.prefix", "other", "set topic_prefix instead"),
        ("transforms.flat.type", "io.debezium.transforms.ExtractNewRecordState", "connector of their own"),
        ("transforms.by.type", "io.debezium.transforms.ByLogicalTableRouter", "after ByLogicalTableRouter"),
        ("transforms.few.type", "org.apache.kafka.connect.transforms.Filter", "could not be read"),
    ],
)
def test_extra_can_not_make_events_that_are_not_read(tmp_path: Path, key: str, value: str | bool, says: str) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(f'name = "shop"\ntables = ["a.b"]\n[extra]\n"{key}" = {json.dumps(value)}')
    with pytest.raises(SettingsError) as refused:
        load_definition(path)
    assert "shop.toml" in str(refused.value) and key in str(refused.value) and says in str(refused.value)


def test_extra_may_say_what_is_so_anyway_and_add_what_leaves_the_envelope_alone() -> None:
    extra = {
        "provide.transaction.metadata": True,
        "skipped.operations": "none",
        "value.converter.schemas.enable": True,
        "transforms": "origin",
        "transforms.origin.type": "org.apache.kafka.connect.transforms.InsertHeader",
    }
    own = ConnectorDefinition(name="shop", tables=("a.b",), extra=extra)
    config = own.config(DSN)
    assert config["provide.transaction.metadata"] == config["value.converter.schemas.enable"] == "true"
    assert config["transforms"] == "origin"


def test_names_that_are_not_given_follow_from_the_connectors_name() -> None:
    own = ConnectorDefinition(name="web-shop", tables=("a.b",))
    assert (own.slot, own.publication, own.topic_prefix) == ("cdc_web_shop", "cdc_web_shop", "web-shop")
    assert own.topic("a.b") == "web-shop.a.b"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('name = "shop"\ntables = ["orders"]', "tables.0"),
        ('name = "shop"\ntables = []', "tables"),
        ('name = "shop"\ntables = ["a.b", "a.b"]', "listed twice: a.b"),
        ('name = "shop"\ntables = ["a.b"]\nsloot = "x"', "sloot"),
        ('name = "shop"\ntables = ["a.b"]\nheartbeat_table = "a.b; DROP TABLE c"', "heartbeat_table"),
        ('name = "shop', "is no TOML"),
    ],
)
def test_a_wrong_definition_is_refused_by_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "shop.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as refused:
        load_definition(path)
    assert "shop.toml" in str(refused.value) and says in str(refused.value)


def test_two_definitions_can_not_share_a_slot(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "a"\ntables = ["s.t"]\nslot = "one"')
    (tmp_path / "b.toml").write_text('name = "b"\ntables = ["s.t"]\nslot = "one"')
    with pytest.raises(SettingsError, match="has the slot of connector a"):
        load_definitions(tmp_path)


def test_the_shops_definition_is_right() -> None:
    shop = load_definitions(Path(__file__).parents[2] / "connectors/debezium")["shop"]
    assert shop.tables == (
        "shop.customers", "shop.products", "shop.orders", "shop.order_lines", "shop.tags", "shop.product_tags", "shop.outbox",
    )  # fmt: skip


def catalog(**changes: object) -> Catalog:
    table = {"name": "shop.orders", "columns": (Column(name="id", type="bigint"),), "primary_key": ("id",), **changes}
    return Catalog.of([Table.model_validate(table), Table(name="shop.customers", columns=(), primary_key=("id",))])


def test_tables_that_can_not_be_followed_are_refused_before_anything_changes() -> None:
    check_tables(SHOP, catalog())
    with pytest.raises(UnknownTable, match=r"no table shop\.customers"):
        check_tables(SHOP, Catalog())
    with pytest.raises(NoPrimaryKey, match=r"shop\.orders has no primary key"):
        check_tables(SHOP, catalog(primary_key=()))
    for identity in ("nothing", "index"):
        with pytest.raises(NoReplicaIdentity, match=r"ALTER TABLE shop\.orders REPLICA IDENTITY DEFAULT"):
            check_tables(SHOP, catalog(replica_identity=identity))


def test_columns_that_an_update_would_null_are_warned_about() -> None:
    columns = (Column(name="prices", type="numeric(12,2)[]", toastable=True),)
    assert "shop.orders: prices would become null" in warnings(catalog(columns=columns))[0]
    assert warnings(catalog(columns=columns, replica_identity="full")) == ()


def test_a_secret_that_someone_put_in_clear_is_masked() -> None:
    assert masked("database.password", "clear") == "**********"
    assert masked("database.password", "${env:PW}") == "${env:PW}"
    assert masked("slot.name", "cdc_shop") == "cdc_shop"


def test_the_reason_of_a_trace_is_its_innermost_cause() -> None:
    trace = (
        "org.apache.kafka.connect.errors.ConnectException: An exception occurred in the change event producer.\n"
        "\tat io.debezium.pipeline.ErrorHandler.setProducerThrowable(ErrorHandler.java:67)\n"
        "Caused by: io.debezium.DebeziumException: org.postgresql.util.PSQLException: ERROR: permission denied\n"
        "\t... 5 more\n"
        "Caused by: org.postgresql.util.PSQLException: ERROR: permission denied for table orders\n"
        "\tat org.postgresql.core.v3.QueryExecutorImpl.receiveErrorResponse(QueryExecutorImpl.java:2734)\n"
    )
    assert first_useful_line(trace) == "ERROR: permission denied for table orders"
    assert first_useful_line("java.lang.NullPointerException\n\tat a.b.C") == "java.lang.NullPointerException"
