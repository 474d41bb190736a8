"""Aggregates on the engine: what fails, what is exact, how groups are named, and what a wrong class is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import (
    Aggregate,
    Document,
    average,
    collect,
    count,
    count_distinct,
    derived,
    elasticsearch,
    group,
    latest,
    many,
    maximum,
    minimum,
    one,
    projection,
    total,
)
from pipeline.authoring.catalog import Catalog, Column, Table
from pipeline.authoring.discovery import look
from pipeline.authoring.projection import Projection
from pipeline.authoring.shape import shape_of
from pipeline.engine.engine import Engine, Inputs
from pipeline.engine.layout import lay_out
from pipeline.engine.measures import Sum, group_id, group_key
from pipeline.engine.mirror import Mirror
from pipeline.errors import BadShape, OperationError
from pipeline.operations.preview import preview
from pipeline.operations.refused import quarantined, retry_quarantined
from pipeline.operations.repair import counted
from pipeline.operations.status import mirror_file
from pipeline.ports import APPLIED
from pipeline.settings import Settings
from pipeline.testing.source import SourceModel


class Payment(Document, source="shop.payments"):
    id: int
    country: str | None
    amount: Decimal
    share: float | None
    status: str
    paid_at: datetime

    @derived
    def parts(self) -> Decimal:
        return self.amount / len(self.status)

    @property
    def day(self) -> date:
        return self.paid_at.date()


class Daily(Aggregate, of=Payment):
    country: str | None = group()
    payments: int = count()
    revenue: Decimal = total("amount")
    mean: Decimal = average("amount", places=2)
    shares: float = total("share")
    parts: Decimal | None = maximum("parts")
    dearest: Decimal = maximum("amount")
    last_status: str = latest("status", by="paid_at")


class Groups:
    """A source, an engine and what a sink would hold."""

    def __init__(self, folder: Path, shape: type[Aggregate], keys: dict[str, tuple[str, ...]]) -> None:
        self.source = SourceModel(keys)
        self.mirror = Mirror(str(folder / "mirror.db"), lay_out(shape_of(shape)), owner="one")
        with self.mirror.checkpoint():
            self.sink = self.mirror.sink_id("memory")
        self.engine = Engine(self.mirror, Inputs(self.source.topics, self.source.boundaries, "shop"))
        self.reader = self.engine.reader()
        self.read = dict.fromkeys(self.source.log, 0)
        self.documents: dict[str, Any] = {}
        self.written: list[str] = []

    def follow(self) -> None:
        """Read, fold and write all there is."""
        self.source.produce()
        for name, log in self.source.log.items():
            self.engine.receive(name, log[self.read[name] :])
            self.read[name] = len(log)
        self.engine.step()
        if self.engine.wants_cut:
            self.engine.catch_up({})
            self.engine.step()
        while self.engine.continue_fanout():
            pass
        self.write()

    def write(self) -> None:
        taken = self.reader.take(self.sink, 1000, 1)
        for write in taken.writes:
            self.written.append(write.id)
            if write.document is None:
                self.documents.pop(write.id, None)
            else:
                self.documents[write.id] = json.loads(write.document)
        self.engine.settle(taken, [APPLIED] * len(taken.writes))
        self.reader.landed(taken)

    @property
    def quarantine(self) -> dict[str, tuple[str, str]]:
        return {k: (kind, error) for k, kind, error in self.mirror.db.execute("SELECT k0, kind, error FROM quarantine")}

    def pay(self, id: int, amount: str = "1.00", country: str | None = "NO", **more: Any) -> None:
        row = {"id": id, "country": country, "amount": amount, "share": None, "status": "captured"}
        self.source.insert("shop.payments", {**row, "paid_at": f"2026-01-01T00:00:{id:02}.000000Z", **more})

    def close(self) -> None:
        self.reader.close()
        self.mirror.close()


@pytest.fixture
def payments(tmp_path: Path) -> Iterator[Groups]:
    groups = Groups(tmp_path, Daily, {"shop.payments": ("id",)})
    yield groups
    groups.close()


# ---- what fails -------------------------------------------------------------------------------------------


def test_a_document_whose_code_raises_holds_back_its_group_alone_until_it_comes_right(payments: Groups) -> None:
    payments.pay(1)
    payments.pay(2, country="SE")
    payments.follow()
    payments.source.update("shop.payments", (1,), status="")
    payments.pay(3)
    payments.pay(4, country="SE")
    payments.follow()
    assert payments.documents["NO"]["payments"] == 1 and payments.documents["SE"]["payments"] == 2
    kind, error = payments.quarantine['["NO"]']
    assert kind == "failed" and error.startswith("shop.payments 1: ")
    payments.source.update("shop.payments", (1,), status="refunded", amount="2.00")
    payments.follow()
    assert (payments.documents["NO"]["payments"], payments.documents["NO"]["revenue"]) == (2, "3.00")
    assert not payments.quarantine


def test_a_new_document_that_fails_holds_back_the_group_it_belongs_to(payments: Groups) -> None:
    payments.pay(1)
    payments.pay(2, status="")
    payments.follow()
    assert payments.documents == {} and list(payments.quarantine) == ['["NO"]']
    payments.source.delete("shop.payments", (2,))
    payments.follow()
    assert payments.documents["NO"]["payments"] == 1 and not payments.quarantine


def test_a_document_whose_group_nobody_can_tell_is_in_quarantine_by_its_own_key(tmp_path: Path) -> None:
    groups = Groups(tmp_path, ByDay, {"shop.payments": ("id",)})
    groups.pay(1)
    groups.pay(2, paid_at="infinity")
    groups.follow()
    assert groups.documents == {"2026-01-01": {"day": "2026-01-01", "payments": 1}}
    assert list(groups.quarantine) == ['{"shop.payments":[2]}']
    groups.source.update("shop.payments", (2,), paid_at="2026-01-02T00:00:00.000000Z")
    groups.follow()
    assert set(groups.documents) == {"2026-01-01", "2026-01-02"} and not groups.quarantine
    groups.close()


class ByDay(Aggregate, of=Payment):
    day: date = group()
    payments: int = count()


def test_a_retried_group_that_still_fails_goes_back_to_quarantine(payments: Groups) -> None:
    payments.pay(1, status="")
    payments.follow()
    payments.engine.retry(payments.sink)
    payments.write()
    assert list(payments.quarantine) == ['["NO"]'] and payments.documents == {}


# ---- what is written --------------------------------------------------------------------------------------


def test_a_change_that_no_measure_sees_writes_nothing(payments: Groups) -> None:
    payments.pay(1, share=0.5)
    payments.follow()
    written = len(payments.written)
    payments.source.update("shop.payments", (1,), amount="1.00")
    payments.source.update("shop.payments", (1,), share=0.5)
    payments.follow()
    assert len(payments.written) == written


def test_the_last_document_takes_its_group_with_it_and_another_brings_it_back(payments: Groups) -> None:
    payments.pay(1)
    payments.follow()
    payments.source.update("shop.payments", (1,), country=None)
    payments.follow()
    assert set(payments.documents) == {"[null]"}
    assert not list(payments.mirror.db.execute("SELECT 1 FROM grouped WHERE g = '[\"NO\"]'"))
    payments.source.update("shop.payments", (1,), country="NO")
    payments.follow()
    assert set(payments.documents) == {"NO"} and payments.documents["NO"]["revenue"] == "1.00"


def test_a_deleted_maximum_uncovers_the_older_value_and_scales_follow_what_is_there(payments: Groups) -> None:
    for id, amount in enumerate(("9.5", "10.25", "-3"), 1):
        payments.pay(id, amount)
    payments.follow()
    assert payments.documents["NO"]["dearest"] == "10.25" and payments.documents["NO"]["revenue"] == "16.75"
    payments.source.delete("shop.payments", (2,))
    payments.follow()
    assert payments.documents["NO"]["dearest"] == "9.5" and payments.documents["NO"]["revenue"] == "6.5"
    payments.source.delete("shop.payments", (1,))
    payments.follow()
    assert payments.documents["NO"]["dearest"] == payments.documents["NO"]["revenue"] == "-3"
    assert payments.documents["NO"]["mean"] == "-3.00"


def test_numbers_that_are_none_sum_as_the_source_sums_them(payments: Groups) -> None:
    payments.pay(1, "NAN")
    payments.pay(2, "5")
    payments.follow()
    assert (payments.documents["NO"]["revenue"], payments.documents["NO"]["dearest"]) == ("NaN", "NaN")
    payments.source.delete("shop.payments", (1,))
    payments.follow()
    assert (payments.documents["NO"]["revenue"], payments.documents["NO"]["dearest"]) == ("5", "5")


# ---- sums -------------------------------------------------------------------------------------------------

NUMBERS = st.lists(st.decimals(allow_nan=False, allow_infinity=False, places=None), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(NUMBERS, st.data())
def test_a_sum_is_exact_whatever_came_and_went(numbers: list[Decimal], data: st.DataObject) -> None:
    if any(abs(n.adjusted()) > 5000 for n in numbers):
        return
    known = Sum()
    for number in numbers:
        known.add(str(number), 1, exact=False)
    gone = data.draw(st.lists(st.sampled_from(range(len(numbers))), unique=True, max_size=len(numbers) - 1))
    for i in gone:
        known.add(str(numbers[i]), -1, exact=False)
    left = [n for i, n in enumerate(numbers) if i not in gone]
    assert Fraction(json.loads(known.text("decimal"))) == sum(map(Fraction, left))
    assert known.n == len(left)
    assert "E" not in known.text("decimal")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8), st.data())
def test_a_sum_of_floats_does_not_remember_what_went(numbers: list[float], data: st.DataObject) -> None:
    known = Sum()
    for number in numbers:
        known.add(repr(number), 1, exact=True)
    gone = data.draw(st.lists(st.sampled_from(range(len(numbers))), unique=True, max_size=len(numbers) - 1))
    for i in gone:
        known.add(repr(numbers[i]), -1, exact=True)
    left = sum((Fraction(n) for i, n in enumerate(numbers) if i not in gone), Fraction())
    assert Fraction(known.total) == left


# ---- names of groups --------------------------------------------------------------------------------------


def test_no_two_groups_have_one_id() -> None:
    values = [None, "", "null", "[null]", '{"a":[1]}', "[", "x" * 600, "ü", "2026-01-01"]
    keys = [json.dumps([v], ensure_ascii=False, separators=(",", ":")) for v in values]
    ids = [group_id(key) for key in (*keys, '{"a":[1]}')]
    assert len(set(ids[:-1])) == len(values) and all(ids) and all(len(id.encode()) <= 512 for id in ids)
    assert ids[-2] == "2026-01-01"


def test_a_typed_key_finds_its_group() -> None:
    shape: Any = shape_of(Daily)
    assert group_key(shape, ["NO"]) == '["NO"]'
    assert group_key(shape, ["null"]) == group_key(shape, [None]) == "[null]"
    with pytest.raises(OperationError, match="give 1 values"):
        group_key(shape, ["NO", "x"])


# ---- preview ----------------------------------------------------------------------------------------------


class Rows:
    """The source's rows, in memory."""

    def first(self, table: Table, columns: Sequence[str], limit: int) -> list[dict[str, Any]]:
        at = "2026-01-01T00:00:00.000000Z"
        return [
            {"id": n, "country": "NO", "amount": "1.50", "share": None, "status": "x", "paid_at": at} for n in range(3)
        ]

    def matching(self, *_: Any) -> list[dict[str, Any]]:
        return []


def test_preview_counts_the_first_rows() -> None:
    columns = ("id bigint", "country text", "amount numeric(9,2)", "share real", "status text", "paid_at timestamptz")
    of = [Column(name=c.split()[0], type=c.split(" ", 1)[1], nullable=c.startswith(("c", "sh"))) for c in columns]
    catalog = Catalog.of([Table(name="shop.payments", columns=tuple(of), primary_key=("id",))])
    found = preview(projection(Daily, to=elasticsearch("daily")), catalog, Rows())
    assert [(p.document or {})["revenue"] for p in found] == ["4.50"]
    missing = preview(projection(Daily, to=elasticsearch("daily")), catalog, Rows(), keys=["SE"])
    assert missing[0].document is None and "none of the first 1,000 rows" in missing[0].reason


# ---- wrong classes ----------------------------------------------------------------------------------------


class Line(Document, source="shop.lines"):
    amount: Decimal


class Buyer(Document, source="shop.buyers"):
    name: str


class Order(Document, source="shop.orders"):
    id: int
    status: str
    note: str | None
    tags: tuple[str, ...]
    data: dict[str, Any]
    weight: float
    placed_at: datetime
    buyer: Buyer | None = one(via="buyer_id")
    lines: tuple[Line, ...] = many(by="order_id")

    @property
    def vague(self):  # type: ignore[no-untyped-def]
        return 1


def wrong(**fields: tuple[Any, Any]) -> str:
    body = {"__annotations__": {n: a for n, (a, _) in fields.items()}, "__module__": __name__}
    made = type(Aggregate)("Wrong", (Aggregate,), {**body, **{n: m for n, (_, m) in fields.items()}}, of=Order)
    with pytest.raises(BadShape) as caught:
        shape_of(made)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("annotation", "mark", "said"),
    [
        (str, lambda: group("statsu"), "no field 'statsu'; did you mean 'status'?"),
        (str, lambda: group("buyer.nam"), "Buyer has no field 'nam'; did you mean 'name'?"),
        (str, lambda: group("buyer.name"), "which may be null; write str | None"),
        (str, lambda: group("buyer"), "is a document; name a field of it, buyer.name"),
        (str, lambda: group("lines"), "is a list of documents"),
        (Decimal, lambda: total("lines.amount"), "is a list; name a field of Order itself"),
        (str, lambda: group("tags"), "which is a list; group by a single value"),
        (float, lambda: group("weight"), "groups by a float"),
        (str, lambda: group("note"), "which may be null; write str | None"),
        (int, lambda: group("status"), "is int, and status is str; write it: str"),
        (str, count, "count() gives int; write it: int"),
        (str, lambda: count_distinct("status"), "gives int"),
        (int, lambda: count_distinct("data"), "is json, whose values are not told apart"),
        (str, lambda: total("status"), "adds up status, which is text; total an int, Decimal or float"),
        (int, lambda: total("weight"), "is int, and weight is float"),
        (Decimal, lambda: average("weight"), "gives float; write it: float"),
        (Decimal, lambda: average("status"), "averages status, which is text"),
        (Decimal, lambda: average("id", places=-1), "write places=0 to 100"),
        (str, lambda: minimum("note"), "may be null for all of a group; write str | None"),
        (Any, lambda: maximum("data"), "is json, which has no order"),
        (
            str,
            lambda: latest("status"),
            "nobody knows which is the latest; name what orders them, latest('status', by=…)",
        ),
        (str, lambda: latest("status", by="data"), "is json, which has no order; order by another field"),
        (str, lambda: collect("status"), "collects status; write tuple[str, ...]"),
        (tuple[str, ...], lambda: collect("status", limit=0), "write limit=1 or more"),
        (tuple[dict[str, Any], ...], lambda: collect("data"), "has no order; name one"),
        (int, lambda: total("vague"), "does not say what it gives; write its type"),
    ],
)
def test_a_wrong_field_is_told_what_to_write(annotation: Any, mark: Callable[[], Any], said: str) -> None:
    found = wrong(it=(annotation, mark()))
    assert "Wrong.it" in found and said in found


def test_all_that_is_wrong_is_said_at_once() -> None:
    found = wrong(a=(str, count()), b=(str, group("x")), c=(Decimal, total("status"))).splitlines()
    assert [line.partition("Wrong.")[2][0] for line in found] == ["a", "b", "c"]


def test_what_an_aggregate_would_silently_ignore_is_an_error() -> None:
    class Kept(Aggregate, of=Order):
        n: int = count()

        @derived
        def twice(self) -> int:
            return 2 * self.n

        def keep(self) -> bool:
            return self.n > 1

    with pytest.raises(BadShape) as caught:
        shape_of(Kept)
    assert "Kept.twice is @derived" in str(caught.value) and "Kept.keep is never asked" in str(caught.value)


def test_an_aggregate_of_nothing_is_told_of_what_it_may_be() -> None:
    class Lonely(Aggregate):
        n: int = count()

    class Told(Aggregate, of="shop.orders"):  # type: ignore[arg-type]
        n: int = count()

    for made in (Lonely, Told):
        with pytest.raises(BadShape, match=rf"write class {made.__name__}\(Aggregate, of=MyDocument\)"):
            shape_of(made)


def test_check_names_the_line_of_the_field_and_not_that_of_the_class(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    found = look(tmp_path).problems
    assert [(p.error, p.line, p.subject) for p in found] == [
        ("BadShape", 10, "Sales.day"), ("BadShape", 12, "Sales.revenue"),
    ]  # fmt: skip


WRONG = """
from datetime import date
from decimal import Decimal
from pipeline import Aggregate, Document, count, elasticsearch, group, projection, total

class Sale(Document, source="shop.orders"):
    status: str

class Sales(Aggregate, of=Sale):
    day: date = group()
    orders: int = count()
    revenue: Decimal = total("status")

sales = projection(Sales, to=elasticsearch("sales"))
"""


def settings_with_mirror(folder: Path, of: Projection[Any]) -> Settings:
    """Settings by which operations find the mirror of `payments`."""
    own = Settings(state_dir=folder / "state")
    file = mirror_file(own, of.id)
    file.parent.mkdir(parents=True)
    file.symlink_to(folder / "mirror.db")
    return own


def test_quarantined_groups_are_listed_and_retried_by_their_values(payments: Groups, tmp_path: Path) -> None:
    payments.pay(1, status="")
    payments.follow()
    daily = projection(Daily, to=elasticsearch("daily"))
    own = settings_with_mirror(tmp_path, daily)
    assert [one.key for one in quarantined(own, daily)] == [["NO"]]
    assert retry_quarantined(own, daily, [["NO"]]) == 1
    assert quarantined(own, daily) == []


def test_repair_finds_what_a_mirror_counts_in_a_group_and_what_it_fails_to_count(
    payments: Groups, tmp_path: Path
) -> None:
    payments.pay(1)
    payments.pay(2, country="SE")
    payments.pay(3, status="")
    payments.follow()
    daily = projection(Daily, to=elasticsearch("daily"))
    own = settings_with_mirror(tmp_path, daily)
    assert counted(own, daily, ['["NO"]']) == {(1,), (3,)}
    assert counted(own, daily, ['["SE"]', '["DK"]']) == {(2,)}


# ---- the guide --------------------------------------------------------------------------------------------


def test_the_guide_is_an_aggregate_that_compiles_and_names_every_measure(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/guides/aggregates.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "daily.py").write_text(code)
    found = look(tmp_path)
    assert not found.problems
    shape: Any = shape_of(found.projections["daily-sales"].shape)
    assert shape.key == ("day", "buyer") and {m.name for m in shape.members} == {
        "day", "buyer", "orders", "customers", "revenue", "last_status",
    }  # fmt: skip
    for measure in ("average", "collect", "count", "count_distinct", "latest", "maximum", "minimum", "total"):
        assert f"`{measure}(" in text
