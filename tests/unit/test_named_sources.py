"""Several sources in the settings, and which of them a connector, a table or a projection belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from connectors.sources.catalogs import names
from pipeline import Document, elasticsearch, projection
from pipeline.cli.backfill import captured_by
from pipeline.cli.root import run
from pipeline.errors import DefinitionError, SettingsError
from pipeline.runtime.wiring import definitions_of
from pipeline.settings import Settings, load

PEOPLE = """
from pipeline import Document, elasticsearch, projection

class Person(Document, source="public.people"):
    id: int

people = projection(Person, to=elasticsearch("people"))
"""


class Person(Document, source="public.people"):
    id: int


people = projection(Person, to=elasticsearch("people"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "connectors/debezium").mkdir(parents=True)
    (tmp_path / "cdc.toml").write_text('[sources.crm]\ndsn = "postgresql://reader:hunter2@db/crm"\n')
    return tmp_path


def capture(folder: Path, name: str, *tables: str, source: str = "") -> None:
    text = f'name = "{name}"\nsource = "{source}"\ntables = {list(tables)}\n'
    (folder / "connectors/debezium" / f"{name}.toml").write_text(text)


def test_a_named_source_is_set_like_the_first_one_and_its_password_is_not_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "eu").write_text("postgresql://reader:pw@db/eu\n")
    with (folder / "cdc.toml").open("a") as file:
        file.write('[sources.eu]\ndsn = {file = "eu"}\n')
    monkeypatch.setenv("CDC_SOURCES__US__DSN__COMMAND", "echo postgresql://reader:pw@db/us")

    own = load()

    assert [own.source_dsn(name).rpartition("/")[2] for name in ("crm", "eu", "us")] == ["crm", "eu", "us"]
    assert "hunter2" not in f"{own!r}{own.shown()}"
    monkeypatch.setenv("CDC_SOURCES__CRM__DSN", "postgresql://reader:pw@other/crm")
    assert load().source_dsn("crm") == "postgresql://reader:pw@other/crm"


def test_the_sources_that_have_an_address_are_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert names(load()) == ["crm"]
    monkeypatch.setenv("CDC_SOURCE__DSN", "postgresql://reader:pw@db/shop")
    assert names(load()) == ["", "crm"]
    monkeypatch.chdir(folder / "connectors")
    assert names(Settings()) == [""]


def test_a_source_that_is_not_set_or_has_no_good_name_is_named(folder: Path) -> None:
    with pytest.raises(SettingsError, match=r"set sources\.crmm\.dsn .* CDC_SOURCES__CRMM__DSN; named sources are crm"):
        load().source_dsn("crmm")
    (folder / "cdc.toml").write_text('[sources.crm-eu]\ndsn = "postgresql://db/eu"\n')
    with pytest.raises(SettingsError, match="crm-eu"):
        load()


def test_a_table_and_a_projection_belong_to_the_source_of_their_connector(folder: Path) -> None:
    capture(folder, "first", "shop.orders")
    capture(folder, "second", "public.people", source="crm")

    assert captured_by(load(), "shop.orders").source == ""
    assert (
        captured_by(load(), "public.people").source == definitions_of(load(), people)["public.people"].source == "crm"
    )


def test_a_table_that_two_sources_have_is_not_taken_from_either(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(folder, "crm", "public.people", source="crm")
    capture(folder, "shop", "public.people")

    said = r"public\.people: captured from several sources, by crm and shop; take what is not meant out"
    with pytest.raises(DefinitionError, match=said):
        captured_by(load(), "public.people")
    with pytest.raises(DefinitionError, match=said):
        definitions_of(load(), people)
    (folder / "projections").mkdir()
    (folder / "projections/people.py").write_text(PEOPLE)
    assert run(["preview", "people"]) == 1
    assert "captured from several sources" in capsys.readouterr().err


def test_a_further_kafka_and_its_connect_have_addresses_of_their_own(folder: Path) -> None:
    (folder / "cdc.toml").write_text(
        '[kafka]\nbootstrap = "east:9092"\n[connect]\nurl = "http://east:8083"\n'
        '[kafkas.west]\nbootstrap = "west:9092"\nusername = "cdc"\npassword = "not-shown"\n[connects.west]\nurl = "http://west:8083"\n'
    )
    own = load()
    assert (own.kafka_address().bootstrap, own.kafka_address("west").bootstrap) == ("east:9092", "west:9092")
    assert (own.connect_address().url, own.connect_address("west").url) == ("http://east:8083", "http://west:8083")
    assert own.kafka_address().login is None and own.kafka_address("west").login == ("cdc", "not-shown")
    assert "not-shown" not in repr(own) + repr(own.kafka_address("west"))
    with pytest.raises(
        SettingsError,
        match=r"No address of kafka north: set kafkas\.north\.bootstrap in cdc\.toml or CDC_KAFKAS__NORTH__BOOTSTRAP",
    ):
        own.kafka_address("north")
    with pytest.raises(SettingsError, match=r"No address of connect north: set connects\.north\.url"):
        own.connect_address("north")


def test_two_connectors_of_one_source_may_both_capture_a_table(folder: Path) -> None:
    capture(folder, "one", "public.people", source="crm")
    capture(folder, "two", "public.people", source="crm")

    assert captured_by(load(), "public.people").name == definitions_of(load(), people)["public.people"].name == "one"
