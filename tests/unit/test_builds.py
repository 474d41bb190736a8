"""Builds: the file that says what there is of a projection, and a mirror as the start of the next build."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import Aggregate, count, group
from pipeline.authoring import builds
from pipeline.authoring.builds import Build, Builds, Job, Kept
from pipeline.authoring.documents import Document
from pipeline.authoring.projection import Projection, Target
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.mirror import Mirror
from pipeline.engine.ownership import Orphans
from pipeline.errors import OperationError
from pipeline.operations.building import documents_in
from pipeline.operations.mirrors import copy_mirror, owned, usable
from pipeline.operations.status import mirror_file, status
from pipeline.ports import APPLIED
from pipeline.settings import Settings


class Note(Document, source="app.notes"):
    id: int
    text: str


class Longer(Document, source="app.notes"):
    id: int
    text: str
    title: str


class ByText(Aggregate, of=Note):
    text: str = group()
    notes: int = count()


class ByBoth(Document, source="app.notes", key=("id", "text")):
    id: int
    text: str


def projection(shape: type[Document | Aggregate] = Note, version: int = 1) -> Projection[Any]:
    return Projection(shape, (Target("memory", "notes"),), "notes", version)


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path, catalog=tmp_path / "none.json")


def job(target: Build) -> Job:
    return Job(target=target, origin="mirror", why="so", started=time.time())


def test_an_id_tells_version_and_build() -> None:
    ids = [Build(version=v, build=b).of(projection()).id for v, b in ((1, 1), (1, 2), (2, 1), (2, 11))]
    assert ids == ["notes-v1", "notes-v1.2", "notes-v2", "notes-v2.11"]


def test_a_number_is_never_used_again() -> None:
    known = Builds(highest={1: 4, 2: 1})
    assert known.next(1).build == 5 and known.next(2).build == 2 and known.next(3).build == 2


def test_a_build_is_there_once_its_mirror_is_and_while_it_is_kept() -> None:
    old, new = Build(version=1), Build(version=1, build=2)
    known = Builds(live=old, job=job(new))
    assert known.beside() == [] and known.at("copy").beside() == []
    for phase in ("load", "verify", "ready", "switch"):
        assert known.at(phase).beside() == [new]  # type: ignore[arg-type]
    assert Builds(live=new, kept=Kept(build=old, until=0)).beside() == [old]


def test_changes_of_many_processes_are_all_kept(own: Settings) -> None:
    def drop(n: int) -> None:
        for i in range(5):
            one = Build(version=n, build=i + 1)
            builds.update(own, "notes", lambda now, one=one: now.having(dropping=(*now.dropping, one)))  # type: ignore[misc]

    threads = [threading.Thread(target=drop, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(builds.read(own, "notes").dropping)) == 20


def test_one_process_at_a_time_works_on_a_rebuild(own: Settings) -> None:
    second = builds.alone(own, "notes")
    with builds.alone(own, "notes"), pytest.raises(OperationError, match="Another process"):
        second.__enter__()
    with builds.alone(own, "notes"):
        pass


def test_a_step_of_a_cancelled_rebuild_is_refused(own: Settings) -> None:
    builds.update(own, "notes", lambda now: now.having(job=job(Build(version=1, build=2))))
    builds.update(own, "notes", lambda now: now.having(job=None))
    with pytest.raises(OperationError, match="cancelled"):
        builds.update(own, "notes", lambda now: now.at("load"))


def test_a_damaged_file_is_named(own: Settings) -> None:
    builds.update(own, "notes", lambda now: now.having(live=Build(version=1)))
    builds.file(own, "notes").write_text("{")
    with pytest.raises(OperationError, match=r"notes\.json is damaged"):
        builds.read(own, "notes")


# ---- the mirror as a start ------------------------------------------------------------------------------------


def filled(own: Settings, rows: int = 5) -> Engine:
    """The live build's worker after its first load, everything written, with a watermark."""
    path = mirror_file(own, "notes-v1")
    path.parent.mkdir(parents=True, exist_ok=True)
    mirror = Mirror(str(path), lay_out(shape_of(Note)), owner="live")
    with mirror.checkpoint():
        sink = mirror.sink_id("memory:notes-v1")
    engine = Engine(mirror, Inputs({"t": "app.notes"}, "t.tx", "app"))
    events = [
        {"op": "c", "source": {"ts_ms": 1, "txId": 7}, "transaction": {"id": "7:1", "total_order": n}, "after": {"id": n, "text": "x"}}
        for n in range(1, rows + 1)
    ]  # fmt: skip
    end = {"status": "END", "id": "7:900", "ts_ms": 1, "event_count": rows, "data_collections": [{"data_collection": "app.notes", "event_count": rows}]}  # fmt: skip
    engine.receive("t/0", [(n, None, json.dumps(event).encode()) for n, event in enumerate(events)])
    engine.receive("t.tx/0", [(0, None, json.dumps(end).encode())])
    engine.catch_up({"t/0": rows, "t.tx/0": 1})
    engine.step()
    reader = engine.reader()
    while (taken := reader.take(sink, 100, 1)).keys:
        engine.settle(taken, [APPLIED] * len(taken.keys))
        reader.landed(taken)
    reader.close()
    assert engine.watermark(sink)["app"]["lsn"] == 900 and engine.dirty(sink) == 0
    return engine


def test_a_copied_mirror_owes_its_sink_every_document_and_claims_nothing_before(own: Settings) -> None:
    live = filled(own)
    for what in ("orphans", "doubted"):
        live.mirror.set(f"{what}/1", 7)
    new = Build(version=1, build=2).of(projection())
    assert usable(own, projection(), new) == ""

    copy_mirror(own, projection(), new, ["memory:notes-v1.2"])

    assert documents_in(own, new) == (5, 5)
    mirror = Mirror(str(mirror_file(own, new.id)), lay_out(shape_of(Note)), owner="new")
    engine = Engine(mirror, Inputs({"t": "app.notes"}, "t.tx", "app"))
    (sink,) = mirror.sinks().values()
    assert list(mirror.sinks()) == ["memory:notes-v1.2"]
    assert engine.watermark(sink) == {} and engine.acknowledged(sink)[0] == {}
    assert mirror.offsets() == live.mirror.offsets()
    reader = engine.reader()
    taken = reader.take(sink, 100, 1)
    engine.settle(taken, [APPLIED] * len(taken.keys))
    assert len(taken.writes) == 5 and engine.watermark(sink)["app"]["lsn"] == 900
    assert engine.ownership.orphans(sink) == Orphans() and not engine.ownership.claimed(sink, 1, {})
    reader.close()
    mirror.close()
    live.step()  # its own owner is still the live one
    with live.mirror.checkpoint():
        pass
    live.mirror.close()


def test_a_copied_mirror_counts_the_groups_of_an_aggregate_anew_and_writes_none_before(own: Settings) -> None:
    filled(own).mirror.close()
    new = projection(ByText, 2)
    assert usable(own, projection(), new) == ""

    copy_mirror(own, projection(), new, ["memory:notes-v2"])

    mirror = Mirror(str(mirror_file(own, new.id)), lay_out(shape_of(ByText)), owner="new")
    engine = Engine(mirror, Inputs({"t": "app.notes"}, "t.tx", "app"))
    (sink,) = mirror.sinks().values()
    reader = engine.reader()
    assert engine.watermark(sink) == {} and not reader.take(sink, 100, 1).writes and not engine.may_flush
    while engine.continue_fanout():
        pass
    assert engine.watermark(sink) == {}
    taken = reader.take(sink, 100, 1)
    assert [json.loads(w.document or "") for w in taken.writes] == [{"text": "x", "notes": 5}]
    engine.settle(taken, [APPLIED])
    assert engine.watermark(sink)["app"]["lsn"] == 900
    reader.close()
    mirror.close()


def test_a_mirror_whose_documents_have_another_key_is_not_enough(own: Settings) -> None:
    filled(own).mirror.close()
    assert usable(own, projection(), projection(ByBoth, 2)) == "its documents have another key"


def test_a_half_copy_is_thrown_away(own: Settings) -> None:
    live = filled(own)
    new = Build(version=1, build=2).of(projection())
    mirror_file(own, new.id).with_suffix(".part").write_bytes(b"half")
    mirror_file(own, new.id).write_bytes(b"older")
    copy_mirror(own, projection(), new, ["memory:notes-v1.2"])
    assert documents_in(own, new) == (5, 5)
    live.mirror.close()


def test_a_mirror_that_lacks_a_column_or_its_first_load_is_not_enough(own: Settings) -> None:
    assert "no mirror" in usable(own, projection(), projection(Longer, 2))
    filled(own).mirror.close()
    assert usable(own, projection(), projection(Longer, 2)) == "it lacks app.notes.title"
    path = mirror_file(own, "notes-v7")
    Mirror(str(path), lay_out(shape_of(Note)), owner="new").close()
    assert "first load" in usable(own, projection(version=7), projection(version=8))


def test_a_mirror_that_its_worker_is_just_making_has_nothing_yet(own: Settings) -> None:
    path = mirror_file(own, "notes-v1")
    path.parent.mkdir(parents=True)
    path.touch()
    assert documents_in(own, projection()) == (0, 0)
    assert status(own, [projection()]).projections[0].state == "new"


def test_a_mirror_that_a_worker_holds_is_not_taken(own: Settings) -> None:
    with owned(own, "notes-v1") as first, owned(own, "notes-v1") as second:
        assert (first, second) == (True, False)
