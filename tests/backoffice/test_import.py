"""`POST /v1/products/import`: outcomes of items, repeats, dry runs, races, the cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
import redis
from prometheus_client import CollectorRegistry

from backoffice.caching.cache import Bounds
from backoffice.caching.caches import Caches
from backoffice.catalogue.documents import BATCH_ITEMS_MAX, Batch
from backoffice.catalogue.importing import ProductImport
from backoffice.catalogue.store import PRODUCT_CODEC, Known, ProductBatches
from backoffice.stores import Stores
from domain import ids
from runtime.process.settings import load_settings
from runtime.process.supervision import TaskSupervisor
from tests.fixtures.fix_backoffice import Staff
from tests.fixtures.fix_databases import Databases
from tests.fixtures.fix_stack import eventually


def item(sku: str, **members: Any) -> dict[str, Any]:
    return {"sku": sku, "name": f"Thing {sku}", "price_minor": 100, "currency": "EUR", **members}


def put(staff: Staff, *items: Any, **members: Any) -> list[dict[str, Any]]:
    answer = staff.http.post("/v1/products/import", json={"items": list(items), **members})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert len(results) == len(items)
    return results


def outcomes(results: list[dict[str, Any]]) -> list[str]:
    return [result["outcome"] for result in results]


def products(staff: Staff) -> dict[str, dict[str, Any]]:
    return {product["sku"]: product for product in staff.http.get("/v1/products?limit=200").json()["items"]}


def version(staff: Staff, product: dict[str, Any]) -> str:
    return staff.http.get(f"/v1/products/{product['id']}").headers["etag"]


def test_products_are_created_changed_and_left_unchanged(staff: Staff) -> None:
    one, two = item("A", attributes={"n": 1, "l": ["x"]}, description="d"), item("B", active=False)
    assert outcomes(put(staff, one, two)) == ["created", "created"]
    made = products(staff)
    assert made["A"] == {"id": made["A"]["id"], "active": True, **one}
    assert made["B"] == {"id": made["B"]["id"], "description": "", "attributes": {}, **two}
    assert outcomes(put(staff, one, two)) == ["unchanged", "unchanged"]
    assert [version(staff, product) for product in made.values()] == ['"1"', '"1"']
    # Omitted members stay unchanged; the cache serves the new product.
    assert outcomes(put(staff, {"sku": "A", "price_minor": 7}, {"sku": "B"})) == ["updated", "unchanged"]
    assert staff.http.get(f"/v1/products/{made['A']['id']}").json() == {**made["A"], "price_minor": 7}
    assert [version(staff, made[sku]) for sku in "AB"] == ['"2"', '"1"']
    assert outcomes(put(staff, item("A", attributes={}))) == ["updated"]
    assert products(staff)["A"]["attributes"] == {}


def test_each_item_is_judged_alone(staff: Staff) -> None:
    bad = [
        ({"name": "x"}, "/sku"),
        (item("a b"), "/sku"),
        (item("C", price_minor="5"), "/price_minor"),
        (item("C", price_minor=-1), "/price_minor"),
        (item("C", colour="red"), "/colour"),
        (item("C", name=None), ""),
        (item("C", attributes={"a": {}}), "/attributes/a"),
        ({"sku": "C", "name": "no price"}, "/price_minor"),
        (item("A"), "/sku"),  # twice
    ]
    results = put(staff, item("A"), *(broken for broken, _ in bad), item("Z"))
    assert outcomes(results) == ["created", *["refused"] * len(bad), "created"]
    assert [result["errors"][0]["pointer"] for result in results[1:-1]] == [pointer for _, pointer in bad]
    assert sorted(products(staff)) == ["A", "Z"]


def test_stop_leaves_out_everything_from_the_first_refused_item_on(staff: Staff) -> None:
    results = put(staff, item("A"), item("B", price_minor=-1), item("C"), {"sku": "D"}, on_error="stop")
    assert outcomes(results) == ["created", "refused", "left_out", "left_out"]
    assert sorted(products(staff)) == ["A"]
    assert outcomes(put(staff, item("?"), item("C"), on_error="stop")) == ["refused", "left_out"]
    assert sorted(products(staff)) == ["A"]


def test_a_dry_run_reports_outcomes_and_changes_nothing(staff: Staff) -> None:
    put(staff, item("A"), item("B"))
    before = products(staff)
    results = put(staff, item("A", price_minor=5), item("B"), item("C"), item("D", price_minor=-1), dry_run=True)
    assert outcomes(results) == ["updated", "unchanged", "created", "refused"]
    assert products(staff) == before
    assert version(staff, before["A"]) == '"1"'


def test_concurrent_imports_create_each_product_once(staff: Staff) -> None:
    items = [item(f"S-{n}") for n in range(100)]
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda turn: put(staff, *(items[::-1] if turn % 2 else items)), range(4)))
    assert {outcome for results in done for outcome in outcomes(results)} <= {"created", "unchanged"}
    assert sum(outcomes(results).count("created") for results in done) == 100
    assert {version(staff, product) for product in list(products(staff).values())[:5]} == {'"1"'}


def insert(connection: psycopg.Connection[Any], sku: str) -> None:
    connection.execute(
        "INSERT INTO products (id, sku, name, description, price_minor, currency, attributes, active) "
        "VALUES (%s, %s, 'A rival''s', '', 7, 'EUR', '{}', true)",
        (ids.new_uuid7(), sku),
    )


def test_an_overtaken_import_still_reports_its_own_items_as_created(staff: Staff, databases: Databases) -> None:
    with ThreadPoolExecutor(1) as pool, psycopg.connect(databases.catalogue_dsn) as rival:
        insert(rival, "B")
        asked = pool.submit(put, staff, item("A"), item("B"), item("C"))
        with psycopg.connect(databases.catalogue_dsn, autocommit=True) as watch:
            eventually(lambda: watch.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is not None)
        rival.commit()
        assert outcomes(asked.result()) == ["created", "updated", "created"]
    assert [version(staff, product) for _, product in sorted(products(staff).items())] == ['"1"', '"2"', '"1"']


class RacedBatches(ProductBatches):
    """Another request writes after each comparison."""

    rival: Callable[[], None]

    async def compare(self, items: list[dict[str, Any]]) -> dict[str, Known]:
        known = await super().compare(items)
        self.rival()
        return known


@pytest.mark.parametrize("lost", [1, 99])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
async def test_an_import_that_is_overtaken(
    databases: Databases, redis_client: redis.Redis, on_error: str, lost: int
) -> None:
    """Overtaken once, only that item is sent again. Overtaken each time, it is refused; `stop` also stops the rest."""
    left = lost

    def rival() -> None:
        nonlocal left
        if left > 0:
            left -= 1
            with psycopg.connect(databases.catalogue_dsn) as connection:
                connection.execute("DELETE FROM products WHERE sku = 'B'")
                insert(connection, "B")

    url = f"redis://127.0.0.1:{redis_client.get_connection_kwargs()['port']}"
    environ = {**databases.environ, "FLASHSALE_REDIS_URL": f"{url}/0", "FLASHSALE_CACHE_URL": f"{url}/1"}
    settings = load_settings(environ)
    stores, caches = Stores.from_settings(settings), Caches(settings.cache_url, CollectorRegistry())
    background = TaskSupervisor()
    async with stores.opened(background), caches.running(background):
        batches = RacedBatches(stores)
        batches.rival = rival
        imports = ProductImport(batches, caches.add("product", PRODUCT_CODEC, Bounds.from_settings(settings)))
        batch = Batch.model_validate({"items": [item(sku) for sku in "ABCD"], "on_error": on_error})
        answer = await imports.put(batch)
    told = [result.outcome for result in answer.results]
    if lost == 1:
        assert told == ["created", "updated", "created", "created"]
    elif on_error == "skip":
        assert told == ["created", "refused", "created", "created"]
    else:
        assert told == ["created", "refused", "left_out", "left_out"]
    with psycopg.connect(databases.catalogue_dsn) as connection:
        there = connection.execute("SELECT sku, name, version FROM products ORDER BY sku").fetchall()
    mine = {sku: (sku, f"Thing {sku}", 1) for sku in "ACD"}
    if lost == 1:
        assert there == [mine["A"], ("B", "Thing B", 2), mine["C"], mine["D"]]
    else:
        behind = [] if on_error == "stop" else [mine["C"], mine["D"]]
        assert there == [mine["A"], ("B", "A rival's", 1), *behind]


def test_imports_and_changes_at_once_lose_nothing(staff: Staff) -> None:
    put(staff, item("A"))
    path = f"/v1/products/{products(staff)['A']['id']}"

    def change(turn: int) -> httpx.Response:
        if turn % 2:
            put(staff, {"sku": "A", "price_minor": 1000 + turn})
            return staff.http.get(path)
        return staff.http.patch(path, json={"description": f"d{turn}"}, headers={"If-Match": "*"})

    with ThreadPoolExecutor(4) as pool:
        assert {answer.status_code for answer in pool.map(change, range(20))} == {200}
    assert staff.http.get(path).headers["etag"] == '"21"'  # ten imports and ten changes, none lost


def test_bounds_of_a_batch(staff: Staff) -> None:
    bodies: tuple[Any, ...] = (
        {"items": []},
        {"items": [item(f"S-{n}") for n in range(BATCH_ITEMS_MAX + 1)]},
        {"items": ["x"]},
        {"items": [item("A")], "on_error": "x"},
        {"items": [item("A")], "other": 1},
        [],
    )
    for body in bodies:
        answer = staff.http.post("/v1/products/import", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")
    assert products(staff) == {}
    assert set(outcomes(put(staff, *(item(f"S-{n}") for n in range(BATCH_ITEMS_MAX))))) == {"created"}
