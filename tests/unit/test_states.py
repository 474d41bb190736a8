"""State snapshots: taken, pruned, and restored from a folder and from S3; damaged ones are said and passed over."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest
from moto.server import ThreadedMotoServer

from pipeline.engine.sql import connect, value
from pipeline.errors import OperationError, SettingsError, StatesUnavailable
from pipeline.operations.mirrors import remove
from pipeline.operations.states import CHUNK, State, States
from pipeline.operations.status import mirror_file
from pipeline.runtime.saver import Saver
from pipeline.settings import Settings, StateSettings

BUILD = "notes-v1"
CODE = "abc"


def settings(folder: Path, place: str) -> Settings:
    return Settings(state_dir=folder / "state", catalog=folder / "none.json", state=StateSettings(snapshots=place))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of moto's server."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, text in environment.items():
            patch.setenv(name, text)
        import s3fs

        s3fs.S3FileSystem().mkdir("states")
        yield "s3://states/cdc"
        server.stop()


@pytest.fixture(params=["folder", "s3"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    place = f"{request.getfixturevalue('s3')}/{tmp_path.name}" if request.param == "s3" else str(tmp_path / "there")
    return settings(tmp_path, place)


def write(own: Settings, seq: int, rows: int = 100) -> None:
    """A mirror at this sequence, as far as a state snapshot looks into it."""
    path = mirror_file(own, BUILD)
    path.parent.mkdir(parents=True, exist_ok=True)
    db = connect(str(path))
    db.execute("CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID")
    db.execute("INSERT OR REPLACE INTO meta VALUES('seq', ?), ('fingerprint', ?)", (seq, CODE))
    db.execute("CREATE TABLE IF NOT EXISTS sinks(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)")
    db.execute("INSERT OR IGNORE INTO sinks(name) VALUES('memory:notes-v1')")
    db.execute('CREATE TABLE IF NOT EXISTS "app.notes"(id INTEGER PRIMARY KEY, text)')
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        ' INSERT OR REPLACE INTO "app.notes" SELECT i, hex(randomblob(200)) FROM n',
        (rows,),
    )
    db.close()


def read(own: Settings) -> int:
    """Where the mirror stands, one that came back: so what was written since is doubted."""
    db = apsw.Connection(str(mirror_file(own, BUILD)))
    try:
        assert value(db, "SELECT value FROM meta WHERE name = 'doubted/1'")
        return int(value(db, "SELECT value FROM meta WHERE name = 'seq'"))
    finally:
        db.close()


def files(own: Settings) -> list[Path]:
    return sorted((Path(str(own.state.snapshots)) / own.project / BUILD).iterdir())


def test_a_mirror_comes_back_as_it_was_when_the_newest_was_taken(own: Settings) -> None:
    states = States(own)
    assert states.builds() == [] and states.of(BUILD) == [] and states.restore(BUILD, CODE) is None
    # more than what is packed at a time
    write(own, 1, rows=20_000)
    first = states.take(BUILD)
    path = mirror_file(own, BUILD)
    there = connect(str(path), readonly=True)
    before = list(there.execute('SELECT * FROM "app.notes"'))
    there.close()
    assert first.mirror_bytes > CHUNK < first.bytes < first.mirror_bytes
    write(own, 2, rows=1)
    second = states.take(BUILD)
    assert states.builds() == [BUILD] and states.of(BUILD) == [second, first]
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{BUILD}.db", f"{BUILD}.state.lock"]

    write(own, 3)
    remove(path)
    assert states.restore(BUILD, CODE) == second and read(own) == 2
    again = connect(str(path), readonly=True)
    assert list(again.execute('SELECT * FROM "app.notes" WHERE id > 1')) == before[1:]
    again.close()


def test_only_the_newest_are_kept_and_all_go_with_the_build(own: Settings) -> None:
    states = States(own)
    taken = []
    for seq in (1, 2, 3, 4):
        write(own, seq)
        taken.append(states.take(BUILD))
    states.prune(BUILD, 2)
    assert states.of(BUILD) == taken[:1:-1]
    states.drop(BUILD)
    states.drop(BUILD)
    assert states.of(BUILD) == [] and states.builds() == [] and states.restore(BUILD, CODE) is None


def shorten(own: Settings, state: State) -> str:
    path = files(own)[0].with_name(f"{state.name}.db.gz")
    path.write_bytes(path.read_bytes()[:-100])
    return "not those that were stored"


def lose(own: Settings, state: State) -> str:
    files(own)[0].with_name(f"{state.name}.db.gz").unlink()
    return "its file is gone"


def tear_the_manifest(own: Settings, state: State) -> str:
    path = files(own)[0].with_name(f"{state.name}.json")
    path.write_bytes(path.read_bytes()[:40])
    return "damaged manifest"


def change(own: Settings, state: State, **fields: object) -> None:
    path = files(own)[0].with_name(f"{state.name}.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def another_format(own: Settings, state: State) -> str:
    change(own, state, format=99)
    return "it has format 99"


def another_definition(own: Settings, state: State) -> str:
    change(own, state, fingerprint="other")
    return "definition is another"


@pytest.mark.parametrize("harm", [shorten, lose, tear_the_manifest, another_format, another_definition])
def test_one_that_is_not_whole_is_said_and_the_next_is_taken(
    harm: Callable[[Settings, State], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = settings(tmp_path, str(tmp_path / "there"))
    states = States(own)
    write(own, 1)
    older = states.take(BUILD)
    write(own, 2)
    newest = states.take(BUILD)
    remove(mirror_file(own, BUILD))
    says = harm(own, newest)
    with caplog.at_level(logging.ERROR, "cdc.states"):
        assert states.restore(BUILD, CODE) == older
    assert says in caplog.text and read(own) == 1
    remove(mirror_file(own, BUILD))
    harm(own, older)
    assert states.restore(BUILD, CODE) is None and not mirror_file(own, BUILD).exists()


def test_a_mirror_that_was_damaged_when_it_was_copied_is_not_restored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = settings(tmp_path, str(tmp_path / "there"))
    states = States(own)
    write(own, 1)
    older = states.take(BUILD)
    write(own, 2, rows=2000)
    path = mirror_file(own, BUILD)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 3 * 4096)
        file.write(b"\xff" * 4096)
    states.take(BUILD)
    remove(path)
    with caplog.at_level(logging.ERROR, "cdc.states"):
        assert states.restore(BUILD, CODE) == older
    assert "it is damaged" in caplog.text


def test_who_is_killed_before_the_manifest_leaves_no_snapshot_and_the_rest_goes_later(tmp_path: Path) -> None:
    own = settings(tmp_path, str(tmp_path / "there"))
    states = States(own)
    write(own, 1)
    first = states.take(BUILD)
    code = (
        "import os, signal; from pathlib import Path; from tests.unit import test_states as t\n"
        "from pipeline.operations.states import States\n"
        f"own = t.settings(Path({str(tmp_path)!r}), {str(tmp_path / 'there')!r})\n"
        "States(own, lambda point: os.kill(os.getpid(), signal.SIGKILL)).take(t.BUILD)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(files(own)) == 3 and states.of(BUILD) == [first]
    write(own, 2)
    second = states.take(BUILD)
    states.prune(BUILD, 1)
    assert [path.name for path in files(own)] == [f"{second.name}.db.gz", f"{second.name}.json"]


def test_a_storage_that_is_away_is_said_and_nothing_is_taken_for_lost(tmp_path: Path, s3: str) -> None:
    own = settings(tmp_path, "s3://no-such-bucket-here/cdc")
    write(own, 1)
    with pytest.raises(StatesUnavailable, match=r"s3://no-such-bucket-here/cdc can't be reached") as raised:
        States(own).take(BUILD)
    assert "hidden" not in str(raised.value)
    with pytest.raises(StatesUnavailable):
        States(own).restore(BUILD, CODE)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StatesUnavailable):
        States(settings(tmp_path, str(tmp_path / "file"))).take(BUILD)


def test_what_is_wrong_in_the_settings_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"set state\.snapshots"):
        States(Settings(state_dir=tmp_path))
    with pytest.raises(SettingsError, match=r"state\.snapshots, nowhere://x"):
        States(settings(tmp_path, "nowhere://x"))
    with pytest.raises(ValueError, match="snapshots"):
        settings(tmp_path, "ftp://me:secret@host/x")
    with pytest.raises(OperationError, match="There is no mirror"):
        States(settings(tmp_path, str(tmp_path / "there"))).take("other-v1")


async def test_a_worker_at_rest_is_saved_once_and_a_storage_that_is_away_is_asked_again(tmp_path: Path) -> None:
    own = settings(tmp_path, str(tmp_path / "there"))
    write(own, 1)
    now, may, stopping = [1], [False], asyncio.Event()
    saver = Saver(
        states=States(own), build=BUILD, every=0.01, keep=9, seq=lambda: now[0], may_save=lambda: may[0],
        stopping=stopping,
    )  # fmt: skip
    running = asyncio.create_task(saver.run())

    async def until(condition: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.01)

    await asyncio.sleep(0.05)
    assert saver.current_at == 0.0 and not (tmp_path / "there").exists()
    may[0] = True
    await until(lambda: saver.current_at)
    at = saver.current_at
    await until(lambda: saver.current_at > at)
    assert [state.seq for state in States(own).of(BUILD)] == [1]

    (tmp_path / "there").rename(tmp_path / "elsewhere")
    (tmp_path / "there").write_text("no folder")
    write(own, 2)
    now[0] = 2
    await until(lambda: saver.error)
    assert saver.error is not None and "can't be reached" in saver.error
    (tmp_path / "there").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "there")
    await until(lambda: saver.error is None)
    assert [state.seq for state in States(own).of(BUILD)] == [2, 1]
    stopping.set()
    await running
