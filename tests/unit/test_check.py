"""`cdc check`: a wrong definition of each kind, all found in one run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.discovery import discover, find, look
from pipeline.authoring.projection import Target, kafka, redis
from pipeline.authoring.shape import Shape
from pipeline.cli.sinks import RULES
from pipeline.errors import DefinitionError
from pipeline.operations.check import Captures, CheckReport, check
from pipeline.operations.sinks import SinkRules
from pipeline.settings import Settings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CDC_")]:
        monkeypatch.delenv(name)


def table(name: str, columns: str, key: tuple[str, ...] = ("id",), **more: object) -> Table:
    """A table from `name type[ null]` lines."""
    parsed = []
    for line in columns.split(", "):
        column, _, rest = line.partition(" ")
        kind = rest.removesuffix(" null").removesuffix(" generated")
        parsed.append(
            Column(name=column, type=kind, nullable=rest.endswith(" null"), generated=rest.endswith(" generated"))
        )
    return Table(name=name, columns=tuple(parsed), primary_key=key, **more)  # type: ignore[arg-type]


CATALOG = Catalog.of(
    [
        table("shop.customers", "id bigint, name text, email character varying(80) null, code text"),
        table("shop.products", "id bigint, sku text, price numeric(10,2), stock integer, tags text[]"),
        table("shop.orders", "id bigint, customer_id bigint, status text, placed_at timestamp with time zone"),
        table(
            "shop.order_lines",
            "order_id bigint, line_no integer, product_id bigint null, quantity integer, unit_price numeric(10,2)",
            key=("order_id", "line_no"),
        ),
        table("shop.notes", "order_id bigint, body text", key=()),
        table("shop.secrets", "id bigint, body text", replica_identity="nothing"),
        table("shop.sums", "id bigint, total numeric generated, waits interval[]"),
        table("shop.tags", "id bigint, label text", unique=(("label",),), indexes=(("label",),)),
        table("shop.tagged", "order_id bigint, tag_id bigint", key=("order_id", "tag_id")),
        table("shop.indexed", "id bigint, body text", replica_identity="index"),
    ]
)
HEAD = """
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID
from pipeline import Document, column, derived, elasticsearch, left_out, many, one, projection
"""

Checked = Callable[..., CheckReport]


@pytest.fixture
def checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checked:
    """Writes the files into a project and checks it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "projections"
    folder.mkdir()

    def run(
        lock: Catalog | None = None,
        connectors: Sequence[Captures] | None = None,
        withheld: dict[str, tuple[str, ...]] | None = None,
        **files: str,
    ) -> CheckReport:
        for name, text in files.items():
            (folder / f"{name}.py").write_text(HEAD + text)
        found = look(folder)
        chosen = [found.projections[name] for name in sorted(found.projections)]
        return check(
            chosen, CATALOG, sinks=RULES, problems=found.problems, lock=lock, connectors=connectors, withheld=withheld
        )

    return run


def seen(report: CheckReport) -> list[tuple[str, str]]:
    return [(finding.error, finding.subject) for finding in report.findings]


GOOD = """
class Product(Document, source="shop.products"):
    sku: str
    tags: tuple[str, ...]

class Line(Document, source="shop.order_lines", key=("order_id", "line_no")):
    quantity: int
    unit_price: Decimal
    product: Product | None = one(via="product_id")

class Customer(Document, source="shop.customers"):
    name: str
    email: str | None

class Order(Document, source="shop.orders"):
    id: int
    placed_at: datetime
    customer: Customer | None = one(via="customer_id")
    lines: tuple[Line, ...] = many(by="order_id")

    @derived
    def pieces(self) -> int:
        return sum(line.quantity for line in self.lines)

orders = projection(Order, to=elasticsearch("orders"))
"""


def test_a_right_definition_has_no_findings(checked: Checked) -> None:
    report = checked(orders=GOOD)

    assert report.findings == ()
    assert report.ok
    assert report.projections == ("orders",)


WRONG = """
class Ghost(Document, source="shop.custmers"):
    id: int

class Product(Document, source="shop.products"):
    sku: int
    price: float
    stock: str
    tags: str

class Line(Document, source="shop.order_lines"):
    quantity: Decimal
    product: Product = one(via="product_id")

class ByCode(Document, source="shop.customers", key="name"):
    email: str

class Order(Document, source="shop.orders"):
    id: int
    statu: str
    placed_at: date
    ghost: Ghost | None = one(via="customer_id")
    customer: ByCode | None = one(via="custmer_id")
    other: ByCode | None = one(via="status")
    lines: tuple[Line, ...] = many(by="order_id", order_by="lineno")

orders = projection(Order, to=[elasticsearch("Orders", shard=1), elasticsearch("orders")], name="Orders!", version=0)
"""


def test_every_error_of_a_definition_is_found_at_once(checked: Checked) -> None:
    report = checked(orders=WRONG)

    assert sorted(seen(report)) == sorted(
        [
            ("UnknownTable", "Ghost"),
            ("WrongType", "Product.sku"),
            ("WrongType", "Product.price"),
            ("WrongType", "Product.stock"),
            ("WrongType", "Product.tags"),
            ("UnknownColumn", "Line"),
            ("WrongType", "Line.quantity"),
            ("WrongType", "Line.product"),
            ("WrongType", "ByCode.email"),
            ("UnknownColumn", "Order.statu"),
            ("WrongType", "Order.placed_at"),
            ("UnknownColumn", "Order.customer"),
            ("BadShape", "Order.other"),
            ("UnknownColumn", "Order.lines"),
            ("BadName", "Orders!"),
            ("BadName", "Orders!"),
            ("BadTarget", "Orders!"),
            ("BadTarget", "Orders!"),
        ]
    )
    assert not report.ok


def test_a_model_is_for_a_column_of_json_and_a_document_for_a_relation(checked: Checked) -> None:
    report = checked(
        a="""
from pydantic import BaseModel

class Size(BaseModel):
    width: Decimal

class Product(Document, source="shop.products"):
    sku: Size
    tags: list[Size]

products = projection(Product, to=elasticsearch("products"))
""",
        b="""
class Customer(Document, source="shop.customers"):
    name: str

class Order(Document, source="shop.orders"):
    customer: Customer

orders = projection(Order, to=elasticsearch("orders"))
""",
    )

    found = {finding.subject: finding for finding in report.findings}
    assert sorted(found) == ["Order.customer", "Product.sku", "Product.tags"]
    assert found["Product.sku"].message == "shop.products.sku is text, which can't be read as Size."
    assert found["Product.tags"].message == "shop.products.tags is text[], which can't be read as a list of Size."
    assert "does not say which rows" in found["Order.customer"].message


def test_a_finding_says_file_line_reason_and_what_to_write(checked: Checked) -> None:
    report = checked(orders=WRONG)
    finding = next(f for f in report.findings if f.subject == "Order.statu")
    line = (HEAD + WRONG).splitlines().index("    statu: str") + 1

    assert (finding.file, finding.line) == ("projections/orders.py", line)
    assert finding.message == "shop.orders has no column 'statu'."
    assert finding.suggestion == "Did you mean 'status'?"


def test_findings_come_in_the_same_order_every_time(checked: Checked) -> None:
    first, second = checked(orders=WRONG), checked(orders=WRONG)

    assert first == second
    assert [f.line for f in first.findings] == sorted(f.line for f in first.findings)


@pytest.mark.edge_case(2)
def test_what_the_events_do_not_carry_is_refused(checked: Checked) -> None:
    report = checked(
        notes="""
class Note(Document, source="shop.notes", key="order_id"):
    body: str

class Secret(Document, source="shop.secrets"):
    body: str

class Total(Document, source="shop.sums"):
    total: Decimal
    waits: tuple[str, ...]

class Indexed(Document, source="shop.indexed"):
    body: str

a = projection(Note, to=elasticsearch("a"))
b = projection(Secret, to=elasticsearch("b"))
c = projection(Total, to=elasticsearch("c"))
d = projection(Indexed, to=elasticsearch("d"))
"""
    )

    assert seen(report) == [
        ("NoPrimaryKey", "Note"),
        ("NoReplicaIdentity", "Secret"),
        ("GeneratedColumn", "Total.total"),
        ("WrongType", "Total.waits"),
        ("NoReplicaIdentity", "Indexed"),
    ]


def test_a_root_key_other_than_the_primary_key_is_an_error_and_a_line_key_a_warning(checked: Checked) -> None:
    report = checked(
        lines="""
class Line(Document, source="shop.order_lines", key="order_id"):
    quantity: int

class Order(Document, source="shop.orders"):
    lines: tuple[Line, ...] = many(by="order_id")

lines = projection(Line, to=elasticsearch("lines"))
orders = projection(Order, to=elasticsearch("orders"))
"""
    )

    assert [(f.level, f.error, f.subject) for f in report.findings] == [
        ("error", "KeyDiffers", "Line"),
        ("warning", "KeyDiffers", "Line"),
    ]


def test_contradictions_within_the_documents_are_found_together(checked: Checked) -> None:
    report = checked(
        shapes="""
class Product(Document, source="shop.products"):
    sku: complex

class Order(Document, source="shop.orders"):
    status: int = one(via="customer_id")
    lines: Product = many(by="order_id")
    product: Product | None = one(via=("a", "b"))

orders = projection(Order, to=elasticsearch("orders"))
"""
    )

    assert seen(report) == [
        ("BadShape", "Product.sku"),
        ("BadShape", "Order.status"),
        ("BadShape", "Order.lines"),
    ]


def test_a_broken_file_does_not_hide_the_errors_of_the_others(checked: Checked) -> None:
    report = checked(
        broken="def projection(:\n",
        raises="nothing_called_this\n",
        orders=GOOD,
        again=GOOD,
        wrong=GOOD.replace('"orders"', '"wrong"').replace("id: int", "di: int"),
    )

    assert [(f.error, f.file) for f in report.findings] == [
        ("SyntaxError", "projections/broken.py"),
        ("DuplicateProjection", "projections/orders.py"),
        ("NameError", "projections/raises.py"),
        ("UnknownColumn", "projections/wrong.py"),
    ]
    assert report.projections == ("orders", "wrong")


def test_a_function_called_wrongly_says_what_it_takes(checked: Checked, tmp_path: Path) -> None:
    wrong = "from pipeline import Document, one\n\nclass Line(Document, source='shop.orders'):\n    id: int = one(by='id')\n"

    (finding,) = checked(wrong=wrong).findings

    assert finding.error == "TypeError"
    assert "one(by=" in (tmp_path / finding.file).read_text().splitlines()[finding.line - 1]
    assert finding.suggestion == "It takes via=, to=, where=, depth=, hidden="


def test_two_projections_can_not_write_one_index(checked: Checked) -> None:
    report = checked(one=GOOD, two=GOOD.replace('elasticsearch("orders")', 'elasticsearch("orders"), name="other"'))

    assert seen(report) == [("DuplicateTarget", "other")]


def test_a_list_with_a_table_of_its_own_takes_its_name_from_other_targets(checked: Checked) -> None:
    head = f"from pipeline import postgres\n{GOOD}"
    lines = head.replace('elasticsearch("orders")', 'postgres("crm.orders", children=["lines"])')
    other = head.replace('elasticsearch("orders")', 'postgres("crm.orders_lines")')

    assert seen(checked(one=other, two=lines)) == [("DuplicateTarget", "orders")]
    assert seen(checked(one=other, two=lines.replace('"crm.orders"', '"desk.orders"'))) == []
    assert seen(checked(two=lines.replace('"lines"]', '"parts"]'))) == [("BadTarget", "orders")]


def test_an_unknown_sink_is_named_with_the_known_ones(checked: Checked, tmp_path: Path) -> None:
    checked(orders=GOOD)
    (orders,) = discover(tmp_path / "projections")
    wrong = type(orders)(orders.shape, (Target("cassandra", "orders"),), "orders")

    report = check([wrong], CATALOG, sinks=RULES)

    assert seen(report) == [("UnknownSink", "orders")]
    assert report.findings[0].suggestion == "Known are elasticsearch, kafka, memory, postgres, redis."


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (redis("cdc:orders"), "'cdc:orders' can't name a target of redis"),
        (redis("crm::orders"), "'crm::orders' can't name a target of redis"),
        (redis("orders", key="orders:{id}"), "key='orders:{id}' is no pattern of keys"),
        (redis("orders", shards=5), "no option shards"),
        (redis("orders", ttl=-1), "ttl=-1 is no time that documents stay"),
        (redis("orders", lookups=["customer.email", "nope"]), "nothing is looked up by 'nope'"),
        *[
            (kafka(name), f"{name!r} can't name a target of kafka")
            for name in ("", "crm:orders", ".orders", "o" * 201, "orders.v3", "orders.v3.2", "o.v3.record")
        ],
        (kafka("orders", partitions=0), "partitions=0 is no number"),
    ],
)
def test_names_and_options_of_targets_are_checked(checked: Checked, tmp_path: Path, target: Target, said: str) -> None:
    checked(orders=GOOD)
    (orders,) = discover(tmp_path / "projections")

    report = check([type(orders)(orders.shape, (target,), "orders")], CATALOG, sinks=RULES)

    assert [f.error for f in report.findings] == ["BadTarget"]
    assert said in report.findings[0].message


def test_a_projection_is_called_as_the_last_part_of_its_first_target(checked: Checked, tmp_path: Path) -> None:
    text = GOOD.replace('to=elasticsearch("orders")', 'to=redis("crm:orders", key="crm:order:{version}:{id}")')
    report = checked(orders="from pipeline import redis\n" + text)

    assert report.findings == () and report.projections == ("orders",)


def test_a_sink_may_refuse_a_shape(checked: Checked, tmp_path: Path) -> None:
    def refuse(shape: Shape, options: object) -> dict[str, object]:
        raise DefinitionError(f"{shape.name} is too deep for it; flatten it.")

    checked(orders=GOOD)

    report = check(discover(tmp_path / "projections"), CATALOG, sinks={"elasticsearch": SinkRules(refuse)})

    assert [(f.error, f.message, f.suggestion) for f in report.findings] == [
        ("BadTarget", "Order is too deep for it.", "Flatten it.")
    ]


def test_tables_that_no_connector_captures_and_drift_are_warnings(checked: Checked) -> None:
    old = table("shop.orders", "id bigint, customer_id bigint, status integer, colour text")
    lock = Catalog.of([*(t for t in CATALOG.tables.values() if t.name != "shop.orders"), old])
    captured = Captures("shop", "", frozenset({"shop.customers", "shop.order_lines", "shop.products"}))

    report = checked(lock=lock, connectors=[captured], orders=GOOD)

    assert report.ok
    assert seen(report) == [("CatalogDrift", "Order"), ("NotCaptured", "Order")]
    assert report.findings[0].message == (
        "shop.orders differs from the catalog file: new column placed_at, no column colour any more, "
        "status is text not null now."
    )


def test_tables_of_two_sources_or_connectors_are_not_joined(checked: Checked) -> None:
    shop = Captures("shop", "", frozenset({"shop.orders", "shop.order_lines", "shop.products"}))
    crm = Captures("crm", "crm", frozenset({"shop.customers", "shop.products"}))

    report = checked(connectors=[shop, crm], orders=GOOD)

    assert [(f.level, *pair) for f, pair in zip(report.findings, seen(report), strict=True)] == [
        ("error", "AmbiguousTable", "Product"),
        ("error", "SeveralConnectors", "orders"),
    ]
    assert report.findings[0].message == "shop.products is captured from several sources, by crm and shop."
    assert "shop.orders by shop" in report.findings[1].message


def test_a_join_of_two_sources_is_refused_though_another_table_is_not_captured_yet(checked: Checked) -> None:
    shop = Captures("shop", "", frozenset({"shop.orders"}))
    crm = Captures("crm", "crm", frozenset({"shop.customers"}))

    report = checked(connectors=[shop, crm], orders=GOOD)

    assert [f.error for f in report.findings if f.level == "error"] == ["SeveralConnectors"]
    assert {f.error for f in report.findings if f.level == "warning"} == {"NotCaptured"}


def test_a_document_of_two_kafka_clusters_is_refused_across_sources_too(checked: Checked) -> None:
    shop = Captures("shop", "", frozenset({"shop.orders", "shop.order_lines", "shop.products"}))
    crm = Captures("crm", "", frozenset({"shop.customers"}), kafka="west")
    across = GOOD.replace("projection(Order, ", "projection(Order, across_sources=True, ")
    assert across != GOOD

    for text in (GOOD, across):
        assert [f.error for f in checked(connectors=[shop, crm], orders=text).findings] == ["SeveralKafkas"]
    both = Captures("both", "", frozenset({"shop.customers", *shop.tables}), kafka="west")
    assert checked(connectors=[shop, crm, both], orders=GOOD).ok


def test_foreign_topics_do_not_have_a_connectors_name(checked: Checked) -> None:
    shop = Captures("shop", "", frozenset({"shop.orders", "shop.customers", "shop.order_lines", "shop.products"}))
    theirs = Captures("shop", "topics shop", frozenset({"erp.invoices"}), foreign=True, kind="topics")

    (found,) = checked(connectors=[shop, theirs], orders=GOOD).findings

    assert found.error == "DuplicateName" and "'shop'" in found.message


def test_a_join_that_the_source_has_no_index_for_is_a_hint(checked: Checked) -> None:
    report = checked(
        customers="""
class Order(Document, source="shop.orders"):
    id: int

class Customer(Document, source="shop.customers"):
    orders: tuple[Order, ...] = many(by="customer_id")

customers = projection(Customer, to=elasticsearch("customers"))
"""
    )

    assert [(f.level, f.error, f.subject) for f in report.findings] == [("hint", "MissingIndex", "Customer.orders")]


def test_columns_of_different_types_do_not_join(checked: Checked) -> None:
    report = checked(
        orders="""
class Customer(Document, source="shop.customers"):
    name: str

class Order(Document, source="shop.orders"):
    customer: Customer | None = one(via="status")

orders = projection(Order, to=elasticsearch("orders"))
"""
    )

    assert seen(report) == [("WrongType", "Order.customer")]


TAGGED = """
class Tag(Document, source="shop.tags"):
    label: str

class Order(Document, source="shop.orders"):
    id: int
    first: Tag | None = one(via="status", to="label")
    tags: tuple[Tag, ...] = many(through="shop.tagged", by="order_id", via="tag_id", where={"label": ("a", "b")}, limit=9)
    more: int = left_out("tags")

orders = projection(Order, to=elasticsearch("orders"))
"""


def test_link_tables_unique_columns_and_conditions_are_right(checked: Checked) -> None:
    assert checked(orders=TAGGED).findings == ()


def test_every_error_of_a_link_table_and_a_condition_is_found(checked: Checked) -> None:
    text = TAGGED.replace('to="label"', 'to="id"').replace('"tag_id"', '"tagid"').replace('("a", "b")', "3")
    text = text.replace("limit=9", 'order_by="-lable"')
    text = text.replace('    more: int = left_out("tags")\n', "")
    assert seen(checked(orders=text)) == [
        ("WrongType", "Order.first"),
        ("UnknownColumn", "Order.tags"),
        ("UnknownColumn", "Order.tags"),
        ("WrongType", "Order.tags"),
    ]


def test_a_join_by_columns_that_are_not_unique_is_no_one(checked: Checked) -> None:
    report = checked(
        orders="""
class Product(Document, source="shop.products"):
    sku: str

class Order(Document, source="shop.orders"):
    product: Product | None = one(via="status", to="sku")

orders = projection(Order, to=elasticsearch("orders"))
"""
    )
    assert seen(report) == [("BadShape", "Order.product")]
    assert "unique" in report.findings[0].message + (report.findings[0].suggestion or "")


def test_a_file_may_import_its_neighbours(checked: Checked, tmp_path: Path) -> None:
    (tmp_path / "projections" / "_money.py").write_text("from decimal import Decimal\nZERO = Decimal()\n")

    report = checked(orders=GOOD + "\nfrom ._money import ZERO\n", more="from .orders import orders\n")

    assert report.findings == ()


def test_find_does_not_mind_what_is_wrong_elsewhere(checked: Checked, tmp_path: Path) -> None:
    checked(orders=GOOD, broken="def x(:\n")
    settings = Settings(projections=tmp_path / "projections")

    assert find(settings, "orders").id == "orders-v1"
    with pytest.raises(DefinitionError, match=r"broken\.py:\d+: SyntaxError"):
        find(settings, "other")


def test_find_says_what_was_meant(checked: Checked, tmp_path: Path) -> None:
    checked(orders=GOOD)

    with pytest.raises(DefinitionError, match="did you mean 'orders'"):
        find(Settings(projections=tmp_path / "projections"), "order")


def test_a_column_that_an_update_may_lose_is_a_warning(checked: Checked, tmp_path: Path) -> None:
    sizes = Column(name="sizes", type="numeric[]", nullable=False, toastable=True)
    key = Column(name="id", type="bigint", nullable=False)
    checked(
        boxes="""
class Box(Document, source="shop.boxes"):
    sizes: tuple[Decimal, ...]

boxes = projection(Box, to=elasticsearch("boxes"))
"""
    )
    boxes = discover(tmp_path / "projections")

    lossy = Catalog.of([Table(name="shop.boxes", columns=(key, sizes), primary_key=("id",))])
    whole = Catalog.of([Table(name="shop.boxes", columns=(key, sizes), primary_key=("id",), replica_identity="full")])

    assert [(f.level, f.error, f.subject) for f in check(boxes, lossy, sinks=RULES).findings] == [
        ("warning", "LostValue", "Box.sizes")
    ]
    assert check(boxes, whole, sinks=RULES).findings == ()


CARDS = """
class Customer(Document, source="shop.customers"):
    id: int
    email: str | None = hidden()

    @derived
    def domain(self) -> str:
        return (self.email or "").partition("@")[2]

class Order(Document, source="shop.orders"):
    id: int
    customer: Customer | None = one(via="customer_id")

class Product(Document, source="shop.products"):
    sku: str

orders = projection(Order, to=[elasticsearch("orders"), postgres("read.orders")])
products = projection(Product, to=[elasticsearch("products"), kafka("crm.products")])
"""


@pytest.mark.parametrize(
    ("withheld", "found"),
    [
        ({}, []),
        ({"redis": ("shop.customers.email",), "kafka": ("shop.customers.email",)}, []),
        ({"postgres": ("shop.customers.email",)}, [("Withheld", "Customer.email")]),
        ({"elasticsearch": ("shop.customers.email",)}, [("Withheld", "Customer.email")]),
        ({"kafka": ("shop.products.sku",)}, [("Withheld", "Product.sku")]),
        ({"elasticsearch": ("shop.products.*",)}, [("Withheld", "Product"), ("Withheld", "Product.sku")]),
        ({"redis": ("shop.customers.emial",)}, [("UnknownColumn", "redis.withheld")]),
    ],
)
def test_a_column_that_is_withheld_from_a_sink_is_in_none_of_its_documents(
    checked: Checked, withheld: dict[str, tuple[str, ...]], found: list[tuple[str, str]]
) -> None:
    report = checked(withheld=withheld, cards=f"from pipeline import hidden, kafka, postgres\n{CARDS}")
    assert sorted(seen(report)) == found
    for finding in report.findings:
        if finding.subject == "Customer.email":
            (kind,) = withheld
            assert finding.message.startswith(
                f"shop.customers.email is used, hidden, by the code of documents that go to {kind}"
            )


SEVERAL = GOOD.replace('to=elasticsearch("orders")', 'to=elasticsearch("orders"), workers=4')


def test_several_workers_share_out_what_has_one_root_and_are_told_what_goes_everywhere(checked: Checked) -> None:
    report = checked(orders=SEVERAL)
    assert report.ok
    (found,) = report.findings
    assert (found.error, found.level) == ("SentEverywhere", "hint")
    assert "shop.customers and shop.products go to all 4 partitions" in found.message


GROUPS = """
from pipeline import Aggregate, Document, count, elasticsearch, group, one, projection

class Buyer(Document, source="shop.customers"):
    name: str

class Sale(Document, source="shop.orders"):
    status: str
    customer_id: int
    buyer: Buyer | None = one(via="customer_id")

    @property
    def first(self) -> str:
        return self.status[:1]

class Sales(Aggregate, of=Sale):
    BY
    orders: int = count()

sales = projection(Sales, to=elasticsearch("sales"), workers=2)
"""


def test_groups_are_shared_out_by_a_column_of_their_rows(checked: Checked) -> None:
    report = checked(sales=GROUPS.replace("BY", "customer_id: int = group()"))
    assert report.ok
    (found,) = report.findings
    assert (found.error, found.level) == ("ToldEverywhere", "hint")
    assert "Updates of shop.orders are told to all 2 partitions, for customer_id of shop.orders" in found.message
    assert checked(sales=GROUPS.replace("BY", "first: str = group()\n    status: str = group()")).ok
    for computed in ("first: str = group()", 'name: str | None = group("buyer.name")'):
        report = checked(sales=GROUPS.replace("BY", computed))
        (found,) = [f for f in report.findings if f.level == "error"]
        assert found.error == "BadWorkers"
        assert "No field that it groups by is a column of shop.orders, of int, text or uuid" in found.message


@pytest.mark.parametrize(("change", "said"), [
    (("workers=4", "workers=4, across_sources=True"), "Tables of several sources"),
    (("workers=4", "workers=0"), "count from 1"),
])  # fmt: skip
def test_what_several_workers_can_not_have_is_refused_by_name(
    checked: Checked, change: tuple[str, str], said: str
) -> None:
    report = checked(orders=SEVERAL.replace(*change))
    assert [f.error for f in report.findings if f.level == "error"] == ["BadWorkers"]
    assert said.lower() in " ".join(f"{f.message} {f.suggestion}".lower() for f in report.findings)


@pytest.mark.parametrize(("kind", "refused"), [("postgres", False), ("mariadb", False), ("topics", True)])
def test_several_workers_want_transactions(checked: Checked, kind: str, refused: bool) -> None:
    tables = frozenset(CATALOG.tables)
    report = checked(orders=SEVERAL, connectors=[Captures("source", "", tables, kind=kind, foreign=refused)])
    said = " ".join(f.message for f in report.findings if f.error == "BadWorkers")
    assert ("Topics that others produce" in said) == refused
