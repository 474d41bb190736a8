"""The catalog: what is kept of the source's tables, and what is said about names it does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.authoring.catalog import Catalog, Column, Table, did_you_mean
from pipeline.errors import SettingsError, UnknownColumn, UnknownTable

ORDERS = Table(
    name="shop.orders",
    columns=(
        Column(name="id", type="bigint", nullable=False, default=True),
        Column(name="customer_id", type="bigint"),
        Column(name="note", type="text", toastable=True),
    ),
    primary_key=("id",),
    indexes=(("customer_id", "note"),),
)
CUSTOMERS = Table(name="shop.customers", columns=(), primary_key=("id",))


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "catalog.lock.json"
    catalog = Catalog.of([ORDERS, CUSTOMERS])
    assert catalog.save(path)
    assert Catalog.load(path) == catalog


def test_the_file_does_not_depend_on_the_order_of_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock.json"
    assert Catalog.of([ORDERS, CUSTOMERS]).save(path)
    assert not Catalog(tables={"shop.orders": ORDERS, "shop.customers": CUSTOMERS}).save(path)


def test_the_file_has_one_column_a_line() -> None:
    lines = Catalog.of([ORDERS]).text().splitlines()
    assert '        {"name": "note", "type": "text", "toastable": true}' in lines


def test_an_empty_catalog_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock.json"
    Catalog().save(path)
    assert Catalog.load(path) == Catalog()


def test_a_missing_catalog_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cdc tables pull"):
        Catalog.load(tmp_path / "catalog.lock.json")


def test_a_damaged_catalog_says_where(tmp_path: Path) -> None:
    path = tmp_path / "catalog.lock.json"
    path.write_text('{"tables": {"a.b": {"name": "a.b"}}}')
    with pytest.raises(SettingsError, match=r"tables\.a\.b\.columns"):
        Catalog.load(path)


def test_an_unknown_table_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownTable, match=r"did you mean 'shop\.orders'\?"):
        Catalog.of([ORDERS, CUSTOMERS]).table("shop.order")


def test_an_unknown_column_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UnknownColumn, match="did you mean 'customer_id'"):
        ORDERS.column("custmer_id")


def test_where_nothing_is_near_the_known_names_are_listed() -> None:
    assert did_you_mean("zzz", ["b", "a"]) == "; there are a, b."
    assert "cdc tables pull" in did_you_mean("zzz", [])


def test_an_index_helps_only_by_its_first_columns() -> None:
    assert ORDERS.indexed(["id"])
    assert ORDERS.indexed(["customer_id"])
    assert ORDERS.indexed(["note", "customer_id"])
    assert not ORDERS.indexed(["note"])


@pytest.mark.parametrize(
    ("type_", "base", "silent"),
    [
        ("text", None, False),
        ("numeric(12,2)", None, False),
        ("bytea", None, False),
        ("text[]", None, False),
        ("character varying(20)[]", None, False),
        ("numeric(12,2)[]", None, True),
        ("timestamp with time zone[]", None, True),
        ("shop.mood[]", None, True),
        ("bit varying(10)", None, True),
        ("polygon", None, True),
        ("shop.address", "composite", False),
    ],
)
def test_which_columns_can_not_say_unchanged(type_: str, base: str | None, silent: bool) -> None:
    assert Column(name="c", type=type_, base=base, toastable=True).unchanged_is_null is silent
    assert not Column(name="c", type=type_, base=base, toastable=False).unchanged_is_null
