"""Odd keys, rows in any order, and a parent of very many, on the real stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from pipeline.demo import truth
from pipeline.engine.assemble import document_id
from tests.support.project import Project, until

pytestmark = pytest.mark.stack

SCHEMA = """
CREATE SCHEMA odd;
CREATE TABLE odd.owners(code char(4) PRIMARY KEY, title text);
CREATE TABLE odd.things(
    place text, code text, number bigint, owner char(4), note text, gone boolean NOT NULL DEFAULT false,
    PRIMARY KEY(code, place));
CREATE TABLE odd.parts(id uuid PRIMARY KEY, place text, code text, label text);
CREATE TABLE odd.wide(name text PRIMARY KEY, n integer);
"""
TABLES = ("odd.owners", "odd.things", "odd.parts", "odd.wide")
THINGS = '''
"""Things by a key of two texts, with parts that nothing constrains."""
from uuid import UUID
from pipeline import Document, elasticsearch, hidden, many, one, projection

class Owner(Document, source="odd.owners", key="code"):
    code: str
    title: str | None

class Part(Document, source="odd.parts"):
    id: UUID
    label: str | None

class Thing(Document, source="odd.things", key=("code", "place")):
    code: str
    place: str
    number: int | None
    gone: bool = hidden()
    owner: Owner | None = one(via="owner")
    parts: tuple[Part, ...] = many(by=("code", "place"))

    def keep(self) -> bool:
        return not self.gone

things = projection(Thing, to=elasticsearch("ALIAS-things"))
'''
WIDE = '''
"""Keys of any length."""
from pipeline import Document, elasticsearch, projection

class Wide(Document, source="odd.wide", key="name"):
    name: str
    n: int | None

wide = projection(Wide, to=elasticsearch("ALIAS-wide"))
'''
UUIDS = [f"00000000-0000-4000-8000-00000000000{n}" for n in range(10)]


@pytest.fixture(scope="module")
def odd(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_odd")
    project.create_with(SCHEMA, TABLES, {"things": THINGS, "wide": WIDE})
    for name in ("things", "wide"):
        project.start_worker(f"{project.name}-{name}")
    for name in ("things", "wide"):
        project.wait_for(truth.position(project.dsn), name=name)
    yield project


def thing(odd: Project, code: str, place: str) -> dict[str, Any] | None:
    return odd.document(quote(document_id((code, place)), safe=""), "things")


def stored(document: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if document is None else {k: v for k, v in document.items() if not k.startswith("_")}


@pytest.mark.edge_case(29)
def test_the_parts_of_a_composite_key_are_never_taken_for_each_other(odd: Project) -> None:
    keys = [
        ("a:b", "c"),
        ("a", "b:c"),
        ('a","b', "c"),
        ("a", 'b","c'),
        ("", ""),
        (" ", ""),
        ("é/ü?#", "🎈 %2F"),
        ("a\\", "b"),
    ]
    position = odd.sql(
        *(
            f"INSERT INTO odd.things(code, place, number) VALUES(E'{code.replace(chr(92), chr(92) * 2)}',"
            f" E'{place.replace(chr(92), chr(92) * 2)}', {n})"
            for n, (code, place) in enumerate(keys)
        )
    )
    odd.wait_for(position, name="things")
    found = [stored(thing(odd, *key)) for key in keys]
    assert [f and (f["code"], f["place"], f["number"]) for f in found] == [(*key, n) for n, key in enumerate(keys)]


@pytest.mark.edge_case(28)
def test_a_padded_key_finds_its_children(odd: Project) -> None:
    position = odd.sql(
        "INSERT INTO odd.owners VALUES('ab', 'Ada')",
        "INSERT INTO odd.things(code, place, owner) VALUES('pad', 'x', 'ab')",
    )
    odd.wait_for(position, name="things")
    found = thing(odd, "pad", "x")
    assert found is not None and found["owner"]["title"] == "Ada"


@pytest.mark.edge_case(29)
def test_keys_beyond_the_longest_id_are_hashed_and_stay_apart(odd: Project) -> None:
    long = ["x" * 600 + end for end in ("a", "b")] + ["ü" * 300, "short"]
    position = odd.sql(*(f"INSERT INTO odd.wide VALUES('{name}', {n})" for n, name in enumerate(long)))
    odd.wait_for(position, name="wide")
    ids = [document_id((name,)) for name in long]
    assert all(len(id.encode()) <= 512 for id in ids)
    assert [(odd.document(quote(id, safe=""), "wide") or {}).get("n") for id in ids] == [0, 1, 2, 3]
    odd.wait_for(odd.sql(f"DELETE FROM odd.wide WHERE name = '{long[0]}'"), name="wide")
    assert [odd.document(quote(id, safe=""), "wide") is None for id in ids] == [True, False, False, False]


@pytest.mark.edge_case(40)
def test_a_parent_that_comes_late_completes_the_document(odd: Project) -> None:
    odd.wait_for(
        odd.sql(
            f"INSERT INTO odd.parts VALUES('{UUIDS[1]}', 'late', 'late', 'first')",
            f"INSERT INTO odd.parts VALUES('{UUIDS[2]}', 'late', 'late', 'second')",
        ),
        name="things",
    )
    assert thing(odd, "late", "late") is None
    odd.wait_for(odd.sql("INSERT INTO odd.things(code, place, owner) VALUES('late', 'late', 'zz')"), name="things")
    found = thing(odd, "late", "late")
    assert found is not None and found["owner"] is None
    assert [part["label"] for part in found["parts"]] == ["first", "second"]
    odd.wait_for(odd.sql("INSERT INTO odd.owners VALUES('zz', 'Late owner')"), name="things")
    found = thing(odd, "late", "late")
    assert found is not None and found["owner"]["title"] == "Late owner"


@pytest.mark.edge_case(43)
def test_changes_of_children_do_not_bring_a_deleted_parent_back(odd: Project) -> None:
    odd.wait_for(
        odd.sql(
            "INSERT INTO odd.things(code, place) VALUES('dead', 'x')",
            f"INSERT INTO odd.parts VALUES('{UUIDS[3]}', 'x', 'dead', 'orphan')",
        ),
        name="things",
    )
    odd.wait_for(odd.sql("DELETE FROM odd.things WHERE code = 'dead'"), name="things")
    odd.wait_for(odd.sql(f"UPDATE odd.parts SET label = 'again' WHERE id = '{UUIDS[3]}'"), name="things")
    assert thing(odd, "dead", "x") is None
    odd.wait_for(odd.sql("INSERT INTO odd.things(code, place) VALUES('dead', 'x')"), name="things")
    found = thing(odd, "dead", "x")
    assert found is not None and [part["label"] for part in found["parts"]] == ["again"]


@pytest.mark.edge_case(43)
def test_a_soft_deleted_row_leaves_and_returns_with_what_changed_meanwhile(odd: Project) -> None:
    odd.wait_for(odd.sql("INSERT INTO odd.things(code, place) VALUES('soft', 'x')"), name="things")
    odd.wait_for(odd.sql("UPDATE odd.things SET gone = true WHERE code = 'soft'"), name="things")
    assert thing(odd, "soft", "x") is None
    odd.wait_for(odd.sql(f"INSERT INTO odd.parts VALUES('{UUIDS[4]}', 'x', 'soft', 'meanwhile')"), name="things")
    assert thing(odd, "soft", "x") is None
    odd.wait_for(odd.sql("UPDATE odd.things SET gone = false WHERE code = 'soft'"), name="things")
    found = thing(odd, "soft", "x")
    assert found is not None and [part["label"] for part in found["parts"]] == ["meanwhile"]


@pytest.fixture(scope="module")
def busy(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_hot")
    project.create(orders=40)
    project.sql(
        "INSERT INTO shop.customers VALUES(9001, 'Hot', 'hot@example.org', now())",
        "INSERT INTO shop.orders SELECT i, 9001, 'new', now(), 0 FROM generate_series(100001, 200000) i",
    )
    project.start_worker()
    project.wait_for(truth.position(project.dsn), seconds=300)
    yield project


@pytest.mark.edge_case(44)
def test_fresh_changes_overtake_the_renaming_of_a_customer_of_100000_orders(busy: Project) -> None:
    position = busy.sql("UPDATE shop.customers SET name = 'Hotter' WHERE id = 9001")
    busy.sql("UPDATE shop.orders SET status = 'fresh' WHERE id = 1")
    until(lambda: (busy.document(1) or {}).get("status") == "fresh", 60, "the fresh change is readable")
    last = busy.document(200000)
    assert last is not None and last["customer"]["name"] == "Hot", "the fan-out was over before the fresh change came"
    assert busy.watermark() < position, "the watermark claims a renaming that is not done"
    busy.wait_for(position, seconds=300)
    last = busy.document(200000)
    assert last is not None and last["customer"]["name"] == "Hotter"
    busy.assert_equal()


@pytest.mark.edge_case(17)
def test_amounts_moved_between_orders_keep_their_sum_whenever_the_load_rests(busy: Project) -> None:
    busy.wait_for(busy.sql("UPDATE shop.orders SET charged = 1000 WHERE id BETWEEN 2 AND 9"), seconds=300)
    for round_ in range(10):
        writers = [
            threading.Thread(
                target=lambda n: [
                    busy.sql(
                        f"UPDATE shop.orders SET charged = charged - {n} WHERE id = {2 + n}",
                        f"UPDATE shop.orders SET charged = charged + {n} WHERE id = {9 - n}",
                    )
                    for _ in range(5)
                ],
                args=(n,),
            )
            for n in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        busy.wait_for(truth.position(busy.dsn))
        total = sum(float((busy.document(id) or {})["charged"]) for id in range(2, 10))
        assert total == 8000, f"round {round_}: {total}"
