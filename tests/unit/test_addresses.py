"""Secrets from files, commands and the environment; certificates; nothing of them in what is printed."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from connectors.sources import lifecycle
from pipeline import addresses
from pipeline.addresses import ConnectAddress, KafkaAddress
from pipeline.cli.root import run
from pipeline.errors import SettingsError, SourceUnavailable
from pipeline.settings import load

TLS = Path(__file__).resolve().parents[1] / "fixtures/tls"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def password() -> str:
    found = load().kafka.password
    assert found is not None
    return found.get_secret_value()


def test_a_secret_may_stand_in_a_file(folder: Path) -> None:
    (folder / "secret").write_text("s3cret\n")
    (folder / "cdc.toml").write_text('[kafka]\nusername = "cdc"\npassword = {file = "secret"}\n')

    assert password() == "s3cret"
    assert "s3cret" not in repr(load()) + repr(load().shown())


def test_a_secret_may_be_what_a_command_says(folder: Path) -> None:
    (folder / "cdc.toml").write_text(f"[kafka]\npassword = {{command = ['{sys.executable}', '-c', 'print(6 * 7)']}}\n")

    assert password() == "42"


def test_the_environment_may_name_a_file_or_a_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").write_text("from a file")
    monkeypatch.setenv("CDC_KAFKA__PASSWORD__FILE", str(folder / "secret"))
    monkeypatch.setenv("CDC_SOURCE__DSN__COMMAND", "echo postgresql://reader:pw@db/shop")

    assert password() == "from a file"
    assert load().source_dsn() == "postgresql://reader:pw@db/shop"


def test_a_file_and_a_command_are_asked_again_and_the_last_answer_holds_where_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "secret").write_text("first")
    (folder / "cdc.toml").write_text(
        '[kafka]\npassword = {file = "secret"}\n[connect]\npassword = {command = "cat secret"}\n'
    )
    own = load()
    kafka, connect = own.kafka.password, own.connect.password
    assert kafka is not None and connect is not None

    (folder / "secret").write_text("second")
    assert kafka.get_secret_value() == connect.get_secret_value() == "first", "not at every look"
    monkeypatch.setattr(addresses, "FRESH", 0.0)
    assert kafka.get_secret_value() == connect.get_secret_value() == "second"

    (folder / "secret").write_text("")
    assert kafka.get_secret_value() == connect.get_secret_value() == "second", "somebody is just writing it"
    (folder / "secret").unlink()
    assert kafka.get_secret_value() == connect.get_secret_value() == "second"
    assert "second" not in repr(own) + repr(own.shown()) + repr(kafka)


def test_a_salt_stays_the_same_while_a_process_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "salt").write_text("the-first-salt")
    (folder / "cdc.toml").write_text('[mask]\nsalt = {file = "salt"}\n')
    monkeypatch.setattr(addresses, "FRESH", 0.0)
    own = load()
    (folder / "salt").write_text("another-salt")
    assert own.salt("x").get_secret_value() == "the-first-salt"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{file = "nowhere"}', r"kafka\.password: .*nowhere can't be read \(FileNotFoundError\)"),
        ('{command = "false"}', r"kafka\.password: .*the command false ended with 1"),
        ("{command = \"sh -c 'echo hidden >&2; exit 3'\"}", r"the command sh ended with 3$"),
        ('{command = "no-such-program"}', r"no-such-program can't be run"),
        ('{command = ""}', "the command is empty"),
        ('{vault = "x"}', "has to be a text"),
    ],
)
def test_a_secret_that_is_not_there_is_named_and_not_shown(folder: Path, given: str, said: str) -> None:
    (folder / "cdc.toml").write_text(f"[kafka]\npassword = {given}\n")

    with pytest.raises(SettingsError, match=said) as wrong:
        load()
    assert "hidden" not in str(wrong.value)


def test_tls_is_spoken_where_a_certificate_or_an_authority_is_given(folder: Path) -> None:
    (folder / "cdc.toml").write_text(f'[kafka]\nbootstrap = "k:9093"\nca = "{TLS}/authority.pem"\n')
    options = load().kafka_address().options()
    assert options["security_protocol"] == "SSL"
    assert options["ssl_context"].check_hostname

    (folder / "cdc.toml").write_text('[kafka]\nbootstrap = "k:9092"\nusername = "cdc"\npassword = "s3cret"\n')
    address = load().kafka_address()
    assert address.options()["security_protocol"] == "SASL_PLAINTEXT"
    assert str(address) == "k:9092"
    assert "s3cret" not in repr(address)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('ca = "nowhere.pem"', r"kafka\.ca: there is no file nowhere\.pem"),
        (f'ca = "{__file__}"', r"No TLS with kafka\.ca .*PEM files are wanted"),
        (f'certificate = "{TLS}/authority.pem"', r"No TLS with kafka\.certificate"),
    ],
)
def test_a_file_that_is_no_certificate_is_named(folder: Path, lines: str, said: str) -> None:
    (folder / "cdc.toml").write_text(f'[kafka]\nbootstrap = "k:9093"\n{lines}\n')

    with pytest.raises(SettingsError, match=said):
        load().kafka_address()


def test_an_address_is_what_it_shows() -> None:
    assert repr(KafkaAddress("k:9092")).startswith("KafkaAddress(bootstrap='k:9092'")


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_doctor_shows_no_password_of_an_elasticsearch_that_refuses_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("CDC_ELASTICSEARCH__URL", f"http://reader:s3cret@127.0.0.1:{server.server_port}")
        assert run(["doctor", "-o", "json"]) == 4
        server.shutdown()
    said = capsys.readouterr()
    found = {finding["subject"]: finding["found"] for finding in json.loads(said.out)}
    assert "401 Unauthorized" in found["elasticsearch"]
    assert "s3cret" not in said.out + said.err


async def test_connect_that_is_away_is_named_without_a_password() -> None:
    with pytest.raises(SourceUnavailable, match=r"Kafka Connect at http://127\.0\.0\.1:9 can't be reached") as away:
        await lifecycle.statuses(connect_at=ConnectAddress("http://cdc:s3cret@127.0.0.1:9"))
    assert "s3cret" not in str(away.value)
