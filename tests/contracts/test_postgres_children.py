"""Lists in tables of their own: the promises of every sink hold, and of the lists those of their documents."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from postgres_lab import FULL, PostgresServer
from sink_contract import SHAPE, Lab, Line, Server, SinkContract, delete, put, text

from connectors.sinks.postgres import PostgresSink
from connectors.sinks.postgres_reader import PostgresReader
from pipeline.authoring.documents import Document, column, hidden, many, one
from pipeline.authoring.leaves import leaves
from pipeline.authoring.projection import postgres
from pipeline.authoring.shape import shape_of
from pipeline.errors import DefinitionError, SinkError, TargetMissing
from pipeline.ports import APPLIED, STALE, Rejected, Throttled, Write
from pipeline.web.asking import LISTING, asked

pytestmark = pytest.mark.stack


class Product(Document, source="shop.products"):
    id: int
    sku: str


class Item(Document, source="shop.items", key=("basket_id", "n")):
    n: int
    price: Decimal | None
    note: str | None
    at: datetime | None
    code: bytes | None
    labels: tuple[str, ...] | None
    product: Product | None = one(via="product_id")


class Basket(Document, source="shop.baskets"):
    id: int
    note: str | None
    items: tuple[Item, ...] = many(by="basket_id")
    tags: tuple[str, ...] | None
    prices: tuple[Decimal, ...] | None
    extras: tuple[dict[str, Any], ...] | None
    unseen: tuple[str, ...] = hidden()


BASKET = shape_of(Basket)
CHILDREN = ["items", "tags", "prices", "extras"]


def item(n: int, **members: object) -> dict[str, object]:
    return {**dict.fromkeys(("price", "note", "at", "code", "labels", "product")), "n": n, **members}


class TestPostgresSinkWithChildren(SinkContract):
    BAD = '{"id":1,"lines":[{"id":1},{"id":"nonsense"}]}'
    UNSTORABLE = frozenset({r"a\u0000b", r"a\ud800b"})

    @pytest.fixture
    def prefix(self) -> str:
        return f"c_{uuid.uuid4().hex[:8]}"

    @pytest.fixture
    def server(self, database: str, prefix: str) -> Server:
        return PostgresServer(database, prefix, {"children": ["lines"]})

    @pytest.fixture
    def own(self, server: PostgresServer) -> PostgresServer:
        return server

    @pytest.fixture
    async def baskets(self, lab: Lab, own: PostgresServer) -> AsyncIterator[PostgresSink]:
        own.options = {"children": CHILDREN}
        sink = own.open(lab.projection(1), shape=BASKET)
        await sink.prepare()
        await sink.switch()
        yield sink
        await sink.drop()
        await sink.close()
        own.options = {"children": ["lines"]}

    # ---- what is written ------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "document",
        [
            {"items": [item(1, price="12345678901234567890.10", at="2024-01-01T00:05:00Z"), item(2)], "tags": ["b", "a"]},
            {"items": [], "tags": None, "prices": [], "extras": None},
            {"tags": [None, "", None], "prices": [None, "1.50"], "extras": [None, {}, {"a": [1, None]}]},
            {"items": [None, {}, {"n": 1}]},
            {"tags": ["é", "\U0001f600", "\u2028", "a\tb\nc\\\"'{}%s", "null"], "extras": [{"%s": "\\N"}]},
            {"prices": ["1.10", "1.100", "-0.00", "NaN"], "extras": [{"n": 9007199254740993, "m": 0.1}]},
            {"items": "none", "tags": {"a": 1}, "prices": 5, "extras": True},
            {"items": [item(1, labels=[], product={"id": 1, "sku": "a"}), item(1, labels=["x", None], code="AP8=")]},
        ],
    )  # fmt: skip
    async def test_a_document_is_read_as_it_was_written(self, baskets: PostgresSink, document: dict[str, Any]) -> None:
        whole = {"id": 1, **document}
        writes = [Write("1", 1, json.dumps(whole)), Write("2", 1, json.dumps({"id": 2, "tags": ["other"]}))]
        assert await baskets.write(writes, 0) == [APPLIED] * 2
        assert (await baskets.read(["1"]))["1"].document == whole
        (page,) = [page async for page in baskets.scan()]
        assert page["1"].document == whole and page["2"].document == {"id": 2, "tags": ["other"]}

    async def test_items_are_rows_with_typed_columns_in_their_order(
        self, baskets: PostgresSink, own: PostgresServer
    ) -> None:
        first = item(
            7, price="1.50", at="2024-01-01T00:05:00.123456Z", code="AP8=", labels=["x"], product={"id": 1, "sku": "a"}
        )
        document = {"id": 1, "items": [first, item(8, note="é")], "tags": ["b", "a", None], "prices": ["2.50"]}
        await baskets.write([Write("1", 1, json.dumps(document))], 0)
        shown = (
            "_position, n, price + 1, note, extract(year FROM at)::int, code, labels ->> 0, product #>> '{sku}', _item"
        )
        assert await own.ask(f"SELECT {shown} FROM {own.schema}.orders_items WHERE _id = '1' ORDER BY _position") == [
            (1, 7, Decimal("2.50"), None, 2024, b"\x00\xff", "x", "a", first),
            (2, 8, None, "é", None, None, None, None, item(8, note="é")),
        ]
        assert await own.ask(f"SELECT _position, value FROM {own.schema}.orders_tags ORDER BY _position") == [
            (1, "b"), (2, "a"), (3, None),
        ]  # fmt: skip
        assert await own.ask(f"SELECT sum(value) FROM {own.schema}.orders_prices") == [(Decimal("2.50"),)]
        assert await own.ask(f"SELECT document FROM {own.schema}.orders") == [({"id": 1},)]

    async def test_a_later_list_replaces_the_whole_list(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        everything: list[Any] = [
            [{"id": n} for n in range(5)],
            [{"id": 7}, {"id": 1}],
            [{"id": 1}],
            [],
            None,
            [{"id": 3}],
        ]
        for n, lines in enumerate(everything):
            assert await put(sink, "1", n, lines=lines) == APPLIED
            assert (await sink.read(["1"]))["1"].document == {"id": 1, "lines": lines}
            assert await own.ask(f"SELECT count(*) FROM {own.table('orders-lines_v1')}") == [(len(lines or []),)]

    async def test_items_go_with_their_document_and_a_late_write_brings_none_back(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        sink, lines = await lab.prepared(), [{"id": 1}, {"id": 2}]
        items = f"SELECT _id FROM {own.table('orders-lines_v1')}"
        await put(sink, "1", 2, lines=lines)
        await put(sink, "2", 2, lines=[])
        assert await put(sink, "1", 1, lines=[{"id": 9}]) == STALE
        assert await put(sink, "2", 2, lines=[{"id": 9}]) == STALE
        assert (await sink.read(["1"]))["1"].document["lines"] == lines
        assert await own.ask(items) == [("1",), ("1",)]
        assert await delete(sink, "1", 3) == APPLIED
        assert await put(sink, "1", 2, lines=lines) == STALE
        assert await own.ask(items) == []

    async def test_an_older_owner_writes_no_item(self, lab: Lab, own: PostgresServer) -> None:
        old, new = await lab.prepared(), lab.sink()
        before = (await old.claim("a", 0)).epoch
        await new.claim("b", 0)
        assert await put(old, "1", 1, epoch=before, lines=[{"id": 1}]) == STALE
        assert await own.ask(f"SELECT FROM {own.table('orders-lines_v1')}") == []

    async def test_a_reader_never_sees_a_document_with_items_of_another_write(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        sink = await lab.prepared()
        await sink.switch()

        async def writes() -> None:
            for n in range(1, 15):
                lines = [{"id": i} for i in range(n % 4)]
                documents = [Write(str(i), n, text(note=str(len(lines)), lines=lines)) for i in range(300)]
                assert set(await sink.write(documents, 0)) == {APPLIED}

        writing, looks = asyncio.create_task(writes()), 0
        query = f"SELECT _id, document FROM {own.schema}.orders o WHERE (document ->> 'note')::int <>"
        while not writing.done() or not looks:
            items = f"(SELECT count(*) FROM {own.schema}.orders_lines l WHERE l._id = o._id)"
            assert await own.ask(f"{query} {items}") == []
            looks += 1
        await writing

    async def test_a_document_whose_items_find_no_room_is_not_written(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1, note="a", lines=[{"id": 1}])
        await own.ask(
            FULL.format(schema=own.schema),
            f"CREATE TRIGGER is_full BEFORE INSERT ON {own.table('orders-lines_v1')} EXECUTE FUNCTION {own.schema}.full()",
        )
        assert isinstance(await put(sink, "1", 2, note="b", lines=[{"id": 2}]), Throttled)
        assert (await sink.read(["1"]))["1"].document == {"id": 1, "note": "a", "lines": [{"id": 1}]}

    async def test_writes_at_the_same_time_leave_the_items_of_one_of_them(self, lab: Lab) -> None:
        one, two = await lab.prepared(), lab.sink()
        lengths = [9, 1, 5, 0, 7, 3, 8, 2]

        def writes(n: int) -> list[Write]:
            lines = [{"id": i, "order_id": n} for i in range(lengths[n % len(lengths)])]
            return [Write(str(id), n, text(note=str(n), lines=lines)) for id in range(50)]

        async def go(sink: Any, turns: range) -> None:
            for n in turns:
                await sink.write(writes(n), 0)

        await asyncio.gather(go(one, range(1, 60, 2)), go(two, range(2, 60, 2)))
        stored = await one.read([str(id) for id in range(50)])
        assert {id: found.document for id, found in stored.items()} == {
            write.id: json.loads(write.document or "") for write in writes(59)
        }

    @pytest.mark.edge_case(48)
    async def test_a_document_with_an_item_that_can_not_be_kept_is_rejected_with_all_its_items(
        self, baskets: PostgresSink, own: PostgresServer
    ) -> None:
        bad = {3: '{"items":[{"n":1},{"n":"nonsense"}]}', 5: '{"tags":["a","\\u0000"]}', 6: '{"prices":["lots"]}'}
        writes = [Write(str(n), 1, bad.get(n, '{"items":[{"n":1}],"tags":["a"]}')) for n in range(9)]
        outcomes = await baskets.write(writes, 0)
        assert {n for n, outcome in enumerate(outcomes) if outcome != APPLIED} == set(bad)
        for n, said in ((3, "nonsense"), (6, "lots")):
            assert isinstance(outcome := outcomes[n], Rejected) and said in outcome.reason
        for name in ("items", "tags"):
            rows = await own.ask(f"SELECT _id FROM {own.schema}.orders_{name} ORDER BY 1")
            assert [int(id) for (id,) in rows] == [n for n in range(9) if n not in bad]

    async def test_a_huge_list_is_written_and_shortened(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        lines = [{"id": n, "product": "x" * 50} for n in range(60_000)]
        assert await put(sink, "1", 1, lines=lines) == APPLIED
        assert (await sink.read(["1"]))["1"].document["lines"] == lines
        assert await put(sink, "1", 2, lines=lines[:2]) == APPLIED
        assert await own.ask(f"SELECT count(*) FROM {own.table('orders-lines_v1')}") == [(2,)]

    async def test_odd_keys_keep_their_items(self, lab: Lab) -> None:
        sink = await lab.prepared()
        writes = [Write(key, 1, text(lines=[{"id": n}])) for n, key in enumerate(self.KEYS)]
        assert set(await sink.write(writes, 0)) == {APPLIED}
        stored = await sink.read(self.KEYS)
        assert [stored[key].document["lines"] for key in self.KEYS] == [[{"id": n}] for n in range(len(self.KEYS))]

    # ---- versions -------------------------------------------------------------------------------------------

    async def test_documents_and_items_of_one_version_are_seen_at_any_moment(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        sinks = [await lab.prepared(), own.open(lab.projection(2), columns=True)]
        lab.opened.append(sinks[1])
        await sinks[1].prepare()
        for n, sink in enumerate(sinks):
            await put(sink, "1", 1, note=str(n), lines=[{"id": n}])
        await sinks[0].switch()
        query = (
            f"SELECT document ->> 'note', l.id FROM {own.schema}.orders JOIN {own.schema}.orders_lines l USING (_id)"
        )
        seen = set()

        async def switches() -> None:
            for turn in range(20):
                await sinks[turn % 2].switch()

        switching = asyncio.create_task(switches())
        while not switching.done():
            seen.update(await own.ask(query))
        await switching
        assert seen <= {("0", 0), ("1", 1)}

    async def test_who_may_read_a_list_may_read_it_in_versions_with_other_columns(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        class Shorter(Line):
            product: str | None = hidden()

        other = replace(SHAPE, members=tuple(
            replace(member, shape=shape_of(Shorter)) if member.name == "lines" else member for member in SHAPE.members
        ))  # fmt: skip
        old, new = await lab.prepared(), own.open(lab.projection(2), shape=other)
        lab.opened.append(new)
        await new.prepare()
        view, role = f"{own.schema}.orders_lines", f"reader_{lab.prefix}"
        may = f"SELECT has_table_privilege('{role}', '{view}', 'SELECT')"
        await old.switch()
        await own.ask(f"CREATE ROLE {role}", f"GRANT SELECT ON {view} TO {role}")
        try:
            for sink in (new, old):
                await put(sink, "1", 1, lines=[{"id": 1}])
                await sink.switch()
                assert await own.ask(may) == [(True,)]
                assert await own.ask(f"SELECT id FROM {view}") == [(1,)]
            # nor does one without the list in between change it
            without = own.open(lab.projection(3), children=[])
            lab.opened.append(without)
            await without.prepare()
            for sink in (new, old):
                await without.switch()
                await without.switch()
                assert await own.ask(f"SELECT to_regclass('{view}')") == [(None,)]
                await sink.switch()
                assert await own.ask(may) == [(True,)]
                assert await own.ask(f"SELECT id FROM {view}") == [(1,)]
        finally:
            await own.ask(f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    async def test_who_may_read_the_documents_may_read_a_list_that_gets_a_table(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        plain, with_lines = own.open(lab.projection(1), children=[]), await lab.prepared(2)
        lab.opened.append(plain)
        await plain.prepare()
        await plain.switch()
        view, role = f"{own.schema}.orders_lines", f"reader_{lab.prefix}"
        await own.ask(f"CREATE ROLE {role}", f"GRANT SELECT ON {own.schema}.orders TO {role}")
        try:
            for _ in range(2):
                await with_lines.switch()
                assert await own.ask(f"SELECT has_table_privilege('{role}', '{view}', 'SELECT')") == [(True,)]
                await plain.switch()
                # the list is in the document again, and what it was must not be taken for it
                assert await own.ask(f"SELECT to_regclass('{view}')") == [(None,)]
        finally:
            await own.ask(f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    async def test_going_back_shows_the_columns_and_lists_that_the_version_was_made_with(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        options: list[dict[str, Any]] = [{"columns": True}, {"children": [], "columns": False}]
        for made, later in (options, options[::-1]):
            old, new = (own.open(lab.projection(n), **made_with) for n, made_with in ((1, made), (2, later)))
            now = own.open(lab.projection(1), **later)
            lab.opened += [old, new, now]
            for sink in (old, new):
                await sink.prepare()
                await put(sink, "1", 1, note="a", lines=[{"id": 1}])
            shown = f"SELECT * FROM {own.schema}.orders"
            await old.switch()
            before = await own.ask(shown)
            await new.switch()
            assert await own.ask(shown) != before
            # the code is the new version's
            await now.switch()
            assert await own.ask(shown) == before
            lines = await own.ask(f"SELECT to_regclass('{own.schema}.orders_lines')::text")
            assert lines == [(f"{own.schema}.orders_lines" if made.get("columns") else None,)]
            assert (await now.read(["1"]))["1"].document["lines"] == [{"id": 1}]
            await now.drop()
            await new.drop()
            assert await own.ask(f"SELECT to_regclass('{own.table('orders-lines_v1')}')") == [(None,)]

    @pytest.mark.parametrize("turn", [1, -1])
    async def test_the_query_api_reads_a_version_that_was_made_with_other_options(
        self, lab: Lab, own: PostgresServer, turn: int
    ) -> None:
        options: list[dict[str, Any]] = [{"columns": True}, {"children": [], "columns": False}]
        made, later = options[::turn]
        sink = own.open(lab.projection(1), **made)
        lab.opened.append(sink)
        target = postgres(f"{own.schema}.orders", **(own.options | later))
        reader = PostgresReader(dsn=lambda: own.dsn, target=target, shape=SHAPE, request_timeout=10)
        try:
            await sink.prepare()
            documents = [{"id": n, "note": f"n{n}", "lines": [{"id": n}]} for n in range(3)]
            await sink.write([Write(str(one["id"]), 1, json.dumps(one)) for one in documents], 0)
            await sink.switch()
            version = await reader.seen()
            assert json.loads((await reader.get(version, ["1"]))["1"].document) == documents[1]
            for condition in (("note", "n1"), ("lines.id", "1"), ("sort", "-note")):
                page = await reader.search(version, asked(leaves(SHAPE), [condition], LISTING).query)
                wanted = documents[::-1] if condition[0] == "sort" else [documents[1]]
                assert [json.loads(one) for one in page.documents] == wanted
        finally:
            await reader.close()

    @pytest.mark.parametrize(("made", "asked_for"), [(["lines"], []), ([], ["lines"])])
    async def test_a_version_that_was_made_with_other_children_is_not_written(
        self, lab: Lab, own: PostgresServer, made: list[str], asked_for: list[str]
    ) -> None:
        sink, other = (own.open(lab.projection(1), children=children) for children in (made, asked_for))
        lab.opened += [sink, other]
        await sink.prepare()
        for attempt in (other.prepare, lambda: other.claim("me", 0)):
            with pytest.raises(SinkError, match=r"tables of their own .*lines.*: raise the projection's version"):
                await attempt()
        await sink.claim("me", 0)

    async def test_a_list_whose_items_got_other_columns_is_not_taken_for_ours(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        sink = await lab.prepared()
        await own.ask(f"ALTER TABLE {own.table('orders-lines_v1')} DROP product")
        with pytest.raises(SinkError, match=r"orders_lines_v1 has other columns .*product"):
            await sink.prepare()

    async def test_a_dropped_version_leaves_no_table_and_no_view_of_its_lists(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        first, second = await lab.prepared(), await lab.prepared(2)
        left = (
            f"SELECT relname FROM pg_class WHERE relnamespace = '{own.schema}'::regnamespace AND relkind IN ('r', 'v')"
        )
        await first.switch()
        without = own.open(lab.projection(3), children=[])
        lab.opened.append(without)
        await without.prepare()
        await second.switch()
        await without.switch()
        await second.drop()
        await first.switch()
        await without.drop()
        assert {name for (name,) in await own.ask(left)} == {
            "orders", "orders_v1", "orders_lines", "orders_lines_v1", "cdc_checkpoints",
        }  # fmt: skip
        await first.drop()
        assert await own.ask(left) == [("cdc_checkpoints",)]

    async def test_items_of_a_lost_table_are_not_those_of_the_next_one(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        await put(sink, "1", 1, lines=[{"id": 1}])
        await sink.switch()
        await own.lose(lab.projection(1))
        await sink.prepare()
        await sink.switch()
        assert await own.ask(f"SELECT FROM {own.schema}.orders_lines") == []
        await put(sink, "1", 1, lines=[{"id": 1}])
        await own.ask(f"DROP TABLE {own.table('orders-lines_v1')} CASCADE")
        with pytest.raises(TargetMissing):
            await put(sink, "1", 2, lines=[{"id": 1}])

    @pytest.mark.parametrize("taken", ["orders_lines", "orders_lines_v1"])
    async def test_what_others_made_is_not_taken_for_a_list(self, lab: Lab, own: PostgresServer, taken: str) -> None:
        await own.ask(f"CREATE SCHEMA {own.schema}", f"CREATE TABLE {own.schema}.{taken} AS SELECT 7 AS id")
        with pytest.raises(SinkError, match=rf"{own.schema}\.{taken} is there already"):
            await lab.sink().prepare()
        assert await own.ask(f"SELECT * FROM {own.schema}.{taken}") == [(7,)]

    async def test_a_view_that_others_made_meanwhile_is_not_replaced(self, lab: Lab, own: PostgresServer) -> None:
        sink = await lab.prepared()
        await own.ask(f"CREATE VIEW {own.schema}.orders_lines AS SELECT * FROM {own.table('orders-lines_v1')} LIMIT 0")
        await sink.switch()  # it shows one of our lists, so it is ours
        await own.ask(
            f"DROP VIEW {own.schema}.orders_lines", f"CREATE VIEW {own.schema}.orders_lines AS SELECT 7 AS id"
        )
        with pytest.raises(SinkError, match="is there already"):
            await sink.switch()
        assert await own.ask(f"SELECT * FROM {own.schema}.orders_lines") == [(7,)]

    # ---- indexes --------------------------------------------------------------------------------------------

    async def test_declared_indexes_are_of_the_items_and_the_query_api_uses_them(
        self, lab: Lab, own: PostgresServer
    ) -> None:
        options: dict[str, object] = {
            "children": CHILDREN,
            "indexes": ["items.n", "items.note", "items.product.sku", "items.labels", "tags", "items", "note"],
        }
        target = postgres(f"{own.schema}.orders", **options)
        sink = own.open(lab.projection(1), shape=BASKET, **options)
        reader = PostgresReader(dsn=lambda: own.dsn, target=target, shape=BASKET, request_timeout=10)
        lab.opened.append(sink)
        await sink.prepare()
        writes = [
            Write(str(n), 1, json.dumps({
                "id": n, "tags": [f"t{n}"],
                "items": [item(n, note=f"n{n}", labels=[f"l{n}"], product={"id": n, "sku": f"s{n}"})],
            }))
            for n in range(3000)
        ]  # fmt: skip
        assert set(await sink.write(writes, 0)) == {APPLIED}
        await sink.switch()
        await own.ask(f"ANALYZE {own.schema}.orders_v1", f"ANALYZE {own.schema}.orders_items_v1")
        await own.ask(f"ANALYZE {own.schema}.orders_tags_v1")
        used = (
            f"SELECT sum(idx_scan)::int FROM pg_stat_user_indexes WHERE schemaname = '{own.schema}' AND indexrelname = "
        )
        conditions = {
            "items.n": "orders_items_v1_n", "items.note": "orders_items_v1_note", "tags": "orders_tags_v1_value",
            "items.product.sku": "orders_items_v1_product.sku", "items.labels": "orders_items_v1_labels",
        }  # fmt: skip
        values = {
            "items.n": "77",
            "items.note": "n77",
            "tags": "t77",
            "items.product.sku": "s77",
            "items.labels": "l77",
        }
        try:
            for name, index in conditions.items():
                query = asked(leaves(BASKET), [(name, values[name])], LISTING).query
                (found,) = (await reader.search("orders_v1", query)).documents
                assert json.loads(found)["id"] == 77
                await reader.close()  # a connection that ends says what it used
                while await own.ask(f"{used}'{index}'") == [(0,)]:
                    await asyncio.sleep(0)
        finally:
            await reader.close()
        (explained, *_), *_ = await own.ask(
            "SET enable_seqscan = off",
            f"EXPLAIN (FORMAT JSON) SELECT _id FROM {own.schema}.orders_items WHERE _item @> '{{\"n\": 77}}'",
        )
        assert "orders_items_v1__item" in json.dumps(explained)


class Odd(Document, source="shop.odd"):
    id: int
    xmin: int
    lines: tuple[Line, ...] = many(by="order_id")
    other: Line | None = one(via="line_id")


class Long(Document, source="shop.long"):
    id: int
    a_list_whose_name_is_longer_than_names_may_be: tuple[str, ...] = column("tags")
    outer: tuple[Odd, ...] = many(by="long_id")


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        (BASKET, {"children": "items"}, r"children='items' is no list of fields: write children=\['lines'\]"),
        (BASKET, {"children": ["nothing"]}, "Basket has no list of that name; its lists are items, tags, prices, extras"),
        (BASKET, {"children": ["note"]}, "No child table of 'note'"),
        (BASKET, {"children": ["unseen"]}, "No child table of 'unseen'"),
        (shape_of(Line), {"children": ["x"]}, "no list of that name; it has none"),
        (shape_of(Odd), {"children": ["other"]}, "No child table of 'other'"),
        (shape_of(Long), {"children": ["a_list_whose_name_is_longer_than_names_may_be"]}, "longer than 54 bytes"),
        (shape_of(Long), {"children": ["outer"]}, "Odd.xmin can't be a column: .* leave 'outer' of children out"),
        (shape_of(Odd), {"columns": True}, "Odd.xmin can't be a column: .* leave columns=True out"),
        (BASKET, {"children": ["items"], "indexes": ["items.nothing"]}, "Item has no field nothing; it has n, price"),
        (BASKET, {"children": ["tags"], "indexes": ["tags.x"]}, "No index of 'tags.x': tags has no fields of its own"),
    ],
)  # fmt: skip
def test_lists_that_can_have_no_table_are_refused(shape: Any, options: dict[str, object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        PostgresSink(dsn=lambda: "", target="somewhat_longer", projection="orders-v1", shape=shape, options=options)
