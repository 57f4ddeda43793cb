"""Every change of a user, a product or a sale leaves its event in the outbox of its database, on every path."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import orjson
import psycopg
import pytest

from domain.topology import Topology, outbox_partition
from tests.backoffice.sale_probes import restock
from tests.contract.event_formats import check_document
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_people import People

Events = list[tuple[str, int, dict[str, Any]]]


def told(dsn: str, key: str | None = None) -> Events:
    """Type, version and data of each event about users, products and sales, in order; each is checked."""
    found: Events = []
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT destination, partition, events FROM outbox WHERE destination LIKE 'events.%' ORDER BY id"
        ).fetchall()
    for destination, partition, events in rows:
        for event in events:
            check_document(destination, event, orjson.dumps(event["data"]))
            assert partition == outbox_partition(event["key"]), "as Python computes it"
            if key in (None, event["key"]):
                found.append((event["type"], event["version"], event["data"]))
    ids = [(destination, event["id"]) for destination, _, events in rows for event in events]
    assert len(ids) == len(set(ids))
    return found


def kinds(events: Events) -> list[str]:
    assert [version for _, version, _ in events] == sorted({version for _, version, _ in events}), "versions grow"
    return [kind for kind, _, _ in events]


def test_products(staff: Staff, databases: Databases) -> None:
    product = staff.product(attributes={"colour": "red", "most": 2**53 - 1}, description="ü")
    path = f"/v1/products/{product['id']}"
    assert (
        staff.http.patch(path, json={"price_minor": 5, "active": False}, headers={"If-Match": '"1"'}).status_code == 200
    )
    assert staff.http.patch(path, json={"name": "B"}, headers={"If-Match": '"1"'}).status_code == 412, "tells nothing"
    assert staff.http.delete(path, headers={"If-Match": '"2"'}).status_code == 204
    events = told(databases.catalogue_dsn, product["id"])
    assert kinds(events) == ["product.created", "product.changed", "product.deleted"]
    assert [version for _, version, _ in events] == [1, 2, 3]
    assert events[0][2] == {
        "product_id": product["id"], "sku": product["sku"], "name": "A thing", "description": "ü", "price_minor": 1999,
        "currency": "EUR", "attributes": {"colour": "red", "most": 2**53 - 1}, "active": True,
    }  # fmt: skip
    assert (events[1][2]["price_minor"], events[1][2]["active"]) == (5, False)
    assert events[2][2] == {"product_id": product["id"], "sku": product["sku"]}


def test_an_import_tells_of_what_it_changes(staff: Staff, databases: Databases) -> None:
    lines = [{"sku": f"I-{number}", "name": "N", "price_minor": 1, "currency": "EUR"} for number in range(40)]
    body = {"items": lines}
    dry = staff.http.post("/v1/products/import", json={**body, "dry_run": True})
    assert dry.status_code == 200, dry.text
    assert told(databases.catalogue_dsn) == []
    assert staff.http.post("/v1/products/import", json=body).status_code == 200
    lines[7]["price_minor"] = 2
    assert staff.http.post("/v1/products/import", json=body).status_code == 200
    events = told(databases.catalogue_dsn)
    assert [kind for kind, _, _ in events] == ["product.created"] * 40 + ["product.changed"]
    assert {data["sku"] for _, _, data in events[:40]} == {line["sku"] for line in lines}
    assert (events[40][1], events[40][2]["sku"], events[40][2]["price_minor"]) == (2, "I-7", 2)
    with psycopg.connect(databases.catalogue_dsn) as connection:
        row = connection.execute("SELECT count(*) FROM outbox").fetchone()
    assert row is not None and row[0] <= 17, "a row for each partition of a statement"


def test_sales(staff: Staff, databases: Databases) -> None:
    sale = staff.draft(stock=10, skus=2)
    path = f"/v1/sales/{sale['id']}"
    items = [{**item, "stock": 12} for item in sale["items"][:1]]
    changed = staff.http.patch(path, json={"items": items}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200, changed.text
    for verb in ("publish", "pause", "pause", "resume"):
        assert staff.act(sale, verb).status_code == 200
    assert staff.http.patch(path, json={"name": "Later"}).status_code == 200
    for _ in range(2):
        assert restock(staff, sale, "more", sku=sale["items"][0]["sku"], quantity=3).status_code == 200
    assert staff.act(sale, "end").status_code == 200
    events = told(databases.catalogue_dsn, sale["id"])
    assert kinds(events) == [
        "sale.created", "sale.changed", "sale.published", "sale.paused", "sale.resumed", "sale.changed",
        "sale.restocked", "sale.ended",
    ]  # fmt: skip
    created, drafted, published, paused, _, renamed, restocked, ended = (data for _, _, data in events)
    assert created["items"] == sale["items"] and created["stage"] == "draft"
    assert drafted["items"] == items, "the items as they were committed"
    assert (published["stage"], paused["paused"], renamed["name"], ended["ended"]) == ("published", True, "Later", True)
    assert restocked == {"sale_id": sale["id"], "sku": sale["items"][0]["sku"], "quantity": 3}
    assert created["ends_at_ms"] == 4_070_908_800_000 > ended["ends_at_ms"]


def test_a_deleted_draft(staff: Staff, databases: Databases) -> None:
    sale = staff.draft()
    assert staff.http.delete(f"/v1/sales/{sale['id']}").status_code == 204
    events = told(databases.catalogue_dsn, sale["id"])
    assert kinds(events) == ["sale.created", "sale.deleted"]
    assert events[1][2] == {"sale_id": sale["id"], "name": "Sale"}


def test_users(people: People, databases: Databases) -> None:
    admin, user = people.make("admin"), people.make(verified=False)
    dsn = databases.shard_dsns[Topology().shard_of_user(user.id)]
    assert user.http.patch("/v1/users/me/preferences", json={"language": "de"}).status_code == 200
    assert user.http.patch("/v1/users/me/preferences", json={"email": {"order_paid": False}}).status_code == 200, (
        "tells nothing"
    )
    assert user.http.patch("/v1/users/me", json={"name": "Other"}).status_code == 200, (
        "tells nothing: names are personal"
    )
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE users SET verified_email_folded = email_folded WHERE id = %s", (user.id,))
    answer = admin.http.patch(f"/v1/users/{user.id}", json={"role": "staff"})
    assert answer.status_code == 200, answer.text
    assert admin.http.delete(f"/v1/users/{user.id}").status_code == 204
    events = told(dsn, str(user.id))
    assert kinds(events) == ["user.registered", *["user.changed"] * 3, "user.erased"]
    assert [(data.get("role"), data["state"], data.get("language")) for _, _, data in events] == [
        ("buyer", "unverified", None), ("buyer", "unverified", "de"), ("buyer", "verified", "de"),
        ("staff", "verified", "de"), (None, "erased", None),
    ]  # fmt: skip
    assert {UUID(data["user_id"]) for _, _, data in events} == {user.id}
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT events::text FROM outbox WHERE destination = 'events.users'").fetchall()
    text = "".join(events for (events,) in rows)
    assert user.email not in text and "hash" not in text and "Ada" not in text


def test_a_rebuild_tells_nothing(staff: Staff, databases: Databases) -> None:
    """A new epoch is internal. The next event has a later version all the same."""
    sale = staff.open_sale()
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("UPDATE sales SET epoch = epoch + 1, loaded_epoch = epoch + 1, version = version + 1")
    assert kinds(told(databases.catalogue_dsn, sale["id"])) == ["sale.created", "sale.published"]
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute("UPDATE sales SET ended = true, version = version + 1")
    events = told(databases.catalogue_dsn, sale["id"])
    assert [version for _, version, _ in events] == [1, 3, 5]
    assert kinds(events)[-1] == "sale.ended"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE products SET name = 'x', version = version + 1",
        "UPDATE sales SET paused = true, version = version + 1",
        "DELETE FROM products",
    ],
)
def test_no_statement_is_silent(staff: Staff, databases: Databases, change: str) -> None:
    """Not the ones of the release before, of an operator, or of a path to come: the database itself writes events."""
    staff.open_sale()
    before = len(told(databases.catalogue_dsn))
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute(change)
        connection.rollback()
    assert len(told(databases.catalogue_dsn)) == before, "in the transaction of the change"
    with psycopg.connect(databases.catalogue_dsn) as connection:
        connection.execute(change)
    assert len(told(databases.catalogue_dsn)) == before + 1
