"""Columns that a connector masks: no value leaves the source in clear, and what reads the source itself says the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipeline.settings import Endpoints
from tests.support.mariadb import database, define
from tests.support.project import Project
from tests.support.topics import everything_in

pytestmark = pytest.mark.stack

SALT = "pepper-of-these-tests"
LONG = "('long-secret-' || (SELECT string_agg(md5(i::text), '') FROM generate_series(1, 1000) i))"
TABLES = f"""
CREATE SCHEMA shop;
CREATE TABLE shop.customers (id int PRIMARY KEY, name text NOT NULL, email text, phone varchar(20), note text, visits int NOT NULL);
ALTER TABLE shop.customers REPLICA IDENTITY FULL;
CREATE TABLE shop.contacts (id int PRIMARY KEY, email text, iban varchar(40));
INSERT INTO shop.contacts VALUES (1, 'ada@open.example', 'AT61190430023457'), (2, NULL, NULL), (3, 'ÄÖ', '12'), (4, '', 'DE😀1234😀');
CREATE TABLE shop.orders (id int PRIMARY KEY, customer_id int NOT NULL);
INSERT INTO shop.customers VALUES (1, 'Ada Secret', 'ada@secret.example', '0043-secret', 'note-secret', 0), (2, 'Bö Secret', NULL, NULL, NULL, 0),
  (3, 'Cy Secret', {LONG}, '', {LONG}, 0);
INSERT INTO shop.orders SELECT i, i FROM generate_series(1, 3) i;
"""
MASK = """
[mask]
"shop.customers.name" = "hash"
"shop.customers.email" = "hash"
"shop.customers.phone" = "hash"
"shop.customers.note" = "redact"
"""
ORDERS = """
from pipeline import Document, elasticsearch, one, projection

class Customer(Document, source="shop.customers"):
    name: str
    email: str | None
    phone: str | None
    note: str | None
    visits: int

class Order(Document, source="shop.orders"):
    id: int
    customer: Customer | None = one(via="customer_id")

orders = projection(Order, to=elasticsearch("ALIAS-orders"))
"""
CONTACTS = """
from pipeline import Aggregate, Document, count, derived, elasticsearch, group, hashed, masked, projection

class Contact(Document, source="shop.contacts"):
    id: int
    email: str | None = hashed()
    number: str | None = masked("iban", keep=4)

    @derived
    def known(self) -> bool:
        return len(self.email or "") == 64

class Mail(Aggregate, of=Contact):
    email: str | None = group()
    contacts: int = count()

contacts = projection(Contact, to=elasticsearch("ALIAS-contacts"))
mails = projection(Mail, to=elasticsearch("ALIAS-mails"))
"""
SHOWN = f"""
SELECT id::text, jsonb_build_object('id', id, 'email', encode(sha256(convert_to('{SALT}' || email, 'UTF8')), 'hex'),
  'number', CASE WHEN length(iban) > 4 THEN '***' || right(iban, 4) WHEN iban IS NOT NULL THEN '***' END, 'known', email IS NOT NULL)
FROM shop.contacts
"""
EXPECTED = f"""
SELECT o.id::text, jsonb_build_object('id', o.id, 'customer', jsonb_build_object(
  'name', encode(sha256(convert_to('{SALT}' || c.name, 'UTF8')), 'hex'),
  'email', encode(sha256(convert_to('{SALT}' || c.email, 'UTF8')), 'hex'),
  'phone', left(encode(sha256(convert_to('{SALT}' || c.phone, 'UTF8')), 'hex'), 20),
  'note', '***', 'visits', c.visits))
FROM shop.orders o LEFT JOIN shop.customers c ON c.id = o.customer_id
"""


@pytest.fixture(scope="module")
def shop(new_project: Callable[[str], Project]) -> Iterator[Project]:
    project = new_project("it_mask")
    project.settings["CDC_MASK__SALT"] = SALT
    project.create_with(
        TABLES, ["shop.customers", "shop.orders", "shop.contacts"], {"orders": ORDERS, "contacts": CONTACTS}, MASK
    )
    for name in ("orders", "contacts", "mails"):
        project.start_worker(f"{project.name}-{name}")
    yield project


def verified(project: Project, name: str = "orders") -> dict[str, Any]:
    done = project.cdc("verify", f"{project.name}-{name}", "--all", "-o", "json", check=False)
    found = json.loads(done.stdout)["sinks"][0]
    return {name: found[name] for name in ("checked", "missing", "extra", "different")}


def test_snapshot_stream_and_backfill_are_masked_and_verify_and_preview_say_the_same(shop: Project) -> None:
    shop.wait_for(shop.sql("SELECT 1"))
    shop.assert_equal(query=EXPECTED)
    shop.sql("INSERT INTO shop.customers VALUES (4, 'Dee Secret', 'dee@secret.example', '1', NULL, 0)")
    shop.wait_for(shop.sql("UPDATE shop.orders SET customer_id = 4 WHERE id = 2"))
    shop.assert_equal(query=EXPECTED)
    shop.cdc("backfill", "shop.customers", "--wait")

    shop.assert_equal(query=EXPECTED)
    assert verified(shop) == {"checked": 3, "missing": 0, "extra": 0, "different": 0}
    shown = json.loads(shop.cdc("preview", f"{shop.name}-orders", "2").stdout)
    stored = shop.document(2) or {}
    assert shown == {name: stored[name] for name in shown} and shown["customer"]["email"]


def test_a_long_value_that_an_update_leaves_alone_keeps_its_hash(shop: Project) -> None:
    shop.wait_for(shop.sql("UPDATE shop.customers SET visits = visits + 1"))

    shop.assert_equal(query=EXPECTED)
    assert verified(shop)["different"] == 0


def test_fields_that_a_projection_masks_are_verified_and_previewed(shop: Project) -> None:
    lsn = shop.sql("INSERT INTO shop.contacts VALUES (5, 'ada@open.example', '12345')")
    for name, documents in (("contacts", 5), ("mails", 4)):
        shop.wait_for(lsn, name=name)
        assert verified(shop, name) == {"checked": documents, "missing": 0, "extra": 0, "different": 0}
    shop.assert_equal("contacts", SHOWN)
    shown = json.loads(shop.cdc("preview", f"{shop.name}-contacts", "1").stdout)
    assert shown == {name: (shop.document(1, "contacts") or {})[name] for name in shown}
    held = httpx.get(f"{shop.endpoints.elasticsearch}/{shop.name}-contacts/_search", params={"size": 10}).text
    assert "open.example" not in held and "AT61" not in held


def test_kafka_and_the_mirror_never_had_a_value_in_clear(shop: Project, stack: Endpoints) -> None:
    shop.wait_for(shop.sql("DELETE FROM shop.customers WHERE id = 1"))

    held = everything_in(stack.kafka, f"{shop.name}.")
    mirror = b"".join(path.read_bytes() for path in (shop.folder / ".cdc" / "mirrors").iterdir())

    assert held.count(b"shop") > 5 and b"customers" in mirror
    assert b"ecret" not in held and b"open.example" in held, "contacts are masked later"
    assert b"ecret" not in mirror


def test_the_salt_is_never_shown(shop: Project) -> None:
    shop.settings["CDC_MASK__SALT"] = "another-salt-altogether"
    try:
        said = [
            shop.cdc("connector", "apply", shop.name, "--dry-run"),
            shop.cdc("connector", "show", shop.name),
            shop.cdc("config", "show", check=False),
            shop.cdc("verify", f"{shop.name}-orders", "--all", check=False),
        ]
    finally:
        shop.settings["CDC_MASK__SALT"] = SALT
    text = "".join(done.stdout + done.stderr for done in said) + shop.log(10_000)
    assert "column.mask.hash.v2.SHA-256.with.salt.**********" in said[0].stdout + said[0].stderr
    assert said[3].returncode == 3, "other hashes are differences"
    assert SALT not in text and "another-salt" not in text

    del shop.settings["CDC_MASK__SALT"]
    refused = shop.cdc("verify", f"{shop.name}-orders", "--all", check=False)
    shop.settings["CDC_MASK__SALT"] = SALT
    assert refused.returncode == 1 and "set mask.salt" in refused.stderr


def test_what_can_not_be_masked_is_refused_before_anything_changes(shop: Project) -> None:
    path = shop.folder / "connectors/debezium" / f"{shop.name}.toml"
    good = path.read_text()
    wrong = {
        '"shop.customers.id" = "hash"': "primary key",
        '"shop.customers.visits" = "redact"': "integer, and Debezium masks texts only",
        '"shop.customers.mail" = "hash"': "no column 'mail'",
        '"shop.strangers.mail" = "hash"': "of no table in `tables`",
        '"shop.customers.name" = "truncate:4"': "Input should be 'hash' or 'redact'",
    }
    try:
        for line, says in wrong.items():
            path.write_text(good.replace(MASK, f"\n[mask]\n{line}\n"))
            refused = shop.cdc("connector", "apply", shop.name, "--yes", check=False)
            assert refused.returncode and says in refused.stderr.replace("\n", " "), refused.stderr
        shop.sql("ALTER TABLE shop.customers REPLICA IDENTITY DEFAULT")
        path.write_text(good)
        refused = shop.cdc("connector", "apply", shop.name, "--yes", check=False)
        assert refused.returncode and "REPLICA IDENTITY FULL" in refused.stderr
        found = json.loads(shop.cdc("check", "-o", "json", check=False).stdout)["findings"]
        assert [f["error"] for f in found].count("BadMask") == 3
    finally:
        path.write_text(good)
        shop.sql("ALTER TABLE shop.customers REPLICA IDENTITY FULL")


def test_mariadb_is_masked_too(new_project: Callable[[str], Project], mariadb: str, tmp_path: Path) -> None:
    project = new_project("it_mmask")
    project.settings["CDC_MASK__SALT"] = SALT
    name = f"{project.name}_m"
    table = "CREATE TABLE DB.customers (id INT PRIMARY KEY, name VARCHAR(20) NOT NULL, email VARCHAR(100), long_note TEXT, note LONGTEXT)"
    model = f"""
from pipeline import Document, elasticsearch, projection

class Customer(Document, source="{name}.customers"):
    id: int
    name: str
    email: str | None
    long_note: str | None
    note: str | None

orders = projection(Customer, to=elasticsearch("ALIAS-orders"))
"""
    with database(mariadb, name, table) as own:
        own.sql("INSERT INTO DB.customers VALUES (1, 'Ada ü', 'ada@x.example', 'n', 'n'), (2, 'Bo', NULL, NULL, NULL)")

        def second(project: Project) -> None:
            mask = "".join(f'"{name}.customers.{column}" = "hash"\n' for column in ("name", "email", "long_note"))
            define(
                project,
                own,
                ["customers"],
                f'mask."{name}.customers.note" = "redact"\n' + "".join(f"mask.{line}\n" for line in mask.splitlines()),
            )
            project.cdc("connector", "apply", name, "--yes")
            project.cdc("tables", "pull")

        project.before_connector = second
        schema = "CREATE SCHEMA shop; CREATE TABLE shop.stores (id int PRIMARY KEY, city text NOT NULL);"
        project.create_with(schema, ["shop.stores"], {"orders": model}, pulled=False)
        project.start_worker()
        at = own.sql("INSERT INTO DB.customers VALUES (3, 'Cy', 'cy@x.example', REPEAT('x', 200), 'y')")
        project.cdc("wait", f"{project.name}-orders", "--lsn", str(at), "--timeout", "90")
        try:
            hashed = (
                f"SELECT id, LEFT(SHA2(CONCAT('{SALT}', name), 256), 20), SHA2(CONCAT('{SALT}', email), 256),"
                f" SHA2(CONCAT('{SALT}', long_note), 256), '***' FROM DB.customers ORDER BY id"
            )
            fields = ("id", "name", "email", "long_note", "note")
            right = [dict(zip(fields, row, strict=True)) for row in own.rows(hashed)]
            held = [project.document(key) or {} for key in (1, 2, 3)]
            assert [{field: one.get(field) for field in fields} for one in held] == right
            assert verified(project) == {"checked": 3, "missing": 0, "extra": 0, "different": 0}
        finally:
            project.stop_workers()
            project.cdc("connector", "delete", name, "--drop-slot", "--yes")
