"""Readers find the same in every sink, whatever values documents have; against real servers."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest

from connectors.sinks import open_reader, open_sink
from pipeline.authoring.documents import Document, Text, many, one
from pipeline.authoring.leaves import leaves
from pipeline.authoring.projection import Projection, Target, elasticsearch, postgres
from pipeline.authoring.shape import shape_of
from pipeline.errors import QueryRefused, TargetMissing
from pipeline.ports import APPLIED, Group, Reader, Write
from pipeline.settings import ElasticsearchSettings, Endpoints, PostgresSettings, Settings
from pipeline.web.asking import LISTING, asked, measured

pytestmark = pytest.mark.stack


class Maker(Document, source="shop.makers"):
    id: int
    name: str


class Part(Document, source="shop.parts", key=("thing_id", "n")):
    n: int
    price: Decimal | None
    name: str | None
    about: Annotated[str | None, Text()]
    made: date | None
    marks: tuple[str, ...] | None
    maker: Maker | None = one(via="maker_id")


class Thing(Document, source="shop.things"):
    id: int
    amount: Decimal | None
    ratio: float | None
    flag: bool | None
    note: str | None
    essay: Annotated[str | None, Text()]
    at: datetime | None
    day: date | None
    clock: time | None
    uid: UUID | None
    extra: dict[str, Any] | None
    tags: tuple[str, ...] | None
    numbers: tuple[int, ...] | None
    parts: tuple[Part, ...] = many(by="thing_id")


SHAPE = shape_of(Thing)
NAMES = [field.name for field in SHAPE.fields]
ONE, TWO = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "b0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
DOCUMENTS = {
    1: f"""{{"id":1,"amount":"1.10","ratio":0.5,"flag":true,"note":"a","essay":"Quick brown","at":"2024-01-01T00:05:00.123456Z",
        "day":"2024-02-29","clock":"04:05:06","uid":"{ONE}","extra":{{"n":1e400,"m":9007199254740993}},"tags":["x","y"],"numbers":[1,2],"parts":[
        {{"n":1,"price":"2.50","name":"bolt","about":"purple","made":"2024-02-29","marks":["p","q"],"maker":{{"id":7,"name":"acme"}}}},
        {{"n":2,"price":null,"name":null,"about":null,"made":null,"marks":null,"maker":null}}]}}""",
    2: f"""{{"id":2,"amount":"-5","ratio":2.0,"flag":false,"note":"b,c","essay":"brown fox","at":"2024-06-01T00:00:00Z",
        "day":"2024-03-01","clock":"23:00:00","uid":"{TWO}","extra":{{}},"tags":["y"],"numbers":[],"parts":[
        {{"n":1,"price":"-3","name":"b,c","about":"yellow","made":"2025-01-01","marks":[],"maker":{{"id":8,"name":"acme"}}}}]}}""",
    3: json.dumps(dict.fromkeys(NAMES) | {"id": 3}),
    4: """{"id":4,"amount":"NaN","ratio":"Infinity","flag":null,"note":"","essay":"","at":"infinity","day":"-infinity","clock":null,
        "uid":null,"extra":null,"tags":[],"numbers":[9223372036854775807],"parts":[
        {"n":3,"price":"NaN","name":"","about":"","made":"infinity","marks":["q"],"maker":null}]}""",
    5: """{"id":5,"amount":"100000000000000000000.5","ratio":-1e300,"flag":null,"note":"é\\u2028'\\"%s","essay":null,"at":null,
        "day":"+10000-01-01","clock":null,"uid":null,"extra":null,"tags":["z"],"numbers":null,"parts":[]}""",
}  # fmt: skip
FOUND: list[tuple[list[tuple[str, str]], set[int]]] = [
    ([], {1, 2, 3, 4, 5}),
    ([("id.gt", "1"), ("id.lt", "5")], {2, 3, 4}),
    ([("amount", "1.1")], {1}),
    ([("amount.gt", "0")], {1, 5}),
    ([("amount.lte", "-5.0")], {2}),
    ([("ratio.lt", "1")], {1, 5}),
    ([("flag", "true")], {1}),
    ([("flag.in", "true,false")], {1, 2}),
    ([("note", "b,c")], {2}),
    ([("note.in", "a,zz")], {1}),
    ([("note", "a"), ("note", "")], {1, 4}),
    ([("note", "é\u2028'\"%s")], {5}),
    ([("note.gte", "b")], {2, 5}),
    ([("note.null", "true")], {3}),
    ([("q", "BROWN")], {1, 2}),
    ([("q", "fox brown")], {2}),
    ([("at", "2024-01-01T00:05:00.123456Z")], {1}),
    ([("at.lt", "2024-03-01")], {1}),
    ([("at.gte", "2024-05-31T22:00:00-02:00")], {2}),
    ([("day", "2024-02-29")], {1}),
    ([("day.gt", "2024-02-29")], {2}),
    ([("clock.gt", "12:00:00")], {2}),
    ([("uid", ONE.upper())], {1}),
    ([("tags", "y")], {1, 2}),
    ([("tags.in", "x,z")], {1, 5}),
    ([("tags.null", "true")], {3, 4}),
    ([("numbers.gte", "2")], {1, 4}),
    ([("numbers", "9223372036854775807")], {4}),
    ([("numbers.null", "false")], {1, 4}),
    ([("parts.n", "1")], {1, 2}),
    ([("parts.n.gt", "1")], {1, 4}),
    ([("parts.price", "2.5")], {1}),
    ([("parts.price.gt", "-10")], {1, 2}),
    ([("parts.name.in", "bolt,zz")], {1}),
    ([("parts.name", "b,c"), ("parts.name", "")], {2, 4}),
    ([("parts.name.gte", "b,d")], {1}),
    ([("parts.name.null", "true")], {3, 5}),
    ([("parts.maker.id.null", "false")], {1, 2}),
    ([("parts.made.lt", "2024-12-31")], {1}),
    ([("parts.made.gt", "2024-12-31")], {2}),
    ([("parts.marks", "q")], {1, 4}),
    ([("parts.marks.gt", "p")], {1, 4}),
    ([("parts.marks.null", "true")], {2, 3, 5}),
    ([("parts.maker.id", "7")], {1}),
    ([("parts.maker.id.gte", "7")], {1, 2}),
    ([("parts.maker.name", "acme")], {1, 2}),
    ([("parts.n", "1"), ("tags", "x")], {1}),
    ([("q", "Purple")], {1}),
    ([("q", "yellow brown")], {2}),
]


def exact(text: str | bytes) -> Any:
    return json.loads(text, parse_float=Decimal, parse_int=Decimal)


@dataclass
class Place:
    """A target with the documents in it."""

    reader: Reader
    version: str
    documents: set[int]


def _settings(stack: Endpoints, database: str) -> Settings:
    return Settings(
        elasticsearch=ElasticsearchSettings(url=stack.elasticsearch),
        postgres=PostgresSettings.model_validate({"dsn": database}),
    )


@pytest.fixture(params=["elasticsearch", "postgres", "columns", "children", "both"])
async def place(request: pytest.FixtureRequest, stack: Endpoints, database: str) -> AsyncIterator[Place]:
    name = f"readers-{uuid.uuid4().hex[:8]}"
    targets: dict[str, Target] = {
        "elasticsearch": elasticsearch(name, replicas=0),
        "postgres": postgres(f"r.{name}", indexes=["note", "tags"]),
        "columns": postgres(f"r.{name}", columns=True),
        "children": postgres(
            f"r.{name}", children=["tags", "numbers", "parts"], indexes=["tags", "parts.name", "parts.maker.id"]
        ),
        "both": postgres(f"r.{name}", columns=True, children=["parts", "tags"]),
    }
    target = targets[request.param]
    settings = _settings(stack, database)
    sink = open_sink(target, Projection(Thing, (target,), name), SHAPE, settings)
    reader = open_reader(target, SHAPE, settings)
    assert reader is not None
    with pytest.raises(TargetMissing):
        await reader.seen()
    try:
        await sink.prepare()
        await sink.claim("me", 0)
        # what a typed column can't hold is not there
        wanted = {1, 2, 3, 4} if "columns" in target.options else set(DOCUMENTS)
        writes = [Write(str(n), 1 << 40 | n, " ".join(DOCUMENTS[n].split("\n"))) for n in sorted(wanted)]
        assert set(await sink.write([*writes, Write("9", 1 << 40, None)], 1)) == {APPLIED}
        await sink.switch()
        await sink.refresh()
        yield Place(reader, await reader.seen(), wanted)
    finally:
        await sink.drop()
        await sink.close()
        await reader.close()


async def test_what_was_written_is_read_as_it_was(place: Place) -> None:
    found = await place.reader.get(place.version, ["1", "4", "9", "none"])
    assert {id: (stored.revision, exact(stored.document)) for id, stored in found.items()} == {
        str(n): (1 << 40 | n, exact(DOCUMENTS[n])) for n in (1, 4)
    }
    record = await place.reader.record(place.version)
    assert record is not None and record.owner == "me"


async def test_filters_mean_the_same_everywhere(place: Place) -> None:
    known = leaves(SHAPE)
    for parameters, wanted in FOUND:
        query = asked(known, parameters, LISTING).query
        found = {json.loads(one)["id"] for one in (await place.reader.search(place.version, query)).documents}
        assert (parameters, found) == (parameters, wanted & place.documents)
        assert await place.reader.count(place.version, query) == len(found)


async def test_every_order_has_every_document_once_a_page_at_a_time(place: Place) -> None:
    known = leaves(SHAPE)
    for name, leaf in known.items():
        if not leaf.compared or leaf.several:
            continue
        for sort in (name, f"-{name}"):
            query, seen = asked(known, [("sort", sort), ("limit", "1")], LISTING).query, []
            while True:
                page = await place.reader.search(place.version, query)
                seen += [json.loads(one) for one in page.documents]
                if page.next is None:
                    break
                query = replace(query, after=page.next)
            assert (sort, sorted(one["id"] for one in seen)) == (sort, sorted(place.documents))
            if name in ("id", "note", "flag", "uid", "clock"):
                given = [one[name] for one in seen]
                plain = [value for value in given if value is not None]
                assert given == sorted(plain, reverse=sort != name) + [None] * (len(given) - len(plain))


async def test_values_are_counted(place: Place) -> None:
    known, everything = leaves(SHAPE), asked(leaves(SHAPE), [], LISTING).query

    async def counted(name: str) -> dict[Any, int]:
        return {one.value: one.count for one in await place.reader.groups(place.version, everything, known[name], 10)}

    five = 1 if 5 in place.documents else 0
    assert await counted("flag") == {True: 1, False: 1, None: 2 + five}
    assert await counted("tags") == {"y": 2, "x": 1, None: 2, **({"z": 1} if five else {})}
    assert await counted("uid") == {ONE: 1, TWO: 1, None: 2 + five}
    assert (await counted("day"))["2024-02-29"] == 1
    assert (await counted("numbers"))[2] == 1
    assert await counted("parts.maker.name") == {"acme": 2, None: 2 + five}
    assert await counted("parts.marks") == {"q": 2, "p": 1, None: 2 + five}
    assert await counted("parts.n") == {1: 2, 2: 1, 3: 1, None: 1 + five}


async def test_values_are_added_and_compared(place: Place) -> None:
    known, one_to_four = leaves(SHAPE), asked(leaves(SHAPE), [("id.lt", "5")], LISTING).query
    names = "sum=id,amount,ratio&avg=id&min=amount,at,day&max=id,at,day"
    measures = measured(known, [tuple(part.split("=")) for part in names.split("&")])

    def told(group: Group) -> list[Any]:
        return [float(r) if m.leaf.kind == "decimal" and r else r for m, r in zip(measures, group.results, strict=True)]

    (every,) = await place.reader.groups(place.version, one_to_four, None, 10, measures)
    assert every.count == 4
    # NaN, Infinity, infinity and -infinity, of the fourth, are left out
    micros = "2024-01-01T00:05:00.123000Z" if place.reader.name.startswith("elastic") else "2024-01-01T00:05:00.123456Z"
    june, days = "2024-06-01T00:00:00Z", ("2024-02-29", "2024-03-01")
    assert told(every) == [10, -3.9, 2.5, 2.5, -5.0, micros, days[0], 4, june, days[1]]
    by = {one.value: one for one in await place.reader.groups(place.version, one_to_four, known["flag"], 10, measures)}
    assert told(by[True]) == [1, 1.1, 0.5, 1.0, 1.1, micros, days[0], 1, micros, days[0]]
    assert (by[None].count, told(by[None])) == (2, [7, None, None, 3.5, None, None, None, 4, None, None])


async def test_a_place_that_is_no_place_is_refused(place: Place) -> None:
    query = asked(leaves(SHAPE), [("sort", "at")], LISTING).query
    for after in ((), ("x",), ("x", "y"), (None, None, None), ("2024", "1", "2")):
        with pytest.raises(QueryRefused):
            await place.reader.search(place.version, replace(query, after=after))
    with pytest.raises(TargetMissing):
        await place.reader.get(f"{place.version}9", ["1"])


@pytest.mark.parametrize("kind", [elasticsearch, postgres])
async def test_of_a_version_that_several_workers_write_a_reader_is_told_what_all_have(
    stack: Endpoints, database: str, kind: Callable[[str], Target]
) -> None:
    settings, name = _settings(stack, database), f"readers-{uuid.uuid4().hex[:8]}"
    target = kind(name)
    projection = Projection(Thing, (target,), name, workers=2)
    sinks = [open_sink(target, projection, SHAPE, settings, part) for part in projection.parts]
    reader = open_reader(target, SHAPE, settings)
    assert reader is not None
    try:
        for sink, lsn in zip(sinks, (9, 7), strict=True):
            await sink.prepare()
            record = await sink.claim(f"owner of {lsn}", 0)
            record.watermark = {"shop": {"lsn": lsn}}
            await sink.save(record)
        await sinks[0].switch()
        found = await reader.record(await reader.seen())
        assert found is not None
        assert found.watermark == {"shop": {"lsn": 7}}
        await sinks[1].drop()
        assert await reader.record(reader.version(projection.id)) is None
    finally:
        await sinks[0].drop()
        for one in (*sinks, reader):
            await one.close()
