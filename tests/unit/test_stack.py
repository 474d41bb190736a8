"""The local stack without its services: the lists agree, ports and pidfiles are right, and a death is explained."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import StackError
from pipeline.settings import Endpoints, Settings
from pipeline.stack import artefacts, connect, fetch, java, processes, services, site, stack, users
from pipeline.stack.processes import Command
from pipeline.stack.services import Service
from pipeline.stack.site import Site

ROOT = Path(__file__).parents[2]
SLEEPER = [sys.executable, "-c", "import signal; print('ready', flush=True); signal.pause()"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state")


@pytest.fixture
def place(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Site:
    # As an ordinary user: what root does besides is for the tests with real services.
    monkeypatch.setattr(users, "service_user", lambda: None)
    return site.make_site(settings)


def start(place: Site, argv: list[str] = SLEEPER, name: str = "postgres") -> int:
    return processes.spawn(Command(argv, cwd=place.home), None, place.log(name), place.pidfile(name))


def fake(name: str, argv: list[str], answers: Callable[[Site], bool], **values: Any) -> Service:
    return Service(name, lambda at: Command(argv, cwd=at.home), answers, lambda _: f"http://{name}", **values)


def use(monkeypatch: pytest.MonkeyPatch, *fakes: Service) -> list[tuple[str, ...]]:
    """Only these are to be started; what was fetched is in the answer."""
    fetched: list[tuple[str, ...]] = []
    for one in fakes:
        monkeypatch.setitem(services.SERVICES, one.name, one)
    others = {name: f"http://{name}" for name in services.SERVICES if name not in {one.name for one in fakes}}
    for module in (stack, services):
        monkeypatch.setattr(module, "given", lambda _: others)
    monkeypatch.setattr(stack, "fetch", lambda _, without: fetched.append(without))
    return fetched


def test_docker_compose_has_the_same_services_and_versions() -> None:
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    assert {name: service["image"] for name, service in composed.items() if "image" in service} == artefacts.IMAGES
    assert set(artefacts.VERSIONS) == set(artefacts.IMAGES) == set(services.SERVICES) == set(Endpoints.model_fields)


def test_docker_compose_opens_ports_on_this_machine_only() -> None:
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    ports = [port for service in composed.values() for port in service.get("ports", ())]
    assert len(ports) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_docker_compose_starts_only_what_is_asked_for_by_a_profile_of_its_name() -> None:
    composed = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    asked_for = {name for name, service in services.SERVICES.items() if service.asked_for}
    assert {name: service["profiles"] for name, service in composed.items() if "profiles" in service} == {
        name: [name] for name in asked_for
    }
    command = composed["mariadb"]["command"]
    assert {"--binlog-format=ROW", "--binlog-row-image=FULL", "--gtid-strict-mode=ON", "--server-id=1"} <= set(command)


def test_the_lock_has_a_hash_of_every_file_and_no_host() -> None:
    locked = artefacts.locked()
    wanted = {*artefacts.KAFKA_ROOTS, artefacts.LOGGING, *artefacts.SINGLE_FILES}
    wanted |= {artefacts.postgres_file(flavour) for flavour in artefacts.POSTGRES_PLATFORMS.values()}
    assert wanted <= set(locked)
    assert all(len(digest) == 64 for digest in locked.values())
    assert "//" not in artefacts.LOCK.read_text("utf-8")


def test_the_broker_and_connect_use_kafka_clients_of_their_own_version() -> None:
    assert f"org.apache.kafka:kafka-clients:jar:{artefacts.KAFKA}" in artefacts.packages()["kafka"].files


class Registry:
    """Serves wrong bytes first and the right ones after that, as after a download that was killed."""

    def __init__(self, file: Path, contents: list[bytes]) -> None:
        self.file, self.contents = file, contents

    def project(self, *_: str) -> Registry:
        return self

    at_version = artifact = project

    def resolve(self) -> Path:
        if not self.file.exists():
            self.file.write_bytes(self.contents.pop(0))
        return self.file


def test_a_download_that_was_killed_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"whole")
    registry = Registry(tmp_path / "file", [b"who", b"whole"])
    assert fetch._verified(registry, "a:b:jar:1", fetch.sha256(tmp_path / "whole")).read_bytes() == b"whole"


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "file", [b"bad", b"bad"])
    with pytest.raises(StackError, match="a:b:jar:1 does not have the locked hash"):
        fetch._verified(registry, "a:b:jar:1", "0" * 64)
    assert not registry.file.exists()


def test_a_port_is_remembered_while_it_is_free(place: Site) -> None:
    port = place.port("kafka")
    assert port in site.PORTS
    assert place.free_port("kafka") == port
    assert site.open_site(place.settings).port("kafka") == port


def test_a_port_that_was_taken_meanwhile_is_changed(place: Site) -> None:
    port = place.port("kafka")
    with socket.create_server(("127.0.0.1", port)):
        assert not site.is_free(port)
        assert place.free_port("kafka") != port


def test_no_two_services_get_the_same_port(place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    offered = iter([20_001, 20_001, 20_002])
    monkeypatch.setattr("random.choice", lambda _: next(offered))
    monkeypatch.setattr(site, "is_free", lambda _: True)
    assert (place.port("kafka"), place.port("connect")) == (20_001, 20_002)


def test_a_started_process_is_known_by_its_pidfile_until_it_is_stopped(place: Site) -> None:
    pid = start(place)
    assert processes.running(place.pidfile("postgres")) == pid
    assert os.getpgid(pid) == pid != os.getpgid(0)
    processes.stop(place.pidfile("postgres"))
    assert processes.running(place.pidfile("postgres")) is None
    assert not place.pidfile("postgres").exists()


def test_a_process_that_does_not_listen_is_killed_with_its_children(place: Site) -> None:
    child = "import signal; signal.pause()"
    deaf = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True).pid, flush=True);"
        "signal.pause()"
    )
    start(place, [sys.executable, "-c", deaf])
    assert processes.wait_until(lambda: bool(processes.tail(place.log("postgres"))), 10)
    (grandchild,) = map(int, processes.tail(place.log("postgres")))
    assert processes._started(grandchild) is not None
    processes.stop(place.pidfile("postgres"), grace=0.2)
    assert processes._started(grandchild) is None


def test_a_stale_pidfile_never_kills_a_stranger(place: Site) -> None:
    stranger = start(place, name="kafka")
    record = json.loads(place.pidfile("kafka").read_text("utf-8"))
    place.pidfile("postgres").write_text(json.dumps({**record, "started": "another boot 17"}), "utf-8")
    assert processes.running(place.pidfile("postgres")) is None
    processes.stop(place.pidfile("postgres"))
    assert processes.running(place.pidfile("kafka")) == stranger
    processes.stop(place.pidfile("kafka"))


@pytest.mark.parametrize("text", ["", "{}", "12", '{"pid": "x", "started": 1}'])
def test_a_broken_pidfile_means_nothing_runs(place: Site, text: str) -> None:
    place.pidfile("postgres").write_text(text, "utf-8")
    assert processes.running(place.pidfile("postgres")) is None


def test_a_service_that_dies_is_named_with_the_end_of_its_log(
    settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = [sys.executable, "-u", "-c", "[print(f'line {i}') for i in range(30)]; raise SystemExit('no disk')"]
    use(
        monkeypatch,
        fake("elasticsearch", dying, lambda _: False),
        fake("postgres", SLEEPER, lambda at: "ready" in processes.tail(at.log("postgres"))),
    )
    with pytest.raises(StackError, match="elasticsearch ended while it started") as caught:
        stack.up(settings)
    shown = str(caught.value).splitlines()
    assert shown[-1].strip() == "no disk"
    assert [line.strip() for line in shown[2:4]] == ["line 11", "line 12"]
    assert processes.running(place.pidfile("postgres")) is None
    assert settings.endpoints() is None


def test_a_service_that_stays_silent_is_named_with_the_end_of_its_log(
    settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake("kafka", SLEEPER, lambda _: False, patience=0.5))
    with pytest.raises(StackError, match=r"kafka did not answer within [\s\S]*ready"):
        stack.up(settings)
    assert processes.running(place.pidfile("kafka")) is None


def test_a_service_that_ends_later_is_started_again_by_the_next_up(
    settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(
        monkeypatch,
        fake("kafka", SLEEPER, lambda at: "ready" in processes.tail(at.log("kafka"))),
        fake("postgres", SLEEPER, lambda at: "ready" in processes.tail(at.log("postgres"))),
    )
    first = stack.up(settings)
    pids = {one.name: one.pid for one in stack.status(settings).services}
    stack.stop_service(settings, "kafka", hard=True)
    assert not stack.status(settings).ready
    assert stack.up(settings) == first == settings.endpoints()
    again = {one.name: one.pid for one in stack.status(settings).services}
    assert again["postgres"] == pids["postgres"]
    assert again["kafka"] not in (None, pids["kafka"])
    assert sorted(stack.down(settings, erase=True)) == ["kafka", "postgres"]
    assert settings.endpoints() is None
    assert not place.root.exists()


def has_said_ready(name: str) -> Callable[[Site], bool]:
    return lambda at: "ready" in processes.tail(at.log(name))


def test_mariadb_is_started_only_where_it_is_asked_for_and_from_then_on(
    settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = fake("mariadb", SLEEPER, has_said_ready("mariadb"), asked_for=True)
    fetched = use(monkeypatch, second, fake("connect", SLEEPER, has_said_ready("connect")))
    assert stack.up(settings).mariadb is None
    assert [one.name for one in stack.status(settings).services if one.state == "up"] == ["connect"]
    plain = processes.running(place.pidfile("connect"))
    assert stack.up(settings, also=["mariadb"]).mariadb == "http://mariadb"
    assert processes.running(place.pidfile("connect")) not in (None, plain), "it finds its plugins as it starts"
    assert stack.down(settings) == ["connect", "mariadb"]
    assert stack.up(settings).mariadb == "http://mariadb"
    assert fetched == [artefacts.OF_MARIADB, (), ()]
    stack.down(settings, erase=True)
    assert stack.up(settings).mariadb is None
    stack.down(settings, erase=True)


def test_a_program_that_is_missing_is_named(settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, fake("kafka", [str(place.home / "nothing")], lambda _: False))
    with pytest.raises(StackError, match="kafka can't be started"):
        stack.up(settings)


def test_services_given_by_address_are_not_started(
    settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "kafka": {"bootstrap": "there:9092"},
        "connect": {"url": "http://there:8083"},
        "elasticsearch": {"url": "http://there:9200"},
        "source": {"dsn": "postgresql://me:secret@there/shop"},
        "redis": {"url": "redis://me:secret@there:6379/0"},
    }
    settings = Settings(state_dir=settings.state_dir, **given)  # type: ignore[arg-type]
    monkeypatch.setattr(stack, "fetch", lambda *_: None)
    endpoints = stack.up(settings)
    assert endpoints.kafka == "there:9092"
    assert endpoints.postgres == "postgresql://me:secret@there/shop"
    assert (settings.state_dir / "stack/endpoints.json").stat().st_mode & 0o777 == 0o600
    found = stack.status(settings)
    assert found.ready
    assert {one.state for one in found.services} == {"given"}
    assert "secret" not in found.model_dump_json()
    with pytest.raises(StackError, match="kafka is given by address"):
        stack.stop_service(settings, "kafka")


def test_down_finds_services_without_the_endpoints_file(
    settings: Settings, place: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(place, name="kafka")
    assert not place.endpoints.exists()
    assert stack.down(settings) == ["kafka"]
    assert stack.down(settings) == []


def test_a_stack_that_was_never_up_is_down_and_nothing_is_made(settings: Settings) -> None:
    assert [one.state for one in stack.status(settings).services] == ["down"] * 5
    assert stack.down(settings) == []
    assert stack.logs(settings, "kafka") == []
    assert not settings.state_dir.exists()


def test_an_unknown_service_is_refused(settings: Settings) -> None:
    with pytest.raises(
        StackError, match="no service cassandra: it has postgres, kafka, connect, elasticsearch, redis, mariadb"
    ):
        stack.logs(settings, "cassandra")


def test_data_goes_where_the_services_user_can_reach_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    user = users.User(os.getuid() + 1, os.getgid() + 1)
    assert not users.reachable(closed, user)
    monkeypatch.setattr(users, "service_user", lambda: user)
    monkeypatch.setattr(users, "give", lambda *_: None)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(_made(tmp_path / "open")))
    made = site.make_site(Settings(state_dir=closed))
    assert made.home == tmp_path / "open"
    assert site.open_site(Settings(state_dir=closed)).home == made.home
    assert connect.secrets_file(Settings(state_dir=closed)) == made.home / "connect" / "secrets.properties"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_secrets_are_written_so_that_properties_files_give_them_back() -> None:
    assert java.properties({"source.password": "a\\b=c#d"}) == "source.password=a\\\\b=c#d\n"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1:9092", "127.0.0.1:9092"),
        ("http://127.0.0.1:9200", "http://127.0.0.1:9200"),
        ("redis://:secret@there:6379/0", "redis://:***@there:6379/0"),
        ("http://elastic:pa%3Ass@there:9200", "http://elastic:***@there:9200"),
        ("postgresql://postgres:secret@there:5432/shop?password=secret", "postgresql://postgres:***@there:5432/shop"),
        ("host=there dbname=shop password=secret", "postgresql://there:5432/shop"),
    ],
)
def test_no_password_is_shown(address: str, shown: str) -> None:
    assert services.masked(address) == shown
