"""What every sink promises: inherit SinkContract and give it a lab."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

import pytest

from connectors.sinks.parts import ONE, Parts
from pipeline.authoring.documents import Document, many
from pipeline.authoring.shape import Shape, shape_of
from pipeline.errors import Fenced, SinkError, SinkUnavailable, TargetMissing
from pipeline.ports import APPLIED, STALE, Applied, Outcome, Rejected, Sink, Stored, Throttled, Write


class Line(Document, source="shop.lines"):
    id: int
    order_id: int
    product: str | None


class Order(Document, source="shop.orders"):
    id: int
    total: Decimal | None
    note: str | None
    placed_at: datetime | None
    extra: dict[str, Any] | None
    lines: tuple[Line, ...] = many(by="order_id")


SHAPE = shape_of(Order)
SECRET = "s3cret-pa55word"


def revision(epoch: int, sequence: int) -> int:
    return epoch << 40 | sequence


def text(**members: object) -> str:
    return json.dumps({"id": 1, **members}, ensure_ascii=False)


async def put(sink: Sink, id: str, sequence: int, *, epoch: int = 1, **members: object) -> Outcome:
    (outcome,) = await sink.write([Write(id, revision(epoch, sequence), text(**members))], epoch)
    return outcome


async def delete(sink: Sink, id: str, sequence: int, *, epoch: int = 1) -> Outcome:
    (outcome,) = await sink.write([Write(id, revision(epoch, sequence), None)], epoch)
    return outcome


class Server(Protocol):
    """The server behind the sinks, and what a test does to it behind their back."""

    def open(self, projection: str, *, shape: Shape, bulk_bytes: int) -> Sink: ...

    def unreachable(self, projection: str) -> Sink:
        """A sink whose server is away, with SECRET among its settings."""
        ...

    async def lose(self, projection: str) -> None:
        """Remove the version's target."""
        ...

    async def block(self, projection: str, on: bool) -> None:
        """Refuse all writes as a full disk would."""
        ...

    async def visible(self) -> str | None:
        """Which version readers see: the `note` of the document `which`."""
        ...

    async def close(self) -> None: ...


@dataclass(slots=True)
class Lab:
    """Sinks over one server, closed at the end."""

    server: Server
    prefix: str
    opened: list[Sink] = field(default_factory=list)

    def sink(self, version: int = 1, *, shape: Shape = SHAPE, bulk_bytes: int = 2_000_000) -> Sink:
        return self.keep(self.server.open(self.projection(version), shape=shape, bulk_bytes=bulk_bytes))

    async def prepared(self, version: int = 1, *, bulk_bytes: int = 2_000_000) -> Sink:
        sink = self.sink(version, bulk_bytes=bulk_bytes)
        await sink.prepare()
        return sink

    def unreachable(self) -> Sink:
        return self.keep(self.server.unreachable(self.projection(1)))

    def projection(self, version: int) -> str:
        return f"{self.prefix}-v{version}"

    def keep(self, sink: Sink) -> Sink:
        self.opened.append(sink)
        return sink

    async def close(self) -> None:
        for version in (1, 2):
            await self.sink(version).drop()
        for sink in self.opened:
            await sink.close()
        await self.server.close()


class SinkContract:
    """The promises; a subclass overrides `server` and, where it refuses other documents, `BAD` and `UNSTORABLE`."""

    BAD = text(nonsense=1)
    UNSTORABLE: frozenset[str] = frozenset()
    """Odd strings that this kind of server can't keep: then they are rejected, with words."""

    @pytest.fixture
    def prefix(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def server(self) -> Server:
        raise NotImplementedError

    @pytest.fixture
    async def lab(self, server: Server, prefix: str) -> AsyncIterator[Lab]:
        lab = Lab(server, prefix)
        yield lab
        await lab.close()

    async def test_preparing_twice_changes_nothing(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        await sink.prepare()
        await lab.prepared()
        assert await sink.count() == 1

    async def test_what_was_written_is_read_back_with_its_revision(self, lab: Lab) -> None:
        sink = await lab.prepared()
        document = {"total": "12345678901234567890.10", "note": "é", "lines": [{"id": 2, "order_id": 1}]}
        assert await put(sink, "1", 7, **document) == APPLIED
        stored = await sink.read(["1", "2"])
        assert list(stored) == ["1"] and not await sink.ended(["1", "2"])
        assert stored["1"].revision == revision(1, 7)
        assert stored["1"].document == {"id": 1, **document}

    async def test_a_scan_gives_everything_that_is_stored_once(self, lab: Lab) -> None:
        sink = await lab.prepared()
        ids = [f"key {n}" for n in range(1203)]
        await sink.write([Write(id, 5, text(note=id)) for id in ids], 0)
        await sink.write([Write("key 7", 6, None)], 0)
        await sink.refresh()
        for documents in (True, False):
            found: dict[str, Stored] = {}
            pages = [page async for page in sink.scan(documents=documents)]
            for page in pages:
                found |= page
            assert sum(map(len, pages)) == len(found) == 1202 and "key 7" not in found
            assert found["key 8"] == Stored(5, {"id": 1, "note": "key 8"} if documents else {})

    async def test_there_is_one_outcome_for_each_write_in_their_order(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await put(sink, "b", 9)
        writes = [Write("a", 1, text()), Write("b", 1, text()), Write("c", 1, None), Write("d", 1, self.BAD)]
        outcomes = await sink.write(writes, 0)
        assert [type(o).__name__ for o in outcomes] == ["Applied", "Stale", "Applied", "Rejected"]
        assert await sink.write([], 0) == []

    @pytest.mark.edge_case(47)
    @pytest.mark.parametrize("sequence", [5, 4])
    async def test_an_equal_or_older_revision_is_stale(self, lab: Lab, sequence: int) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 5, note="new")
        assert await put(sink, "1", sequence, note="old") == STALE
        assert await delete(sink, "1", sequence) == STALE
        assert (await sink.read(["1"]))["1"].document["note"] == "new"

    @pytest.mark.edge_case(47)
    async def test_a_deleted_document_does_not_come_back_by_an_older_write(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        assert await delete(sink, "1", 3) == APPLIED
        assert await put(sink, "1", 2) == STALE
        assert not await sink.read(["1"])
        assert await put(sink, "1", 4) == APPLIED
        assert await sink.read(["1"])

    async def test_a_deleted_document_stays_deleted_for_an_older_write_of_the_same_owner(self, lab: Lab) -> None:
        sink = await lab.prepared()
        epoch = (await sink.claim("a", 0)).epoch
        assert await delete(sink, "1", 9, epoch=epoch) == APPLIED
        assert await put(sink, "1", 8, epoch=epoch) == STALE
        assert await sink.count() == 0

    async def test_deleting_what_is_not_there_is_applied(self, lab: Lab) -> None:
        sink = await lab.prepared()
        assert await delete(sink, "never", 1) == APPLIED

    @pytest.mark.edge_case(46)
    async def test_a_write_replaces_the_whole_document(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1, note="there", total="1.00")
        await put(sink, "1", 2, total=None)
        assert (await sink.read(["1"]))["1"].document == {"id": 1, "total": None}

    async def test_a_claim_raises_the_epoch_above_the_stored_and_the_asked_one(self, lab: Lab) -> None:
        sink = await lab.prepared()
        assert await sink.record() is None
        first = await sink.claim("a", 0)
        second = await sink.claim("b", 10)
        assert (first.epoch, second.epoch, second.owner) == (1, 11, "b")
        assert (await lab.sink().claim("c", 3)).epoch == 12

    async def test_a_claim_keeps_what_the_record_says(self, lab: Lab) -> None:
        sink = await lab.prepared()
        record = await sink.claim("a", 0)
        record.offsets, record.watermark = {"orders/0": 7}, {"shop": {"lsn": 9}}
        record.state = {"loading": True}
        await sink.save(record)
        taken = await lab.sink().claim("b", 0)
        assert (taken.offsets, taken.watermark, taken.state) == (
            {"orders/0": 7},
            {"shop": {"lsn": 9}},
            {"loading": True},
        )
        assert await sink.record() == taken

    async def test_an_old_owner_can_not_save(self, lab: Lab) -> None:
        old, new = await lab.prepared(), lab.sink()
        mine = await old.claim("a", 0)
        await old.save(mine)
        theirs = await new.claim("b", 0)
        with pytest.raises(Fenced, match="epoch 2 of b"):
            await old.save(mine)
        await new.save(theirs)
        await new.save(theirs)
        assert await old.record() == theirs

    async def test_another_object_of_the_same_owner_can_save(self, lab: Lab) -> None:
        sink, again = await lab.prepared(), lab.sink()
        record = await sink.claim("a", 0)
        record.offsets = {"orders/0": 1}
        await again.save(record)
        record.offsets = {"orders/0": 2}
        await sink.save(record)
        assert await again.record() == record

    async def test_the_late_write_of_an_old_owner_is_stale(self, lab: Lab) -> None:
        old, new = await lab.prepared(), lab.sink()
        before = (await old.claim("a", 0)).epoch
        after = (await new.claim("b", 0)).epoch
        await put(new, "1", 1, epoch=after, note="new")
        assert await put(old, "1", 999_999, epoch=before, note="old") == STALE
        assert (await new.read(["1"]))["1"].document["note"] == "new"

    async def test_claims_at_the_same_time_never_give_the_same_epoch(self, lab: Lab) -> None:
        await lab.prepared()
        sinks = [lab.sink() for _ in range(6)]
        records = await asyncio.gather(*(sink.claim(f"w{i}", 0) for i, sink in enumerate(sinks)))
        assert sorted(record.epoch for record in records) == [1, 2, 3, 4, 5, 6]

    @pytest.mark.edge_case(48)
    async def test_a_bad_document_is_rejected_with_words_and_the_others_are_written(self, lab: Lab) -> None:
        sink = await lab.prepared()
        documents = [text(), self.BAD, text()]
        outcomes = await sink.write([Write(str(i), 1, d) for i, d in enumerate(documents)], 0)
        assert isinstance(outcomes[1], Rejected)
        assert "nonsense" in outcomes[1].reason
        assert [outcomes[0], outcomes[2]] == [APPLIED, APPLIED]
        assert sorted(await sink.read(["0", "1", "2"])) == ["0", "2"]

    @pytest.mark.parametrize(
        "document", ["", "[1]", "not json", '{"id":1', '{"id":1,}', '{"id":NaN}', '{"note":"\ud800"}']
    )
    async def test_what_is_no_json_object_is_rejected_alone(self, lab: Lab, document: str) -> None:
        sink = await lab.prepared()
        outcomes = await sink.write([Write("1", 1, text()), Write("2", 1, document), Write("3", 1, text())], 0)
        assert [type(o) for o in outcomes] == [Applied, Rejected, Applied]

    @pytest.mark.parametrize("document", ["{}", "{ }", '{"id":1}\n', '{\n "id":\n1\n}', '{"extra":{}}'])
    async def test_white_space_and_emptiness_do_no_harm(self, lab: Lab, document: str) -> None:
        sink = await lab.prepared()
        assert await sink.write([Write("1", 1, document), Write("2", 1, text())], 0) == [APPLIED, APPLIED]
        assert (await sink.read(["1"]))["1"].document == json.loads(document)

    async def test_a_huge_document_goes_alone(self, lab: Lab) -> None:
        sink = await lab.prepared(bulk_bytes=10_000)
        writes = [Write("1", 1, text()), Write("2", 1, text(extra={"a": "x" * 3_000_000})), Write("3", 1, text())]
        assert await sink.write(writes, 0) == [APPLIED] * 3
        assert len((await sink.read(["2"]))["2"].document["extra"]["a"]) == 3_000_000

    async def test_many_writes_are_split_by_bytes_and_all_answered(self, lab: Lab) -> None:
        sink = await lab.prepared(bulk_bytes=5_000)
        bad = {17, 250}
        writes = [Write(str(i), 1, self.BAD if i in bad else text(note="n" * 200)) for i in range(300)]
        outcomes = await sink.write(writes, 0)
        assert {i for i, outcome in enumerate(outcomes) if isinstance(outcome, Rejected)} == bad
        assert await sink.count() == 298

    KEYS = (
        "a/b", "a b", 'q"u\\o', "\U0001f600é", "_under", "x" * 512, "é" * 256, "..", "n\x00l", "t\tn\n", "%2F", "a,b", "*", "?x=1#",
    )  # fmt: skip

    async def test_odd_keys_are_just_keys(self, lab: Lab) -> None:
        sink = await lab.prepared()
        notes = {key: key.encode().hex() for key in self.KEYS}
        assert set(await sink.write([Write(key, 1, text(note=note)) for key, note in notes.items()], 0)) == {APPLIED}
        stored = await sink.read(self.KEYS)
        assert {key: stored[key].document["note"] for key in self.KEYS} == notes
        await sink.refresh()
        scanned = [id async for page in sink.scan() for id in page]
        assert sorted(scanned) == sorted(self.KEYS)
        assert set(await sink.write([Write(key, 2, None) for key in self.KEYS], 0)) == {APPLIED}
        assert not await sink.read(self.KEYS)

    async def test_a_key_that_is_empty_or_too_long_is_rejected_alone(self, lab: Lab) -> None:
        sink = await lab.prepared()
        outcomes = await sink.write([Write(key, 1, text()) for key in ("1", "x" * 513, "2", "", "é" * 257, "3")], 0)
        assert [type(o) for o in outcomes] == [Applied, Rejected, Applied, Rejected, Rejected, Applied]

    @pytest.mark.parametrize("note", [r"a\u0000b", r"a\ud800b", r"\ud83d\ude00", "\U0001f600", r"\"\\\/", "\u2028"])
    async def test_odd_strings_are_stored_as_they_are(self, lab: Lab, note: str) -> None:
        sink = await lab.prepared()
        document = f'{{"id":1,"note":"{note}","extra":{{"{note}":1}}}}'
        outcome, other = await sink.write([Write("1", 1, document), Write("2", 1, text())], 0)
        assert other == APPLIED
        if note in self.UNSTORABLE:
            assert isinstance(outcome, Rejected) and outcome.reason and "1" not in await sink.read(["1"])
        else:
            assert outcome == APPLIED and (await sink.read(["1"]))["1"].document == json.loads(document)

    @pytest.mark.edge_case(51)
    async def test_the_switch_moves_all_readers_and_can_be_taken_back(self, lab: Lab) -> None:
        sinks = [await lab.prepared(version) for version in (1, 2)]
        for version, sink in enumerate(sinks, start=1):
            await put(sink, "which", 1, note=f"v{version}")
            await sink.refresh()
        assert await lab.server.visible() is None
        for sink, seen in ((sinks[0], "v1"), (sinks[1], "v2"), (sinks[0], "v1"), (sinks[0], "v1")):
            await sink.switch()
            assert await lab.server.visible() == seen

    @pytest.mark.edge_case(51)
    async def test_readers_see_exactly_one_version_at_any_moment_of_the_switch(self, lab: Lab) -> None:
        sinks = [await lab.prepared(version) for version in (1, 2)]
        for version, sink in enumerate(sinks, start=1):
            await put(sink, "which", 1, note=f"v{version}")
            await sink.refresh()
        await sinks[0].switch()

        async def switches() -> None:
            for turn in range(20):
                await sinks[turn % 2].switch()

        switching = asyncio.create_task(switches())
        seen = {await lab.server.visible()}
        while not switching.done():
            seen.add(await lab.server.visible())
            await asyncio.sleep(0)
        await switching
        assert seen <= {"v1", "v2"}

    async def test_loading_is_idempotent_and_undone(self, lab: Lab) -> None:
        sink = await lab.prepared()
        for on in (True, True, False, False):
            await sink.loading(on)
        await put(sink, "1", 1)
        assert await sink.count() == 1

    async def test_a_version_that_readers_see_is_not_loaded(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await sink.switch()
        with pytest.raises(SinkError, match="readers see"):
            await sink.loading(True)
        await sink.loading(False)

    async def test_a_lost_target_is_missed_and_not_made_anew(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1)
        await lab.server.lose(lab.projection(1))
        with pytest.raises(TargetMissing, match="cdc apply"):
            await put(sink, "1", 2)
        for attempt in (sink.read(["1"]), sink.count(), sink.refresh(), sink.switch(), sink.loading(True)):
            with pytest.raises(TargetMissing):
                await attempt

    async def test_a_dropped_version_leaves_nothing(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await sink.claim("a", 0)
        await sink.drop()
        await sink.drop()
        assert await sink.record() is None
        with pytest.raises(TargetMissing):
            await sink.count()

    async def test_a_sink_that_is_away_says_so_in_time_and_without_its_password(self, lab: Lab) -> None:
        sink = lab.unreachable()
        attempts: Sequence[Any] = (
            lambda: sink.write([Write("1", 1, text())], 0),
            lambda: sink.read(["1"]),
            lambda: sink.prepare(),
            lambda: sink.record(),
            lambda: sink.drop(),
        )
        for attempt in attempts:
            start = time.monotonic()
            with pytest.raises(SinkUnavailable) as caught:
                await attempt()
            assert time.monotonic() - start < 5
            assert SECRET not in str(caught.value)
        lab.opened.remove(sink)
        await sink.close()

    @pytest.mark.edge_case(49)
    async def test_a_full_disk_throttles_until_there_is_room(self, lab: Lab) -> None:
        sink = await lab.prepared()
        await lab.server.block(lab.projection(1), True)
        outcomes = await sink.write([Write("1", 1, text()), Write("2", 1, None)], 0)
        assert all(isinstance(o, Throttled) and o.reason and o.retry_after > 0 for o in outcomes)
        await lab.server.block(lab.projection(1), False)
        assert await put(sink, "1", 1) == APPLIED


class ServerOfParts(Server, Protocol):
    """One whose sinks several workers of a projection may write to."""

    def open(self, projection: str, *, shape: Shape, bulk_bytes: int, parts: Parts = ONE) -> Sink: ...


class PartsContract(SinkContract):
    """What sinks promise beyond that to workers of which each writes the documents of its partitions."""

    @pytest.fixture
    async def parts(self, lab: Lab, server: ServerOfParts) -> tuple[Sink, Sink, Sink]:
        """Those of two partitions, and that of whoever reads both."""
        found = self._of(lab, server, "@0"), self._of(lab, server, "@1"), self._of(lab, server, None)
        for sink in found:
            await sink.prepare()
        return found

    def _of(self, lab: Lab, server: ServerOfParts, own: str | None) -> Sink:
        parts = Parts(("@0", "@1"), own)
        return lab.keep(server.open(lab.projection(1), shape=SHAPE, bulk_bytes=2_000_000, parts=parts))

    async def test_each_partition_has_its_own_record_and_all_say_no_more_than_each(
        self, parts: tuple[Sink, Sink, Sink]
    ) -> None:
        one, two, both = parts
        assert (await one.record(), await both.record()) == (None, None)
        record = await one.claim("a", 0)
        record.offsets, record.watermark = {"exchange/0": 7}, {"shop": {"lsn": 9}}
        await one.save(record)
        half = await both.record()
        assert half is not None
        assert (half.offsets, half.watermark) == ({"exchange/0": 7}, {}), "the other has said nothing yet"
        other = await two.claim("b", 0)
        assert other.offsets == {}
        other.offsets, other.watermark = {"exchange/1": 5}, {"shop": {"lsn": 8}}
        await two.save(other)
        whole = await both.record()
        assert whole is not None
        assert (whole.offsets, whole.watermark) == ({"exchange/0": 7, "exchange/1": 5}, {"shop": {"lsn": 8}})
        assert await one.record() == record

    async def test_a_partitions_new_owner_puts_out_its_old_one_and_nobody_else(
        self, lab: Lab, server: ServerOfParts, parts: tuple[Sink, Sink, Sink]
    ) -> None:
        one, two, both = parts
        mine, theirs = await one.claim("a", 0), await two.claim("b", 0)
        again = self._of(lab, server, "@1")
        newer = await again.claim("c", 0)
        assert newer.epoch > theirs.epoch
        await one.save(mine)
        assert await put(one, "1", 1, epoch=mine.epoch) == APPLIED
        with pytest.raises(Fenced, match="of c"):
            await two.save(theirs)
        assert await put(again, "2", 1, epoch=newer.epoch, note="new") == APPLIED
        assert await put(two, "2", 9, epoch=theirs.epoch, note="old") == STALE
        assert {id: stored.document.get("note") for id, stored in (await both.read(["1", "2"])).items()} == {
            "1": None,
            "2": "new",
        }

    async def test_what_a_partition_deleted_stays_deleted_whoever_claims_another(
        self, parts: tuple[Sink, Sink, Sink]
    ) -> None:
        one, two, both = parts
        await one.claim("a", 0)
        for epoch in (5, 9):
            mine = await two.claim("b", epoch)
            assert await delete(two, "1", 2, epoch=mine.epoch) == APPLIED
            await one.claim("a", 20 * epoch)
            assert await put(two, "1", 1, epoch=mine.epoch) == STALE
        assert await both.count() == 0

    async def test_a_dropped_version_leaves_no_partitions_record(
        self, parts: tuple[Sink, Sink, Sink], lab: Lab
    ) -> None:
        one, two, both = parts
        await one.claim("a", 0)
        await two.claim("b", 0)
        await lab.sink().drop()  # who knows of no partitions
        assert [await sink.record() for sink in (one, two, both)] == [None] * 3
