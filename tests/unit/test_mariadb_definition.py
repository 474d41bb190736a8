"""A connector of kind MariaDB: its definition, what Connect gets of it, and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from connectors.sources.debezium import ConnectorDefinition, load_definition, load_definitions
from connectors.sources.grants import grants
from pipeline.addresses import MariadbAddress
from pipeline.errors import SettingsError
from pipeline.settings import Endpoints, Settings

DSN = "mariadb://root:p%40ss@there:3307/crm"
GIVEN: dict[str, Any] = {
    "name": "crm", "kind": "mariadb", "source": "mariadb", "tables": ["crm.people", "sales.orders"],
    "database": {"user": "debezium", "password_env": "CRM_PASSWORD"},
}  # fmt: skip


def definition(**more: Any) -> ConnectorDefinition:
    return ConnectorDefinition.model_validate(GIVEN | more)


def test_the_connector_is_told_where_the_source_is_and_to_spell_values_exactly() -> None:
    config = definition().config(DSN, kafka="kafka:9092")
    assert config["connector.class"].endswith("MariaDbConnector")
    assert (config["database.hostname"], config["database.port"], config["database.user"]) == (
        "there",
        "3307",
        "debezium",
    )
    assert config["database.password"] == "${env:CRM_PASSWORD}"
    assert config["database.include.list"] == "cdc,crm,sales"
    assert config["table.include.list"] == r"crm\.people,sales\.orders,cdc\.heartbeat"
    assert config["schema.history.internal.kafka.bootstrap.servers"] == "kafka:9092"
    assert config["schema.history.internal.kafka.topic"] == "crm.schema-history"
    assert config["bigint.unsigned.handling.mode"] == "precise" and config["enable.time.adjuster"] == "false"
    assert config["provide.transaction.metadata"] == "true" and config["skipped.operations"] == "none"
    assert config["internal.schema.history.internal.ddl.filter"].endswith(
        r",(?is)(?!.*(?<![\w$])(?:\Qpeople\E|\Qorders\E|\Qheartbeat\E)(?![\w$])).*"
    ), "a statement that names none of its tables is nothing to it"
    assert not any(key.startswith(("slot.", "publication.", "signal.", "plugin.")) for key in config)
    assert "p@ss" not in str(config) and "p%40ss" not in str(config)


def test_it_registers_by_a_number_of_its_own(tmp_path: Path) -> None:
    numbers = {definition(name=name).config(DSN, kafka="k")["database.server.id"] for name in ("a", "b", "c")}
    assert len(numbers) == 3
    for name in ("a", "b"):
        (tmp_path / f"{name}.toml").write_text(
            f'name = "{name}"\nkind = "mariadb"\ntables = ["x.{name}"]\nserver_id = 7\n'
        )
    with pytest.raises(SettingsError, match="has the server_id of connector a"):
        load_definitions(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('kind = "mariadb"\nslot = "mine"', "slot: a connector of kind mariadb has none"),
        ('kind = "mariadb"\nsignal_table = "a.b"', "signal_table: a connector of kind mariadb has none"),
        ('kind = "postgres"\nserver_id = 7', "server_id: a connector of kind postgres has none"),
        ('kind = "mariadb"\n[extra]\n"bigint.unsigned.handling.mode" = "long"', "must stay 'precise'"),
        ('kind = "mariadb"\n[extra]\n"provide.transaction.metadata" = false', "must stay 'true'"),
        ('kind = "oracle"', "kind"),
    ],
)
def test_what_would_do_nothing_or_harm_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "crm.toml").write_text(f'name = "crm"\ntables = ["crm.people"]\n{text}\n')
    with pytest.raises(SettingsError, match=said):
        load_definition(tmp_path / "crm.toml")


def test_a_source_of_another_kind_is_named_without_its_password() -> None:
    with pytest.raises(SettingsError, match="crm is of kind mariadb, and the dsn of its source is not"):
        definition().dsn("postgresql://me:secret@there/crm")
    other = ConnectorDefinition.model_validate({"name": "shop", "tables": ["shop.orders"]})
    with pytest.raises(SettingsError, match="shop is of kind postgres") as said:
        other.dsn(DSN)
    assert "p%40ss" not in str(said.value)
    with pytest.raises(SettingsError, match=r"history of its tables in Kafka: set kafka\.bootstrap"):
        definition().config(DSN)


def test_an_address_is_read_and_written_and_shown_without_its_password() -> None:
    found = MariadbAddress.of(DSN)
    assert (found.host, found.port, found.database, found.user) == ("there", 3307, "crm", "root")
    assert found.password.get_secret_value() == "p@ss"
    assert MariadbAddress.of(found.uri) == found
    assert str(found) == "crm at there:3307" and "p@ss" not in repr(found)
    for wrong in ("mariadb://there", "mariadb://there:x/db", "mysql://there/db", "mariadb://there/db?ssl=1"):
        with pytest.raises(SettingsError, match="mariadb://user:password@host:3306/database"):
            MariadbAddress.of(wrong)


def test_the_local_stacks_mariadb_is_the_source_of_its_name(tmp_path: Path) -> None:
    up = Endpoints(kafka="k", connect="c", elasticsearch="e", postgres="p", redis="r", mariadb=DSN)
    (tmp_path / "stack").mkdir()
    (tmp_path / "stack/endpoints.json").write_text(up.model_dump_json())
    settings = Settings(state_dir=tmp_path)
    assert settings.source_dsn("mariadb") == DSN and settings.has_source("mariadb")
    assert not settings.has_source("other")


def test_the_user_gets_what_it_needs_and_no_more() -> None:
    text = grants(definition(), "o'brien", "")
    assert "CREATE USER IF NOT EXISTS 'o\\'brien'@'%';" in text
    assert "GRANT SELECT ON `sales`.`orders` TO 'o\\'brien'@'%';" in text
    assert "ALL PRIVILEGES" not in text
